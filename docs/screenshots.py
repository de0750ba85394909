"""The screenshots of TensorBoard in docs/images, made again: python docs/screenshots.py [NAME ...]

Needs what no installation brings: Chromium and its chromedriver (Debian: apt install chromium chromium-driver); and the
extra `demo`. It trains what is shown, a few minutes on one core, and keeps it in build/screenshots, where a second call
finds it. Nothing in the test suite or in continuous integration calls it; look at the pictures before you commit them.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from qa_hooks import GenerativeMonitor, GMMScorer, GradientPenalty, Hooks
from qa_hooks.callbacks import ScoreHistogram, ScorePanel
from qa_hooks.demo import load_digits_images, run_demo
from qa_hooks.demo.networks import LATENT, make_critic, make_generator

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "build" / "screenshots"
STEPS, EVERY = 600, 75


class Picture(NamedTuple):
    """A page of TensorBoard: of which runs, its tab, its query, and the window's size."""

    runs: str
    tab: str
    query: str
    size: tuple[int, int]


PICTURES = {
    "tensorboard": Picture(
        "demo", "timeseries", "tagFilter=eval/fd_|confidence/mean|samples|penalty/|wasserstein", (1500, 1200)
    ),
    "monitors": Picture(
        "monitors",
        "timeseries",
        "tagFilter=eval/fd_|eval/precision|distribution|ranked|regressions|since_best",
        (1500, 1060),
    ),
    "intervals": Picture("monitors", "custom_scalars", "", (1300, 900)),
}
SETTINGS = "[...document.querySelectorAll('button')].find(b => b.innerText.includes('Settings'))"  # opens a side bar


def train_with_monitors(folder: Path) -> None:
    """A GAN of digits, with the monitors of docs/checkpoints.md."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    real = load_digits_images().train
    size, channels = real.shape[-1], real.shape[1]
    generator, critic = make_generator(size, channels), make_critic(size, channels)
    optimizer_g, optimizer_d = (
        torch.optim.Adam(n.parameters(), lr=2e-3, betas=(0.0, 0.9)) for n in (generator, critic)
    )
    penalty = GradientPenalty(value_range=(-1, 1))
    scorer = GMMScorer("random", value_range=(-1, 1)).fit(real, progress=False)

    def noise(n: int, rng: torch.Generator | None = None) -> torch.Tensor:
        return torch.randn(n, LATENT, generator=rng)

    def sample(n: int, rng: torch.Generator) -> torch.Tensor:
        return generator(noise(n, rng))

    options = {"every": EVERY, "n": 512}
    callbacks = [
        GenerativeMonitor(sample, real, extractor="random", value_range=(-1, 1), **options),
        ScorePanel(sample, scorer, every=EVERY),
        ScoreHistogram(sample, real, scorer, **options),
    ]
    with Hooks(callbacks, log_dir=folder, track={"penalty": penalty}).attach(optimizer_g):
        for _ in range(STEPS):
            for _ in range(2):
                batch = real[torch.randint(len(real), (64,))]
                fake = generator(noise(64)).detach()
                loss = critic(fake).mean() - critic(batch).mean() + penalty(critic, batch, fake)
                optimizer_d.zero_grad()
                loss.backward()
                optimizer_d.step()
            optimizer_g.zero_grad()
            (-critic(generator(noise(64))).mean()).backward()
            optimizer_g.step()


@contextlib.contextmanager
def tensorboard(runs: Path) -> Iterator[str]:
    """TensorBoard's address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "tensorboard.main",
        "--logdir",
        runs.name,  # the page shows it: no path of this machine
        "--port",
        str(port),
        "--host",
        "127.0.0.1",
    ]
    server = subprocess.Popen(command, cwd=runs.parent, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/data/runs", timeout=5) as reply:
                if len(reply.read()) > 5:  # it has read the runs
                    break
            time.sleep(0.2)
        yield address
    finally:
        server.terminate()
        server.wait(30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PICTURES)}; all by default")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    args = parser.parse_args()
    names = args.names or list(PICTURES)
    unknown = sorted(set(names) - set(PICTURES))
    if unknown:
        parser.error(f"there is no picture {', '.join(unknown)}; there are {', '.join(PICTURES)}")
    if shutil.which("chromedriver") is None:
        parser.error("chromedriver is missing: apt install chromium chromium-driver")
    sys.path.insert(0, str(ROOT / "tests"))
    from web_driver import browser

    for runs in sorted({PICTURES[name].runs for name in names}):
        if (RUNS / runs).is_dir():
            continue
        unfinished = RUNS / f"{runs}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        if runs == "demo":
            run_demo(out=unfinished)
        else:
            train_with_monitors(unfinished / "gan")
        unfinished.rename(RUNS / runs)
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as profile, browser(Path(profile)) as window:
        for name in names:
            picture = PICTURES[name]
            with tensorboard(RUNS / picture.runs) as address:
                window.do("POST", "/window/rect", {"width": picture.size[0], "height": picture.size[1]})
                window.open(f"{address}/?{picture.query}&smoothing=0#{picture.tab}")
                if picture.tab == "timeseries":
                    window.wait_for(SETTINGS)
                    time.sleep(3)
                    window.script(f"{SETTINGS}.click()")
                time.sleep(15)  # curves are drawn one after another
                window.picture(args.out / f"{name}.png")
            print(args.out / f"{name}.png", flush=True)


if __name__ == "__main__":
    main()

"""A run that is cut in two is the run that was not: in memory, through a file, and after a kill -9.

As a script, `python tests/integration/test_resume.py FOLDER STEPS`, it trains a small GAN with everything on, writes a
checkpoint every 4 steps, and resumes from it when there is one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from qa_hooks import OHEM, GradientPenalty, Hooks, NaNGuard, QAGANPenalty
from qa_hooks.callbacks import (
    BestCheckpoint,
    EarlyStop,
    GenerativeMonitor,
    PerceptionDistortion,
    SampleGrid,
    ScoreHistogram,
    ScoreMonitor,
    ScorePanel,
    SnapshotCollector,
)
from qa_hooks.demo import load_digits_images
from qa_hooks.scorers import PSNR, FunctionScorer
from qa_hooks.writers import MemoryWriter

ROOT = Path(__file__).resolve().parents[2]
RANGE = (-1.0, 1.0)


def contrast() -> FunctionScorer:
    return FunctionScorer(lambda x: x.std((1, 2, 3)), name="contrast", higher_is_better=True, value_range=RANGE)


class Run:
    """A WGAN with our penalties and OHEM in its critic's loss, BatchNorm, dropout, Adam, and every monitor."""

    def __init__(self, folder: Path, *, watched: bool = True, **options) -> None:
        torch.manual_seed(3)
        self.digits = load_digits_images().train
        self.generator = nn.Sequential(
            nn.Linear(8, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 256), nn.Tanh(),
            nn.Unflatten(1, (1, 16, 16)),
        )  # fmt: skip
        self.critic = nn.Sequential(nn.Flatten(), nn.Linear(256, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))
        self.opt_g = torch.optim.Adam(self.generator.parameters(), 1e-3, betas=(0.0, 0.9))
        self.opt_d = torch.optim.Adam(self.critic.parameters(), 1e-3, betas=(0.0, 0.9))
        self.penalty = QAGANPenalty("both", value_range=RANGE, warmup=7)  # the NIQE term gathers for 7 steps
        self.lazy = GradientPenalty(value_range=RANGE, weight=0.1, interval=2)
        self.ohem = OHEM(self.critic, every=3)
        self.folder = folder
        self.hooks = Hooks(
            self.callbacks(folder) if watched else [],
            track={"qagan": self.penalty, "lazy": self.lazy, "ohem": self.ohem},
            log_every=2,
            **options,
        )

    def sample(self, n: int, generator: torch.Generator) -> torch.Tensor:
        return self.generator(torch.randn(n, 8, generator=generator) + 0 * torch.randn(n, 8))  # a careless draw

    def callbacks(self, folder: Path) -> list:
        scores = ScoreMonitor(contrast(), every=2, sample=self.sample, n=32)
        fd = GenerativeMonitor(
            self.sample, self.digits[:200], extractor="random", metrics=("fd", "kid"), n=64, every=3, value_range=RANGE
        )
        return [
            SampleGrid(self.sample, every=2, value_range=RANGE, n=9),
            scores,
            fd,
            ScorePanel(self.sample, contrast(), every=2, n=16, folder=folder / "panel"),
            ScoreHistogram(self.sample, self.digits[:100], contrast(), every=3, n=32),
            PerceptionDistortion(contrast(), PSNR(value_range=RANGE), images="fake", reference="real", every=2),
            SnapshotCollector(self.sample, folder=folder / "snapshots", every=5, n=4, value_range=RANGE),
            NaNGuard(every=1),
            BestCheckpoint(
                scores, "mean", mode="max", save=lambda path: torch.save(self.generator.state_dict(), path),
                folder=folder / "best", keep=2,
            ),
            BestCheckpoint(
                fd, "fd", mode="min", save=lambda path: torch.save(self.generator.state_dict(), path),
                folder=folder / "best_fd",
            ),
            EarlyStop(fd, "fd", mode="min", patience=50, certain=True),
        ]  # fmt: skip

    def train(self, steps: int) -> Run:
        for _ in range(self.hooks.step_count, steps):
            real = self.digits[torch.randint(len(self.digits), (64,))]
            fake = self.generator(torch.randn(64, 8)).detach()
            d_loss = (self.ohem(fake)[:, None] * self.critic(fake)).mean() - self.critic(real).mean()
            d_loss = d_loss + self.penalty(self.critic, real, fake) + self.lazy(self.critic, real, fake)
            self.opt_d.zero_grad()
            d_loss.backward()
            self.opt_d.step()
            fake = self.generator(torch.randn(64, 8))
            self.opt_g.zero_grad()
            (-self.critic(fake).mean()).backward()
            self.opt_g.step()
            self.hooks.record(d_loss=d_loss)
            self.hooks.step(fake=fake, real=real)
        return self

    def state_dict(self) -> dict:
        parts = {"g": self.generator, "d": self.critic, "opt_g": self.opt_g, "opt_d": self.opt_d, "hooks": self.hooks}
        return {**{name: part.state_dict() for name, part in parts.items()}, "random": torch.get_rng_state()}

    def save(self, path: Path) -> None:
        torch.save(self.state_dict(), path.with_suffix(".partial"))
        path.with_suffix(".partial").replace(path)

    def load(self, path: Path) -> Run:
        state = torch.load(path, weights_only=True)
        self.generator.load_state_dict(state["g"])
        self.critic.load_state_dict(state["d"])
        self.opt_g.load_state_dict(state["opt_g"])
        self.opt_d.load_state_dict(state["opt_d"])
        self.hooks.load_state_dict(state["hooks"])
        torch.set_rng_state(state["random"])
        return self


def differences(a, b, where: str = "") -> list[str]:
    """Where two nested states differ, bit for bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if a.shape == b.shape and torch.equal(a, b) else [where]
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [found for key in a for found in differences(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return [found for i, (x, y) in enumerate(zip(a, b, strict=True)) for found in differences(x, y, f"{where}/{i}")]
    return [] if type(a) is type(b) and (a == b or (a != a and b != b)) else [f"{where}: {a!r}, {b!r}"]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.filterwarnings("error")
def test_ten_steps_equal_five_saved_and_five_resumed_with_everything_on(tmp_path):
    writers = [MemoryWriter(), MemoryWriter(), MemoryWriter()]
    whole = Run(tmp_path / "whole", writer=writers[0]).train(10)
    assert whole.penalty.parts["niqe"].model is not None  # the warm-up ended in the second half
    assert whole.ohem.calls == 10

    first = Run(tmp_path / "cut", writer=writers[1]).train(5)
    assert first.penalty.parts["niqe"].model is None
    first.save(tmp_path / "run.pt")
    second = Run(tmp_path / "cut", writer=writers[2])
    second.load(tmp_path / "run.pt").train(10)

    assert differences(whole.state_dict(), second.state_dict()) == []
    for kind in ("scalars", "images", "histograms"):
        expected, found = getattr(writers[0], kind), getattr(writers[2], kind)
        for tag, points in expected.items():
            later = [point for point in points if point[0] > 5]
            if "qa_perf" not in tag:
                assert differences(later, found.get(tag, []), tag) == []
    written = files(tmp_path / "whole")
    assert {name.split("/")[0] for name in written} == {"best", "best_fd", "panel", "snapshots"}
    assert files(tmp_path / "cut") == written
    best = json.loads(written["best/best.json"])
    assert best["step"] == max(writers[0].scalars["qa_eval/contrast/mean"], key=lambda point: point[1])[0]


def test_all_that_watching_changes_is_the_folder(tmp_path):
    watched = Run(tmp_path / "watched", writer=MemoryWriter()).train(9).state_dict()
    alone = Run(tmp_path / "alone", watched=False).train(9).state_dict()
    for name in ("g", "d", "opt_g", "opt_d", "random"):
        assert differences(watched[name], alone[name], name) == []
    assert not (tmp_path / "alone").exists()


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if "qa_perf" not in tag]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def raw_steps(folder: Path, tag: str) -> list[int]:
    """The steps of all points in the files, also of those that TensorBoard hides."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found = []
    for path in sorted(folder.glob("*tfevents*")):
        for event in EventFileLoader(str(path)).Load():
            found += [event.step for value in event.summary.value if value.tag == tag]
    return found


def test_a_killed_run_resumes_with_the_same_curve(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def start(folder: Path, steps: int) -> subprocess.Popen:
        command = [sys.executable, __file__, str(folder), str(steps)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    whole = start(tmp_path / "whole", 13)
    cut = start(tmp_path / "cut", 10**6)
    lines = []
    for line in cut.stdout:
        lines.append(line)
        if line.startswith("step 7"):
            break
    assert lines[-1].startswith("step 7"), "".join(lines)
    cut.send_signal(signal.SIGKILL)
    cut.wait()
    assert cut.returncode == -signal.SIGKILL
    again = start(tmp_path / "cut", 13)
    texts = [process.communicate()[0] for process in (again, whole)]
    assert (again.returncode, whole.returncode) == (0, 0), texts
    assert "resumed at 4" in texts[0]

    expected, found = curves(tmp_path / "whole" / "log"), curves(tmp_path / "cut" / "log")
    tag = "qa_eval/perception_distortion_psnr/mean"
    assert [step for step, _ in expected[tag]] == [1, 2, 4, 6, 8, 10, 12]
    assert found == expected
    assert raw_steps(tmp_path / "cut" / "log", tag).count(6) == 2  # both are in the files, and one is shown
    weights = [torch.load(tmp_path / run / "run.pt", weights_only=True) for run in ("whole", "cut")]
    assert differences(*weights) == []
    for name in ("best", "best_fd"):
        assert (tmp_path / "whole" / name / "best.json").read_text() == (
            tmp_path / "cut" / name / "best.json"
        ).read_text()
    assert not list((tmp_path / "cut").rglob("*partial*"))


def main(folder: Path, steps: int) -> None:
    torch.set_num_threads(1)
    run, checkpoint = Run(folder, log_dir=folder / "log"), folder / "run.pt"
    if checkpoint.exists():
        run.load(checkpoint)
        print(f"resumed at {run.hooks.step_count}", flush=True)
    for step in range(run.hooks.step_count + 1, steps + 1):
        run.train(step)
        if step % 4 == 0:
            run.save(checkpoint)
        print(f"step {step}", flush=True)
    run.save(checkpoint)
    run.hooks.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

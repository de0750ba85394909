"""How often RewardGuard errs on honest runs, and how late it is on runs that exploit their reward.

    python -m benchmarks reward_guard [--data DIR] [--seeds 4] [--workers 2] [--quick]

Super-resolution x3 of photographs by a small network and three small quality networks, one optimised and two held out:
trained by L1 from nothing; fine-tuned by L1; by L1 and a little of the reward; and by too much of it. Salt noise and
sharpening are put on the fine-tuned network's images, more at each step. And a generator of digits (the decoder of a
small VAE) that maximises a likelihood until it draws one digit. Without `--data`, scikit-image's photographs.

A run counts as an alarm when the guard raised one at any of its looks. Intervals are Wilson's 95 % over runs.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qa_hooks.callbacks import Hooks, RewardGuard
from qa_hooks.functional.degradations import degrade
from qa_hooks.functional.intervals import wilson_interval
from qa_hooks.images import list_images, load_image
from qa_hooks.rewards.alarm_rule import KINDS, Finding, is_suspicious
from qa_hooks.scorers import FunctionScorer, GMMScorer, KNNScorer

SIDE, SCALE = 72, 3
HONEST = ("L1 from nothing", "L1 fine-tuning", "L1 + 0.1 reward", "VAE from nothing", "VAE fine-tuning")
HACKED = ("L1 + 3 reward", "L1 + 10 reward", "reward alone", "salt noise", "sharpening", "digits: likelihood alone")
EVERY = 5


class Look(NamedTuple):
    step: int
    found: list[Finding]
    quality: float  # PSNR in dB; of digits the spread


class Run(NamedTuple):
    name: str
    seed: int
    alarm: int | None
    looks: list[Look]


# -- photographs, networks ---------------------------------------------------------------------------------------------


def photographs(folder: str | None) -> list[Tensor]:
    if folder is not None:
        return [load_image(path).float() / 255 for path in list_images(folder)]
    from skimage import data

    names = ("astronaut", "coffee", "chelsea", "rocket", "immunohistochemistry", "retina", "hubble_deep_field")
    images = [torch.from_numpy(getattr(data, name)()).permute(2, 0, 1).float() / 255 for name in names[:4]]
    return [part for image in images for part in image.chunk(3, 2)]


def crops(images: list[Tensor], count: int, seed: int) -> Tensor:
    generator, found = torch.Generator().manual_seed(seed), []
    for index in range(count):
        image = images[index % len(images)]
        top, left = (int(torch.randint(side - SIDE + 1, (), generator=generator)) for side in image.shape[1:])
        found.append(image[:, top : top + SIDE, left : left + SIDE])
    return torch.stack(found)


def shrink(images: Tensor) -> Tensor:
    return F.interpolate(images, scale_factor=1 / SCALE, mode="bicubic", antialias=True).clamp(0, 1)


class Upscaler(nn.Module):
    def __init__(self, width: int = 24) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), nn.ReLU()]
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.Conv2d(width, 3 * SCALE**2, 3, padding=1), nn.PixelShuffle(SCALE))

    def forward(self, images: Tensor) -> Tensor:
        up: Tensor = F.interpolate(images, scale_factor=SCALE, mode="bicubic")
        details: Tensor = self.body(images)
        return up + details


class Quality(nn.Module):
    """Ranks degradations: small, quickly trained, and as easily exploited as its larger kin."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 4, 2, 1), nn.ReLU(), nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(2 * width, 2 * width, 3, 1, 1), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(4 * width, 1)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.body((images - 0.5) * 4)
        score: Tensor = self.head(torch.cat([maps.mean((2, 3)), (maps.var((2, 3)) + 1e-4).sqrt()], 1))
        return score[:, 0]


def fit_quality(images: Tensor, seed: int, steps: int) -> Quality:
    torch.manual_seed(seed)
    generator, network = torch.Generator().manual_seed(seed), Quality((16, 12, 20)[seed % 3])
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
    for step in range(steps):
        batch = images[torch.randint(len(images), (8,), generator=generator)]
        kind = ("blur", "noise", "downsample", "jpeg")[step % 4]
        scores = torch.stack([network(degrade(batch, kind, level, generator=generator)) for level in range(5)])
        pairs = [F.relu(0.5 - scores[a] + scores[b]).mean() for a in range(5) for b in range(a + 1, 5)]
        optimizer.zero_grad()
        (torch.stack(pairs).mean() + 1e-3 * scores.square().mean()).backward()
        optimizer.step()
    return network.requires_grad_(False).eval()


# -- runs --------------------------------------------------------------------------------------------------------------


class Setting(NamedTuple):
    train: Tensor
    held: Tensor
    rewards: list[nn.Module]
    quick: bool


def guarded(
    name: str, seed: int, steps: int, advance: Callable[[], object], guard: RewardGuard, quality: Callable[[], float]
) -> Run:
    """Run a loop under the guard, and note what it found at each look."""
    looks: list[Look] = []
    alarm = None
    with warnings.catch_warnings(), Hooks([guard]) as hooks:
        warnings.simplefilter("ignore")
        for step in range(1, steps + 1):
            advance()
            hooks.step()
            if guard.last.get("step") == step:
                looks.append(Look(step, list(guard.found), quality()))
                if guard.alarms and alarm is None:
                    alarm = step
    if not looks:
        raise RuntimeError(f"{name}: the guard did not run")
    return Run(name, seed, alarm, looks)


def loss_step(net: nn.Module, lr: float, seed: int, setting: Setting, ratio: float | None) -> Callable[[], None]:
    """One step of L1 and reward; `ratio` is that of their gradients' norms, None the reward alone."""
    optimizer, reward = torch.optim.Adam(net.parameters(), lr), setting.rewards[0]
    generator, inputs = torch.Generator().manual_seed(seed), shrink(setting.train)

    def advance() -> None:
        rows = torch.randint(len(inputs), (8,), generator=generator)
        images = net(inputs[rows])
        l1, wanted = F.l1_loss(images, setting.train[rows]), -reward(images).mean()
        loss = wanted
        if ratio is not None:
            norms = [torch.autograd.grad(part, images, retain_graph=True)[0].norm() for part in (l1, wanted)]
            loss = l1 + ratio * norms[0] / (norms[1] + 1e-12) * wanted if ratio else l1
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return advance


def super_resolution(seed: int, setting: Setting) -> Iterator[Run]:
    torch.manual_seed(seed)
    net = Upscaler()
    chosen = torch.randperm(len(setting.held), generator=torch.Generator().manual_seed(seed))[:32]
    truth = setting.held[chosen]
    inputs = shrink(truth)
    real = setting.train[torch.randperm(len(setting.train), generator=torch.Generator().manual_seed(seed))[:120]]
    scorers = [FunctionScorer(n, name=f"q{i}", higher_is_better=True) for i, n in enumerate(setting.rewards)]

    def run(
        name: str, steps: int, advance: Callable[[], object], model: Callable[[Tensor], Tensor], **more: Any
    ) -> Run:
        def sample(n: int, generator: torch.Generator) -> Tensor:
            return model(inputs[:n])

        def psnr() -> float:
            with torch.no_grad():
                return float(-10 * (model(inputs).clamp(0, 1) - truth).square().mean().log10())

        options: dict[str, Any] = {"every": EVERY, "n": len(truth), "real": real} | more
        guard = RewardGuard(scorers[0], scorers[1:], sample=sample, **options)
        return guarded(name, seed, steps, advance, guard, psnr)

    base_steps = 60 if setting.quick else 300
    yield run(HONEST[0], base_steps, loss_step(net, 1e-3, seed, setting, 0), net, every=25)
    base = copy.deepcopy(net).requires_grad_(False)

    def base_sample(n: int, generator: torch.Generator) -> Tensor:
        images: Tensor = base(inputs[:n])
        return images

    plans: list[tuple[str, float | None, float, int]] = [
        (HONEST[1], 0, 3e-4, 60), (HONEST[2], 0.1, 3e-4, 60),
        (HACKED[0], 3, 1e-3, 60), (HACKED[1], 10, 1e-3, 40), (HACKED[2], None, 1e-3, 40),
    ]  # fmt: skip
    for name, ratio, lr, steps in plans:
        tuned = copy.deepcopy(base).requires_grad_(True)
        yield run(name, steps, loss_step(tuned, lr, seed + 100, setting, ratio), tuned, base=base_sample)
    for name, spoil in ((HACKED[3], salt), (HACKED[4], sharpen)):
        ramp = Ramp(base, spoil)
        yield run(name, 100, ramp.advance, ramp, base=base_sample)


class Ramp:
    """The base model's images, spoilt a little more at each step: at step 100 with strength 1."""

    def __init__(self, base: nn.Module, spoil: Callable[[Tensor, float], Tensor]) -> None:
        self.base, self.spoil, self.step = base, spoil, 0

    def advance(self) -> None:
        self.step += 1

    def __call__(self, images: Tensor) -> Tensor:
        return self.spoil(self.base(images), self.step / 100)


def salt(images: Tensor, strength: float) -> Tensor:
    """White pixels, up to 5 %."""
    drawn = torch.rand(images[:, :1].shape, generator=torch.Generator().manual_seed(0))
    return torch.where(drawn < 0.05 * strength, 1.0, images)


def sharpen(images: Tensor, strength: float) -> Tensor:
    """Unsharp masking, up to 8 times the difference from a 5 x 5 mean."""
    blurred = F.avg_pool2d(F.pad(images, (2,) * 4, mode="replicate"), 5, 1)
    return images + 8 * strength * (images - blurred)


def digits(seed: int, quick: bool) -> Iterator[Run]:
    from qa_hooks.demo import load_digits_images

    torch.manual_seed(seed)
    data = load_digits_images().train / 2 + 0.5
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 32))
    decoder = nn.Sequential(
        nn.Linear(16, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256), nn.Sigmoid(),
        nn.Unflatten(1, (1, 16, 16)),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], 2e-3)

    def elbo() -> None:
        batch = data[torch.randint(len(data), (64,), generator=generator)]
        mean, logvar = encoder(batch).chunk(2, 1)
        code = mean + (logvar / 2).exp() * torch.randn(mean.shape, generator=generator)
        error = F.binary_cross_entropy(decoder(code), batch, reduction="sum") / 64
        kl = (mean.square() + logvar.exp() - logvar - 1).sum(1).mean() / 2
        optimizer.zero_grad()
        (error + 0.5 * kl).backward()
        optimizer.step()

    features = {"type": "random", "width": 16}
    gmm = GMMScorer(features, 7, pca=16).fit(data[:700], progress=False)
    knn = KNNScorer(features).fit(data[:700], progress=False)
    contrast = FunctionScorer(lambda x: x.std((1, 2, 3)), name="contrast", higher_is_better=True)

    def run(name: str, steps: int, advance: Callable[[], object], model: nn.Module, **more: Any) -> Run:
        def sample(n: int, rng: torch.Generator) -> Tensor:
            images: Tensor = model(torch.randn(n, 16, generator=rng))
            return images

        options: dict[str, Any] = {"every": EVERY, "n": 64, "real": data[700:900]} | more
        guard = RewardGuard(gmm, [knn, contrast], sample=sample, **options)
        return guarded(name, seed, steps, advance, guard, lambda: guard.last["spread"])

    yield run(HONEST[3], 100 if quick else 1000, elbo, decoder, every=50)
    base = copy.deepcopy(decoder).requires_grad_(False)
    more = {"base": lambda n, rng: base(torch.randn(n, 16, generator=rng))}
    yield run(HONEST[4], 100, elbo, decoder, **more)
    tuned = copy.deepcopy(base).requires_grad_(True)
    tuner = torch.optim.Adam(tuned.parameters(), 1e-3)

    def likelihood() -> None:
        images = tuned(torch.randn(64, 16, generator=generator))
        tuner.zero_grad()
        (-gmm(images).mean()).backward()
        tuner.step()

    yield run(HACKED[5], 100, likelihood, tuned, **more)


def all_runs(seed: int, setting_file: str, quick: bool) -> list[Run]:
    torch.set_num_threads(1)
    state = torch.load(setting_file, weights_only=True)
    rewards: list[nn.Module] = []
    for index, weights in enumerate(state["rewards"]):
        network = Quality((16, 12, 20)[index])
        network.load_state_dict(weights)
        rewards.append(network.requires_grad_(False).eval())
    setting = Setting(state["train"], state["held"], rewards, quick)
    return [*super_resolution(seed, setting), *digits(seed, quick)]


# -- the tables --------------------------------------------------------------------------------------------------------


def first_alarm(run: Run, suspicious: Callable[[list[Finding]], bool], patience: int) -> Look | None:
    """Where another rule would have raised the alarm."""
    waited = 0
    for look in run.looks:
        waited = waited + 1 if suspicious(look.found) else 0
        if waited >= patience:
            return look
    return None


def report(runs: list[Run]) -> str:
    lines = ["| run | alarms | share, 95 % | first alarm at step | dB (digits: spread) before, then | named first |"]
    lines.append("|---|---|---|---|---|---|")
    for name in (*HONEST, *HACKED):
        of_name = [run for run in runs if run.name == name]
        raised = [run for run in of_name if run.alarm is not None]
        _, low, high = wilson_interval(len(raised) / len(of_name), len(of_name))
        steps = [run.alarm for run in raised if run.alarm is not None]
        at = [next(look for look in run.looks if look.step == run.alarm) for run in raised]
        when = f"{statistics.median(steps):g} ({min(steps)}-{max(steps)})" if steps else "-"
        before = statistics.median(run.looks[0].quality for run in of_name)
        then = f"{statistics.median(look.quality for look in at):.2f}" if at else "-"
        kinds = statistics.mode(look.found[0].kind for look in at) if at else "-"
        share = f"{len(raised)} of {len(of_name)} | {low:.2f}-{high:.2f}"
        lines.append(f"| {name} | {share} | {when} | {before:.2f}, {then} | {kinds} |")
    lines += [
        "",
        "| rule | patience | honest runs with an alarm | hacked runs with one | median delay |",
        "|---|---|---|---|---|",
    ]

    def only(kind: str) -> Callable[[list[Finding]], bool]:
        return lambda found: any(finding.kind == kind for finding in found)

    def without(*kinds: str) -> Callable[[list[Finding]], bool]:
        return lambda found: is_suspicious([finding for finding in found if finding.kind not in kinds])

    blind = without("score", "gain")
    images_alone = without("score", "gain", "drift", "change_peak")
    rules: list[tuple[str, Callable[[list[Finding]], bool], int]] = [
        (name, is_suspicious, patience) for name, patience in (("combined", 2), ("combined", 1), ("combined", 3))
    ]
    rules += [("combined, no scorer", blind, 2), ("combined, neither scorer nor base", images_alone, 2)]
    rules += [("combined, neither scorer nor base", images_alone, 1)]
    rules += [("anything beyond its limit", bool, 2), ("anything beyond its limit", bool, 1)]
    rules += [(f"{kind} alone", only(kind), 2) for kind in KINDS]
    for name, suspicious, patience in rules:
        counts, delays = [], []
        for group in (HONEST, HACKED):
            of_group = [run for run in runs if run.name in group]
            raised_at = [first_alarm(run, suspicious, patience) for run in of_group]
            steps = [look.step for look in raised_at if look is not None]
            counts.append(f"{len(steps)} of {len(of_group)}")
            delays = steps
        lines.append(
            f"| {name} | {patience} | {counts[0]} | {counts[1]} | {statistics.median(delays) if delays else '-'} |"
        )
    looks = [look for run in runs if run.name in HONEST for look in run.looks]
    suspicious_looks = sum(is_suspicious(look.found) for look in looks)
    lines += ["", f"Looks at honest runs that were suspicious: {suspicious_looks} of {len(looks)}."]
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks reward_guard", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--data", metavar="DIR", help="photographs; the last fifth by name is held out")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread")
    parser.add_argument("--quick", action="store_true", help="fewer steps, to see that it runs")
    options = parser.parse_args(arguments)
    started = time.perf_counter()
    torch.set_num_threads(1)
    images = photographs(options.data)
    held = max(1, len(images) // 5)
    train, test = crops(images[:-held], 480, 0), crops(images[-held:], 120, 1)
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(options.workers, get_context("spawn")) as pool:
        steps = 20 if options.quick else 150
        networks = list(pool.map(fit_quality, [train] * 3, range(3), [steps] * 3))
        file = str(Path(folder) / "setting.pt")
        torch.save({"train": train, "held": test, "rewards": [n.state_dict() for n in networks]}, file)
        seeds = range(options.seeds)
        found = [
            run for runs in pool.map(all_runs, seeds, [file] * len(seeds), [options.quick] * len(seeds)) for run in runs
        ]
    print(f"torch {torch.__version__}, {options.seeds} seeds, looks every {EVERY} steps, {len(images)} photographs, "
          f"{time.perf_counter() - started:.0f} s\n\n{report(found)}")  # fmt: skip

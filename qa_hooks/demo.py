"""The demo: WGAN-GP on handwritten digits, plain and with QAGAN's two quality penalties, at equal steps and seeds.

    python -m qa_hooks demo                      # about a minute and a half on two cores; nothing is downloaded
    python -m qa_hooks demo --data FOLDER        # the same on a folder of images

Data, networks and evaluation are public, so that examples can use them; `examples/qagan_digits.py` writes the loop out.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import multiprocessing
import os
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qa_hooks.callbacks import Context, Hooks, Monitor, NaNGuard, SampleGrid, ScoreMonitor
from qa_hooks.functional.frechet import frechet_distance, inception_score
from qa_hooks.images import list_images, load_image, make_grid, save_image, to_uint8
from qa_hooks.penalties import QAGANPenalty
from qa_hooks.scorers import FunctionScorer
from qa_hooks.stats import Moments
from qa_hooks.writers import check_writable, make_tag

VARIANTS = ("plain", "ssim", "niqe")
LATENT = 32


# -- data -------------------------------------------------------------------------------------------------------------


@dataclass
class Images:
    """Real images `(N, C, S, S)` in [-1, 1], a part to train on and one held out, with labels where there are any."""

    name: str
    train: Tensor
    test: Tensor
    train_labels: Tensor | None = None
    test_labels: Tensor | None = None


def load_digits_images() -> Images:
    """scikit-learn's 1797 handwritten digits, 8x8 enlarged to 16x16: 1400 to train on, 397 held out."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] / 16
    images = F.interpolate(images, scale_factor=2, mode="bilinear", align_corners=False) * 2 - 1
    labels = torch.from_numpy(digits.target).long()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, test = order[:1400], order[1400:]
    return Images("digits", images[train], images[test], labels[train], labels[test])


def load_folder_images(folder: str | Path, *, size: int = 32, limit: int = 10_000) -> Images:
    """Images of a folder, centre-cropped and resized to `size`; its subfolders are the classes where there are several.

    One in five is held out. `limit` images are taken evenly from the sorted list; unreadable files are skipped and
    counted.
    """
    from tqdm import tqdm

    paths = list_images(folder)
    paths = paths[:: max(1, len(paths) // limit)][:limit]
    images, kept = [], []
    for path in tqdm(paths, desc="reading", unit="image", disable=None):
        try:
            image = load_image(path).float()[None] / 255
        except ValueError:
            continue
        side = min(image.shape[-2:])
        top, left = ((length - side) // 2 for length in image.shape[-2:])
        square = image.expand(1, 3, -1, -1)[..., top : top + side, left : left + side]
        images.append(F.interpolate(square, (size, size), mode="bicubic", antialias=True).clamp(0, 1)[0])
        kept.append(path)
    if len(kept) < len(paths):
        print(f"{len(paths) - len(kept)} of {len(paths)} files could not be read and were left out")
    if len(images) < 500:
        raise ValueError(f"{folder} has {len(images)} readable images; a GAN and its evaluation need at least 500")
    classes = sorted({path.parent for path in kept})
    labels = torch.tensor([classes.index(path.parent) for path in kept]) if len(classes) > 1 else None
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    test, train = order[: len(order) // 5], order[len(order) // 5 :]
    stacked = torch.stack(images) * 2 - 1
    split = (labels[train], labels[test]) if labels is not None else (None, None)
    return Images(Path(folder).resolve().name, stacked[train], stacked[test], *split)


# -- networks ---------------------------------------------------------------------------------------------------------


def make_generator(size: int, channels: int) -> nn.Sequential:
    """`(N, 32)` noise -> `(N, C, S, S)` in (-1, 1); S is 16, 32 or 64."""
    _check_size(size)
    stages = int(math.log2(size // 4))
    widths = [32 * 2**i for i in reversed(range(stages))]
    layers: list[nn.Module] = [nn.Linear(LATENT, widths[0] * 16), nn.Unflatten(1, (widths[0], 4, 4))]
    for width, out in zip(widths, [*widths[1:], channels], strict=True):
        layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.ConvTranspose2d(width, out, 4, 2, 1)]
    return nn.Sequential(*layers, nn.Tanh())


def make_critic(size: int, channels: int) -> nn.Sequential:
    """`(N, C, S, S)` -> `(N, 1)`; no normalisation, so that a gradient belongs to one image."""
    _check_size(size)
    layers: list[nn.Module] = [nn.PixelUnshuffle(2), nn.Conv2d(4 * channels, 32, 3, padding=1), nn.LeakyReLU(0.2)]
    width = 32
    for _ in range(int(math.log2(size // 8))):
        layers += [nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.LeakyReLU(0.2)]
        width *= 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * 16, 128), nn.LeakyReLU(0.2), nn.Linear(128, 1))


def _check_size(size: int) -> None:
    if size not in (16, 32, 64):
        raise ValueError(f"size must be 16, 32 or 64, got {size}")


# -- evaluation -------------------------------------------------------------------------------------------------------


class Evaluator:
    """Frechet distance and inception-style score in the 64 features of a small classifier trained on the spot.

    Without labels the network stays as it was initialised (seeded), and there is no score. The name says which.

    Attributes:
        name: of the extractor, part of each metric's name.
        accuracy: on the held-out part; None without labels.
    """

    def __init__(self, data: Images, *, epochs: int = 12) -> None:
        channels, size = data.train.shape[1], data.train.shape[-1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.features, self.head = _classifier(channels, size, data.train_labels)
            if self.head is not None and data.train_labels is not None:
                _train_classifier(self.features, self.head, data.train, data.train_labels, epochs)
        self.features.eval()
        self.accuracy = None
        if self.head is not None and data.test_labels is not None:
            self.accuracy = float((self.logits(data.test).argmax(1) == data.test_labels).float().mean())
        self.name = f"{data.name}-cnn64" if self.head is not None else "random-cnn64"
        self.real = self.moments(data.train)

    @torch.no_grad()
    def extract(self, images: Tensor) -> Tensor:
        """`(N, C, S, S)` in [-1, 1] -> `(N, 64)`."""
        return torch.cat([self.features(batch) for batch in images.split(512)])

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """`(N, classes)`."""
        if self.head is None:
            raise ValueError("no labels, so no classifier")
        logits: Tensor = self.head(self.extract(images))
        return logits

    def moments(self, images: Tensor) -> Moments:
        """Mean and covariance of the features."""
        moments = Moments(64)
        moments.update(self.extract(images))
        return moments

    def evaluate(self, images: Tensor) -> dict[str, float]:
        """`{"fd": .., "is": ..}` of generated images against the real training part."""
        own = self.moments(images)
        distance = frechet_distance(own.mean(), own.covariance(), self.real.mean(), self.real.covariance())
        values = {"fd": float(distance)}
        if self.head is not None:
            values["is"] = float(inception_score(self.logits(images), splits=1)[0])
        return values


def _classifier(channels: int, size: int, labels: Tensor | None) -> tuple[nn.Sequential, nn.Linear | None]:
    features = nn.Sequential(
        nn.Conv2d(channels, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2 if labels is not None else 1),
        nn.Flatten(), *([nn.Linear(256, 64), nn.ReLU()] if labels is not None else []),
    )  # fmt: skip
    return features, nn.Linear(64, int(labels.max()) + 1) if labels is not None else None


def _train_classifier(features: nn.Module, head: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> None:
    optimizer = torch.optim.AdamW([*features.parameters(), *head.parameters()], lr=2e-3, weight_decay=1e-4)
    batches = math.ceil(len(images) / 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=epochs * batches)
    for _ in range(epochs):
        for index in torch.randperm(len(images)).split(64):
            loss = F.cross_entropy(head(features(images[index])), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


class FrechetMonitor(Monitor):
    """The demo's evaluation as a curve; `qa_hooks` users write their own in as few lines."""

    def __init__(self, evaluator: Evaluator, sample: Any, *, every: int, n: int) -> None:
        super().__init__(every=every)
        self.evaluator, self.sample, self.n = evaluator, sample, n

    def local(self, ctx: Context) -> dict[str, float]:
        return self.evaluator.evaluate(self.sample(self.n, torch.Generator().manual_seed(1)))

    def reduce(self, ctx: Context, part: dict[str, float]) -> None:
        for metric, value in part.items():
            ctx.writer.scalar(make_tag("eval", f"{metric}_{self.evaluator.name}(n={self.n})", "value"), value, ctx.step)


# -- one run ----------------------------------------------------------------------------------------------------------


@dataclass
class Job:
    """One training run: settings of experiments that train in under a minute of one core."""

    variant: str
    seed: int
    steps: int
    folder: Path
    n_critic: int = 2
    batch: int = 64
    lr: float = 2e-3
    gp_weight: float = 10.0
    samples: int = 2800
    images: Tensor = field(default_factory=lambda: torch.zeros(0), repr=False)


def make_penalty(variant: str, *, gp_weight: float, warmup: int) -> QAGANPenalty:
    """The penalty of a variant: WGAN-GP with drift, alone or with one of QAGAN's quality terms."""
    quality = {"plain": "none", "ssim": "ssim", "niqe": "niqe"}[variant]
    return QAGANPenalty(quality, value_range=(-1, 1), gp_weight=gp_weight, warmup=warmup)


def train(job: Job, evaluator: Evaluator, progress: Any = None) -> dict[str, Any]:
    """Train one variant, log it to `job.folder`, and evaluate its EMA generator."""
    torch.manual_seed(job.seed)
    size, channels = job.images.shape[-1], job.images.shape[1]
    generator, critic = make_generator(size, channels), make_critic(size, channels)
    ema = copy.deepcopy(generator).eval()
    optimizer_g = torch.optim.Adam(generator.parameters(), lr=job.lr, betas=(0.0, 0.9))
    optimizer_d = torch.optim.Adam(critic.parameters(), lr=job.lr, betas=(0.0, 0.9))
    schedules = [torch.optim.lr_scheduler.LambdaLR(opt, _decay(job.steps)) for opt in (optimizer_g, optimizer_d)]
    penalty = make_penalty(job.variant, gp_weight=job.gp_weight, warmup=job.n_critic * max(job.steps // 6, 12))

    def sample(n: int, rng: torch.Generator) -> Tensor:
        images: Tensor = ema(torch.randn(n, LATENT, generator=rng))
        return images

    every = max(1, job.steps // 8)
    callbacks = [
        SampleGrid(sample, every=every, value_range=(-1, 1), scale=3),
        FrechetMonitor(evaluator, sample, every=every, n=min(1000, job.samples)),
        NaNGuard("stop", every=10),
    ]
    if evaluator.head is not None:
        scorer = FunctionScorer(
            lambda images: evaluator.logits(images * 2 - 1).softmax(1).amax(1),
            name="class_confidence",
            higher_is_better=True,
            score_range=(0, 1),
            differentiable=False,
            value_range=(-1, 1),
        )
        callbacks.insert(2, ScoreMonitor(scorer, every=every, sample=sample))
    durations = []
    with Hooks(callbacks, log_dir=job.folder, track={"penalty": penalty}, log_every=20).attach(optimizer_g) as hooks:
        for step in range(job.steps):
            start = time.process_time()
            for _ in range(job.n_critic):
                real = job.images[torch.randint(len(job.images), (job.batch,))]
                with torch.no_grad():
                    fake = generator(torch.randn(job.batch, LATENT))
                real_scores, fake_scores = critic(real), critic(fake)
                wasserstein = real_scores.mean() - fake_scores.mean()
                d_loss = -wasserstein + penalty(critic, real, fake, real_scores=real_scores, fake_scores=fake_scores)
                optimizer_d.zero_grad()
                d_loss.backward()
                optimizer_d.step()
            g_loss = -critic(generator(torch.randn(job.batch, LATENT))).mean()
            optimizer_g.zero_grad()
            g_loss.backward()
            hooks.record(wasserstein=wasserstein, g_loss=g_loss)
            before_step = time.process_time()
            optimizer_g.step()  # the monitors run in here, and are not counted
            after_step = time.process_time()
            for schedule in schedules:
                schedule.step()
            _update_ema(ema, generator, 0.98)
            durations.append(before_step - start + time.process_time() - after_step)
            if progress is not None and (step + 1) % 10 == 0:
                progress.put(10)
    rng = torch.Generator().manual_seed(2)
    with torch.no_grad():
        images = torch.cat([sample(min(400, job.samples - i), rng) for i in range(0, job.samples, 400)])
    result = {
        "variant": job.variant,
        "seed": job.seed,
        "steps": job.steps,
        "ms": 1000 * statistics.median(durations[job.steps // 2 :]),
    }
    return {**result, **evaluator.evaluate(images), "strip": images[:24]}


def _train_quietly(job: Job, evaluator: Evaluator, progress: Any) -> dict[str, Any]:
    with Path(os.devnull).open("w") as null, contextlib.redirect_stdout(null):  # one progress bar for all processes
        return train(job, evaluator, progress)


def _decay(steps: int) -> Any:
    """Constant, then linear to 10 % over the second half."""
    return lambda step: min(1.0, max(0.1, 1.9 - 1.8 * step / steps))


@torch.no_grad()
def _update_ema(ema: nn.Module, model: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - decay)
    for own, new in zip(ema.buffers(), model.buffers(), strict=True):
        own.copy_(new)


# -- all runs ---------------------------------------------------------------------------------------------------------


def run_demo(
    *,
    out: str | Path = "runs/demo",
    data: str | Path | None = None,
    variants: tuple[str, ...] = VARIANTS,
    seeds: tuple[int, ...] = (0,),
    steps: int = 1200,
    equal: str = "steps",
    size: int = 32,
    limit: int = 10_000,
    jobs: int = 2,
) -> list[dict[str, Any]]:
    """Train every variant with every seed, side by side as one-thread processes; print a table, write pictures and
    logs.

    Args:
        out: the folder for TensorBoard runs, `samples.png` and `results.json`.
        data: a folder of images; the digits by default.
        variants: some of "plain", "ssim", "niqe".
        seeds: one run of each variant per seed.
        steps: generator steps; with `equal="time"` those of the plain variant.
        equal: "steps", or "time": the other variants get as many steps as the plain one's time allows.
        size, limit: of the images read from `data`.
        jobs: processes at a time.

    Returns:
        One dictionary per run: variant, seed, steps, median CPU milliseconds of a step (monitors not counted), fd, is.
    """
    _check_demo(variants, seeds, steps, equal, jobs)
    out = Path(out)
    check_writable(out)
    torch.set_num_threads(1)  # networks this small are slower on more
    images = load_digits_images() if data is None else load_folder_images(data, size=size, limit=limit)
    evaluator = Evaluator(images)
    _describe(images, evaluator)
    template = Job("plain", 0, steps, out, images=images.train)
    lengths = dict.fromkeys(variants, steps) if equal == "steps" else _equal_time_steps(template, variants, evaluator)
    todo = [
        replace(template, variant=variant, seed=seed, steps=lengths[variant], folder=out / f"{variant}-seed{seed}")
        for seed in seeds
        for variant in variants
    ]
    results = _run_side_by_side(todo, evaluator, jobs)
    strips = [images.train[:24], *(next(r["strip"] for r in results if r["variant"] == v) for v in variants)]
    save_image(make_grid(to_uint8(torch.cat(strips), (-1, 1)), columns=24, scale=3), out / "samples.png")
    plain_results = [{key: value for key, value in result.items() if key != "strip"} for result in results]
    spec = {
        "data": images.name,
        "extractor": evaluator.name,
        "n": template.samples,
        "real": len(images.train),
        "equal": equal,
    }
    (out / "results.json").write_text(json.dumps({"spec": spec, "runs": plain_results}, indent=1))
    real = evaluator.evaluate(images.test)
    print("\n" + format_table(plain_results, variants, real, evaluator.name, template.samples))
    print(f"\nrows of samples.png: real, {', '.join(variants)}\n  {out / 'samples.png'}\n  {out / 'results.json'}")
    print(f"  tensorboard --logdir {out}")
    return plain_results


def format_table(
    results: list[dict[str, Any]], variants: tuple[str, ...], real: dict[str, float], extractor: str, samples: int
) -> str:
    """The results as a Markdown table: mean and deviation over seeds, and each seed's value."""
    has_score = "is" in real
    head = f"| variant | steps | FD_{extractor} (n={samples}) | per seed |" + (" IS |" if has_score else "")
    lines = [head + " CPU ms/step | cost |", "|---" * (head.count("|") + 1) + "|"]
    base = [r["ms"] for r in results if r["variant"] == "plain"]
    for variant in variants:
        rows = [r for r in results if r["variant"] == variant]
        milliseconds = sum(r["ms"] for r in rows) / len(rows)
        cost = f"x{milliseconds / (sum(base) / len(base)):.2f}" if base else ""
        score = f" {_mean_std([r['is'] for r in rows])} |" if has_score else ""
        distances = [r["fd"] for r in rows]
        each = " ".join(f"{distance:.1f}" for distance in distances)
        cells = f"| {variant} | {rows[0]['steps']} | {_mean_std(distances)} | {each} |{score}"
        lines.append(f"{cells} {milliseconds:.1f} | {cost} |")
    score = f" {real['is']:.2f} |" if has_score else ""
    lines.append(f"| held-out real images | | {real['fd']:.1f} | |{score} | |")
    return "\n".join(lines)


def _mean_std(values: list[float]) -> str:
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.2f}"
    return f"{mean:.2f} ± {(sum((v - mean) ** 2 for v in values) / (len(values) - 1)) ** 0.5:.2f}"


def _check_demo(variants: tuple[str, ...], seeds: tuple[int, ...], steps: int, equal: str, jobs: int) -> None:
    unknown = sorted(set(variants) - set(VARIANTS))
    if unknown or not variants:
        raise ValueError(f"variants must be some of {VARIANTS}, got {variants}")
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds must be different numbers, got {seeds}")
    if steps < 20:
        raise ValueError(f"steps must be at least 20, got {steps}")
    if equal not in ("steps", "time"):
        raise ValueError(f'equal must be "steps" or "time", got {equal!r}')
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")


def _describe(images: Images, evaluator: Evaluator) -> None:
    shape = "x".join(str(length) for length in images.train.shape[1:])
    print(f"{images.name}: {len(images.train)} images to train on, {len(images.test)} held out, {shape}")
    if evaluator.accuracy is None:
        print(f"features: {evaluator.name}, seeded and untrained (the images have no classes)")
    else:
        print(
            f"features: {evaluator.name}, of a classifier trained just now, accuracy {evaluator.accuracy:.3f} held out"
        )


def _equal_time_steps(template: Job, variants: tuple[str, ...], evaluator: Evaluator) -> dict[str, int]:
    """Steps that take the time of `template.steps` plain ones, from a short run of each with its penalty acting."""
    milliseconds = {}
    for variant in dict.fromkeys(("plain", *variants)):
        with tempfile.TemporaryDirectory() as folder:
            short = replace(template, variant=variant, steps=80, folder=Path(folder), samples=200)
            milliseconds[variant] = _train_quietly(short, evaluator, None)["ms"]
        print(f"{variant}: {milliseconds[variant]:.1f} CPU ms a step", flush=True)
    return {v: round(template.steps * milliseconds["plain"] / milliseconds[v]) for v in variants}


def _run_side_by_side(todo: list[Job], evaluator: Evaluator, jobs: int) -> list[dict[str, Any]]:
    from tqdm import tqdm

    context = multiprocessing.get_context("spawn")
    total = sum(job.steps for job in todo)
    with (
        context.Manager() as manager,
        tqdm(total=total, desc="training", unit="step") as bar,
        ProcessPoolExecutor(jobs, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        progress = manager.Queue()
        futures = [pool.submit(_train_quietly, job, evaluator, progress) for job in todo]
        while not all(future.done() for future in futures):
            time.sleep(0.2)
            while not progress.empty():
                bar.update(progress.get())
            for future in futures:
                if future.done() and future.exception() is not None:
                    pool.shutdown(cancel_futures=True)
                    future.result()
        bar.update(total - bar.n)
        return [future.result() for future in futures]

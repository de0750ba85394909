"""One run of the demo: the training loop with its hooks."""

from __future__ import annotations

import copy
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qa_hooks.callbacks import Callback, GenerativeMonitor, Hooks, NaNGuard, SampleGrid, ScoreMonitor
from qa_hooks.demo.evaluation import Evaluator
from qa_hooks.demo.networks import LATENT, make_critic, make_generator, update_ema
from qa_hooks.penalties import QAGANPenalty
from qa_hooks.scorers import FunctionScorer
from qa_hooks.sources.samples import Sample

VARIANTS = ("plain", "ssim", "niqe")


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
    images: Tensor = field(default_factory=lambda: torch.zeros(0, device="cpu", dtype=torch.float32), repr=False)


def make_penalty(variant: str, *, gp_weight: float, warmup: int) -> QAGANPenalty:
    """The penalty of a variant: WGAN-GP with drift, alone or with one of QAGAN's quality terms."""
    quality = {"plain": "none", "ssim": "ssim", "niqe": "niqe"}[variant]
    return QAGANPenalty(quality, value_range=(-1, 1), gp_weight=gp_weight, warmup=warmup, hinge=False)  # as published


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
        images: Tensor = ema(torch.randn(n, LATENT, generator=rng, device="cpu", dtype=torch.float32))
        return images

    durations = []
    callbacks, track = _callbacks(job, evaluator, sample), {"penalty": penalty}
    with Hooks(callbacks, log_dir=job.folder, track=track, log_every=20).attach(optimizer_g) as hooks:
        for step in range(job.steps):
            start = time.process_time()
            for _ in range(job.n_critic):
                real = job.images[torch.randint(len(job.images), (job.batch,), device="cpu")]
                with torch.no_grad():
                    fake = generator(torch.randn(job.batch, LATENT, device="cpu", dtype=torch.float32))
                real_scores, fake_scores = critic(real), critic(fake)
                wasserstein = real_scores.mean() - fake_scores.mean()
                d_loss = -wasserstein + penalty(critic, real, fake, real_scores=real_scores, fake_scores=fake_scores)
                optimizer_d.zero_grad()
                d_loss.backward()
                optimizer_d.step()
            g_loss = -critic(generator(torch.randn(job.batch, LATENT, device="cpu", dtype=torch.float32))).mean()
            optimizer_g.zero_grad()
            g_loss.backward()
            hooks.record(wasserstein=wasserstein, g_loss=g_loss)
            before_step = time.process_time()
            optimizer_g.step()  # the monitors run in here, and are not counted
            after_step = time.process_time()
            for schedule in schedules:
                schedule.step()
            update_ema(ema, generator, 0.98)
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


def _callbacks(job: Job, evaluator: Evaluator, sample: Sample) -> list[Callback]:
    """What a demo run shows: samples, distances to the real images, a classifier's confidence where there is one."""
    every = max(1, job.steps // 8)
    callbacks: list[Callback] = [
        SampleGrid(sample, every=every, value_range=(-1, 1), scale=3),
        GenerativeMonitor(
            sample,
            job.images,
            extractor=evaluator.extractor,
            metrics=("fd", "kid") if evaluator.head is None else ("fd", "kid", "is"),
            classifier=lambda images: evaluator.logits(images * 2 - 1),
            n=min(1000, job.samples),
            every=every,
            value_range=(-1, 1),
        ),
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
    return callbacks


def _decay(steps: int) -> Any:
    """Constant, then linear to 10 % over the second half."""
    return lambda step: min(1.0, max(0.1, 1.9 - 1.8 * step / steps))

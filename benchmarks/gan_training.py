"""QAGAN for as long as the time allows: plain, SSIM and NIQE with the hinge, side by side at equal steps.

In `train` the runs take turns, one generator step each, so that whenever it is stopped all of them have trained equally
long.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import device
from qa_hooks.demo import LATENT, make_critic, make_generator, update_ema
from qa_hooks.evaluation.measure import measure
from qa_hooks.evaluation.reference import make_reference
from qa_hooks.features import create_extractor, extract_features
from qa_hooks.images import to_uint8
from qa_hooks.penalties import QAGANPenalty

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"quality": "none"},
    "SSIM": {"quality": "ssim"},
    "NIQE, hinge": {"quality": "niqe"},
}


def now() -> float:
    """Seconds, when the device has done what it was asked for."""
    if device().type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


class Run:
    """A WGAN-GP run with one of the penalties; `step` is one generator step, with two of the critic before it."""

    def __init__(self, variant: str, seed: int, real: Tensor, *, batch: int, warmup: int) -> None:
        self.variant, self.seed, self.real, self.batch = variant, seed, real, batch
        torch.manual_seed(seed)
        side, channels = real.shape[-1], real.shape[1]
        self.generator, self.critic = make_generator(side, channels), make_critic(side, channels)
        self.generator.to(device()), self.critic.to(device())
        self.ema = copy.deepcopy(self.generator).eval()
        options = dict(VARIANTS[variant])
        if options["quality"] == "niqe":
            options["warmup"] = warmup
        self.penalty = QAGANPenalty(value_range=(-1, 1), gp_weight=10.0, seed=seed, **options)
        self.optimizers = [
            torch.optim.Adam(net.parameters(), lr=1e-3, betas=(0.0, 0.9)) for net in (self.generator, self.critic)
        ]
        self.rng = torch.Generator(device()).manual_seed(seed)
        self.seconds = 0.0

    def noise(self, count: int) -> Tensor:
        return torch.randn(count, LATENT, generator=self.rng, device=device())

    def step(self) -> None:
        start = now()
        for _ in range(2):
            rows = torch.randint(len(self.real), (self.batch,), generator=self.rng, device=device())
            real = self.real[rows].float() / 127.5 - 1
            with torch.no_grad():
                fake = self.generator(self.noise(self.batch))
            real_scores, fake_scores = self.critic(real), self.critic(fake)
            term = self.penalty(self.critic, real, fake, real_scores=real_scores, fake_scores=fake_scores)
            self._update(1, fake_scores.mean() - real_scores.mean() + term)
        self._update(0, -self.critic(self.generator(self.noise(self.batch))).mean())
        update_ema(self.ema, self.generator, 0.995)
        self.seconds += now() - start

    def _update(self, which: int, loss: Tensor) -> None:
        self.optimizers[which].zero_grad()
        loss.backward()
        self.optimizers[which].step()

    def state(self) -> dict[str, Any]:
        """Everything that `load_state` needs to go on to the bit."""
        return {
            "networks": [net.state_dict() for net in (self.generator, self.critic, self.ema)],
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "penalty": self.penalty.run_state(),
            "rng": self.rng.get_state(),
            "seconds": self.seconds,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on where `state()` was taken."""
        for net, values in zip((self.generator, self.critic, self.ema), state["networks"], strict=True):
            net.load_state_dict(values)
        for optimizer, values in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        self.penalty.load_run_state(state["penalty"])
        self.rng.set_state(state["rng"])
        self.seconds = state["seconds"]

    @torch.no_grad()
    def images(self, count: int) -> Tensor:
        """uint8, the same noise each time."""
        rng = torch.Generator().manual_seed(1)
        noise = torch.randn(count, LATENT, generator=rng).to(device())
        return torch.cat([to_uint8(self.ema(part) / 2 + 0.5).cpu() for part in noise.split(256)])


def train(
    real: Tensor, seeds: list[int], *, until: Callable[[], bool], every: int, n: int, extractor: str, batch: int
) -> Iterator[dict[str, Any]]:
    """Train until `until()`, and yield a table's rows after every `every` steps and at the end.

    Args:
        real: uint8 `(N, C, S, S)`.
        every: steps between two evaluations.
        n: generated images in each of them.
        extractor: the name of the features in which distances are measured.
    """
    features = create_extractor(extractor).to(device())
    reference = make_reference(features, real[:n].cpu())
    held = real.to(device())
    runs = [
        Run(variant, seed, held, batch=batch, warmup=max(every, -(-500 // batch)))
        for seed in seeds
        for variant in VARIANTS
    ]
    step, done = 0, False
    while not done:
        for _ in range(every):
            for run in runs:
                run.step()
            step += 1
            if until():
                done = True
                break
        rows = []
        for run in runs:
            found = extract_features(features, run.images(n), progress=False)
            values = measure(found.values, reference, ["fd", "kid", "pr"], extractor=features, groups=4)
            rows.append(
                {"variant": run.variant, "seed": run.seed, "ms": 1e3 * run.seconds / step}
                | {name: [value.value, value.low, value.high] for name, value in values.items()}
            )
        yield {"steps": step, "n": n, "extractor": features.name, "rows": rows}

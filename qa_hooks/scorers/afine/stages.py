"""The three stages in which the heads of an A-FINE learn, and how well they do on contents that they have not seen.

    1  N alone                  all pairs, on raw N
    2  F alone                  pairs of images that do not beat their reference, on the calibrated F
    3  k and the calibrations   all pairs, on D

The loss of a pair of images a and b, of which people prefer a with probability p, is the fidelity loss

    1 - sqrt(p q) - sqrt((1 - p)(1 - q)),   q = Phi((d(b) - d(a)) / sqrt 2)        d: lower is better

It is computed from log Phi. Where Phi itself is 0 or 1 in float32, a pair in the wrong order would teach nothing. Three
things are not as in the published trainer. Raw F lies in [0, 1], where q cannot pass 0.76 and the loss cannot fall
under 0.128: stage 2 compares the calibrated F, and learns its calibration with it. After stage 1 the last layer of N is
changed so that its outputs have the mean 0 and the deviation 1, from where its calibration can be learned. The backbone
stays as it is, so that its statistics are taken only once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from qa_hooks._base.checks import warn
from qa_hooks.functional.clusters import share_interval
from qa_hooks.scorers.afine.comparisons import Comparisons
from qa_hooks.scorers.afine.heads import FidelityHead, Heads, Level
from qa_hooks.scorers.afine.looking import Statistics, moments
from qa_hooks.scorers.training import minimise

CYCLES = (1.0, 0.5, 0.5, 0.5)  # peaks of the learning rate in the four cosine cycles
FLOOR = 1e-8
DECAY = 1e-3
K0 = 5.0  # of lambda, before it is learned, as published
RATES = (1e-3, 5e-3, 0.1)  # peaks of the three stages, for inputs that are standardised


class MomentsHead(nn.Module):
    """N of levels of any widths: means and deviations of all channels, standardised, through one hidden layer."""

    shift: Tensor
    scale: Tensor

    def __init__(self, widths: Sequence[int], *, hidden: int = 64) -> None:
        super().__init__()
        first = nn.Linear(2 * sum(widths), hidden)
        self.body = nn.Sequential(first, nn.GELU(), nn.Linear(hidden, 1))
        self.register_buffer("shift", first.weight.new_zeros(2 * sum(widths)))
        self.register_buffer("scale", first.weight.new_ones(2 * sum(widths)))

    def forward(self, levels: Sequence[Level]) -> Tensor:
        return self.from_moments(moments(list(levels)))

    def from_moments(self, rows: Tensor) -> Tensor:
        """From `moments(levels)`."""
        means, variances = rows.chunk(2, 1)
        features = (torch.cat([means, (variances + 1e-6).sqrt()], 1) - self.shift) / self.scale
        found: Tensor = self.body(features).squeeze(1)
        return found

    def standardise(self, rows: Tensor) -> None:
        """Take mean and deviation from the training's rows."""
        means, variances = rows.chunk(2, 1)
        features = torch.cat([means, (variances + 1e-6).sqrt()], 1)
        self.shift.copy_(features.mean(0))
        self.scale.copy_(features.std(0).clamp_min(1e-4))

    def normalise(self, raw: Tensor) -> None:
        """Change the last layer so that these outputs `(n,)` get the mean 0 and the deviation 1."""
        last: Any = self.body[2]
        width = raw.std().clamp_min(1e-6)
        last.bias.copy_((last.bias - raw.mean()) / width)
        last.weight.copy_(last.weight / width)


def family_heads(widths: Sequence[int]) -> Heads:
    """The heads of an A-FINE that is trained here."""
    return Heads(MomentsHead(widths), FidelityHead(widths))


def fidelity_loss(a: Tensor, b: Tensor, better: Tensor) -> Tensor:
    """The loss above of distances `(n,)`, lower is better; `better` is 1 where a is, 0 where b is, 0.5 for a tie.

    Example:
        >>> fidelity_loss(torch.tensor([-9.0, 9.0]), torch.zeros(2), torch.ones(2)).round()
        tensor([0., 1.])
    """
    gap = (b - a) / math.sqrt(2)
    first, second = torch.special.log_ndtr(gap), torch.special.log_ndtr(-gap)
    loss: Tensor = 1 - better.sqrt() * (first / 2).exp() - (1 - better).sqrt() * (second / 2).exp()
    return loss


class Distances(NamedTuple):
    """D and its parts of every item `(n,)`."""

    natural: Tensor
    fidelity: Tensor
    distance: Tensor


def distances(heads: Heads, seen: Statistics, items: Comparisons) -> Distances:
    """D of every item, from its statistics."""
    natural = heads.natural_scale(heads.natural.from_moments(seen.moments))  # type: ignore[operator]
    fidelity = heads.fidelity_scale(heads.fidelity.from_similarities(seen.similar))
    weight = heads.adapter.log_lambda(natural[_references(items)], natural).exp()
    return Distances(natural, fidelity, fidelity + weight * natural)


def _references(items: Comparisons) -> Tensor:
    """For each item an item in which its reference is the picture; every reference must be one."""
    place = torch.full((len(items.pictures),), -1, dtype=torch.int64, device="cpu")
    place[items.test] = torch.arange(len(items.test), device="cpu")
    found = place[items.reference]
    if bool((found < 0).any()):
        raise ValueError("every reference must also be an item beside itself")
    return found


def train_heads(
    heads: Heads, seen: Statistics, items: Comparisons, *, steps: int, batch_size: int, seed: int, progress: bool
) -> None:
    """Train in place, in three stages of so many steps, to be called in a `training_room`."""
    generator = torch.Generator().manual_seed(seed)
    natural: Any = heads.natural
    natural.standardise(seen.moments[items.pairs.unique()])
    references = _references(items)

    def stage(what: str, pairs: Comparisons, distance: Callable[[Tensor], Tensor], parts: Any, lr: float) -> None:
        own = list(parts)
        groups = [  # k and the calibrations have no reason to go to 0
            {"params": [p for p in own if p.ndim], "weight_decay": DECAY},
            {"params": [p for p in own if not p.ndim], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=lr, betas=(0.9, 0.99))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(_cosine(step, steps), FLOOR))

        def batch_loss(step: int) -> Tensor:
            chosen = torch.randint(len(pairs.pairs), (batch_size,), generator=generator, device="cpu")
            values = distance(pairs.pairs[chosen].flatten()).unflatten(0, (-1, 2))
            return fidelity_loss(values[:, 0], values[:, 1], pairs.better[chosen]).mean()

        network: Any = nn.ParameterList(own)
        minimise(batch_loss, network, optimizer, schedule, steps=steps, what=what, progress=progress)

    def raw_natural(rows: Tensor) -> Tensor:
        found: Tensor = natural.from_moments(seen.moments[rows])
        return found

    def calibrated_fidelity(rows: Tensor) -> Tensor:
        found: Tensor = heads.fidelity_scale(heads.fidelity.from_similarities(seen.similar[rows]))
        return found

    def joined(rows: Tensor) -> Tensor:
        own, other = (heads.natural_scale(raw_natural(r)) for r in (rows, references[rows]))
        weight = heads.adapter.log_lambda(other, own).clamp(max=10).exp()
        found: Tensor = calibrated_fidelity(rows) + weight * own
        return found

    stage("naturalness", items, raw_natural, heads.natural.parameters(), RATES[0])
    with torch.no_grad():
        natural.normalise(raw_natural(items.pairs.unique()))
        heads.natural_scale.yita3.fill_(0.0)
        heads.natural_scale.yita4.fill_(1.0)
        heads.adapter.k.fill_(K0)
    beats, itself = items.beats_reference, items.test == items.reference
    plain = ~(beats | itself)[items.pairs].any(1)
    if bool(plain.any()):
        own = [*heads.fidelity.parameters(), *heads.fidelity_scale.parameters()]
        stage("fidelity", items.with_pairs(plain), calibrated_fidelity, own, RATES[1])
    else:
        warn("no two images that are worse than their reference are compared, so the fidelity part stays untrained")
    parts = (heads.adapter, heads.natural_scale, heads.fidelity_scale)
    stage("adapter", items, joined, [p for part in parts for p in part.parameters()], RATES[2])


def _cosine(step: int, steps: int) -> float:
    """Four cosine cycles."""
    length = max(1, math.ceil(steps / len(CYCLES)))
    cycle = min(step // length, len(CYCLES) - 1)
    return CYCLES[cycle] * (1 + math.cos(math.pi * (step - cycle * length) / length)) / 2


@torch.no_grad()
def held_out_agreement(found: Distances, items: Comparisons) -> dict[str, float]:
    """Accuracy of D on pairs that were not trained on, with an interval over contents; ties are counted apart."""
    decided = items.with_pairs(items.better != 0.5) if bool((items.better != 0.5).any()) else None
    if decided is None:
        return {"accuracy": float("nan"), "low": float("nan"), "high": float("nan"), "pairs": 0.0}
    gap = found.distance[decided.pairs[:, 1]] - found.distance[decided.pairs[:, 0]]
    right = (0.5 + 0.5 * gap.sign() * (2 * decided.better - 1).sign()).double()
    interval = share_interval(right, decided.pair_content)
    return {
        "accuracy": interval.value,
        "low": interval.low,
        "high": interval.high,
        "pairs": float(len(right)),
        "contents": float(len(set(decided.pair_content))),
        "ties": float(len(items.pairs) - len(right)),
    }

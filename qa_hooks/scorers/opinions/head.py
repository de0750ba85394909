"""A small head on features, fitted to opinions of few images without believing them too much.

    z = tanh((f - centre) / (2 deviation)),   outputs = [z, 2 (z^2 - mean of z^2)] @ weights.T + bias

Each feature is bounded, so that an image unlike all that people judged cannot score without end, and may be best in the
middle: a sharp image has neither few edges nor noise for edges. The weights are penalised by their squares. How
strongly decides by itself: whole contents are left out in turn, and the strength wins whose heads say best what people
said of the contents left out. The same outputs, made without seeing what they are about, set the gain: a head that
promises too much is turned down, one that is too timid up.

There is no seed in the optimum: the head is the same on every machine, but for the contents that are left out together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from qa_hooks._base.random import permutation
from qa_hooks.scorers.opinions.targets import RatingTargets, Targets

PENALTIES = tuple(10.0 ** (-step / 2) for step in range(2, 15))  # the strongest first
FOLDS = 5
ITERATIONS = 100


class Head(NamedTuple):
    """`centre`, `rate` and `level` are `(dim,)`, `weights` `(outputs, 2 dim)`, `bias` `(outputs,)`."""

    centre: Tensor
    rate: Tensor
    level: Tensor
    weights: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """`(n, dim)` -> `(n, outputs)`."""
        return self.bounded(features) @ self.weights.T + self.bias

    def bounded(self, features: Tensor) -> Tensor:
        """`(n, dim)` -> `(n, 2 dim)`, of which the weights take their sum."""
        z = ((features - self.centre) * self.rate).tanh()
        return torch.cat([z, 2 * (z.square() - self.level)], 1)


def fit_head(features: Tensor, targets: Targets, contents: Sequence[int], *, seed: int = 0) -> tuple[Head, float]:
    """Fit a head, its penalty chosen and its gain set on contents left out.

    Args:
        features: `(n, dim)`.
        targets: what people said of these rows.
        contents: of each row; rows of one content are never divided.
        seed: of the division of the contents.

    Returns:
        The head in float64, and the penalty.
    """
    features, places = features.double(), torch.tensor(list(contents), dtype=torch.int64, device="cpu")
    folds = _folds(places, seed)
    outputs = _left_out(features, targets, folds)
    judged = {penalty: _mean_loss(targets, folds, said) for penalty, said in outputs.items()}
    known = {penalty: loss for penalty, loss in judged.items() if loss is not None}
    if not known:  # one content, or no pair within those left out together
        penalty = PENALTIES[len(PENALTIES) // 2]
        return _fitted(features, targets, [penalty])[penalty], penalty
    penalty = min(known, key=lambda each: (known[each], -each))
    head = _fitted(features, targets, [penalty])[penalty]
    gain, shift = _gain(targets, folds, outputs[penalty])
    return head._replace(weights=head.weights * gain[:, None], bias=head.bias * gain + shift), penalty


def _folds(places: Tensor, seed: int) -> list[Tensor]:
    """Masks `(n,)` of the rows left out in turn; none where there is one content only."""
    names = places.unique()
    order = names[permutation(len(names), seed)]
    return [torch.isin(places, part) for part in order.tensor_split(min(FOLDS, len(names)))] if len(names) > 1 else []


def _left_out(features: Tensor, targets: Targets, folds: Sequence[Tensor]) -> dict[float, Tensor]:
    """`(n, outputs)` by penalty: what heads say of rows that they were not fitted on."""
    said = {penalty: targets.start().expand(len(features), -1).clone() for penalty in PENALTIES}
    for fold in folds:
        kept = targets.within(~fold)
        if len(kept) > 1:
            for penalty, head in _fitted(features[~fold], kept, PENALTIES).items():
                said[penalty][fold] = head(features[fold])
    return said


def _mean_loss(targets: Targets, folds: Sequence[Tensor], outputs: Tensor) -> float | None:
    """Over all that lies within a fold; None where nothing does."""
    losses = [targets.within(fold).losses(outputs[fold]) for fold in folds]
    return float(torch.cat(losses).mean()) if sum(map(len, losses)) else None


def _fitted(features: Tensor, targets: Targets, penalties: Sequence[float]) -> dict[float, Head]:
    """For each penalty the head with the least `mean loss + penalty * sum of squared weights`, in the outputs' units.

    With fewer rows than weights the work is done in as many dimensions as there are rows: the optimum lies there.
    """
    deviation = features.std(0, correction=0)
    varies = deviation > 1e-9 * (1 + features.abs().mean(0))
    rate = torch.where(varies, 1 / (2 * deviation.clamp_min(1e-300)), 0.0)  # what does not vary says nothing
    blank = features.new_zeros(0)
    head = Head(features.mean(0), rate, features.new_zeros(features.shape[1]), blank, blank)
    head = head._replace(level=head.bounded(features)[:, features.shape[1] :].mean(0) / 2)
    rows = head.bounded(features)
    scale = rows.shape[1] ** 0.5
    basis = torch.linalg.svd(rows, full_matrices=False).Vh if len(rows) < rows.shape[1] else None
    inner = (rows if basis is None else rows @ basis.T) / scale
    units, start = targets.units(), targets.start()
    found = {}

    def keep(penalty: float, weights: Tensor, bias: Tensor) -> None:
        own = weights.detach() / scale * units[:, None]
        own = own.clone() if basis is None else own @ basis
        found[penalty] = head._replace(weights=own, bias=start + units * bias.detach())

    if isinstance(targets, RatingTargets) and targets.spread is None:
        for penalty, solved in _least_squares(inner, (targets.rating - start) / units, penalties).items():
            keep(penalty, *solved)
        return found
    weights = inner.new_zeros(targets.outputs, inner.shape[1]).requires_grad_()
    bias = inner.new_zeros(targets.outputs).requires_grad_()
    for penalty in penalties:  # each begins where the one before has ended

        def loss(penalty: float = penalty) -> Tensor:
            outputs = start + units * (inner @ weights.T + bias)
            value: Tensor = targets.losses(outputs).mean() + penalty * weights.square().sum()
            return value

        _minimise(loss, [weights, bias])
        keep(penalty, weights, bias)
    return found


def _least_squares(rows: Tensor, wanted: Tensor, penalties: Sequence[float]) -> dict[float, tuple[Tensor, Tensor]]:
    """Weights `(1, dim)` and bias `(1,)` with the least `mean squared error + penalty * sum of squared weights`."""
    middle, level = rows.mean(0), wanted.mean()
    u, s, vh = torch.linalg.svd(rows - middle, full_matrices=False)
    along = u.T @ (wanted - level) / len(rows)
    solved = {}
    for penalty in penalties:
        weights = (along * s / (s.square() / len(rows) + penalty)) @ vh
        solved[penalty] = weights[None], (level - middle @ weights)[None]
    return solved


def _minimise(loss: Callable[[], Tensor], parameters: list[Tensor]) -> None:
    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=ITERATIONS,
        history_size=20,
        tolerance_grad=1e-8,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value.detach()

    optimizer.step(closure)


def _gain(targets: Targets, folds: Sequence[Tensor], outputs: Tensor) -> tuple[Tensor, Tensor]:
    """`(outputs,)` factors and shifts with which people's opinions of contents left out would have surprised least."""
    factor = outputs.new_ones(1).requires_grad_()
    shift = outputs.new_zeros(targets.outputs).requires_grad_()
    rest = outputs.new_ones(targets.outputs - 1)
    parts = [(targets.within(fold), outputs[fold]) for fold in folds]

    def loss() -> Tensor:
        gain = torch.cat([factor, rest])
        return torch.cat([part.surprises(said * gain + shift) for part, said in parts]).mean()

    _minimise(loss, [factor, shift])
    factor, shift = factor.detach(), shift.detach()
    if not float(factor) > 0 or not bool(shift.isfinite().all()):  # what was left out taught nothing
        return outputs.new_ones(targets.outputs), torch.zeros_like(shift)
    return torch.cat([factor, rest]), shift

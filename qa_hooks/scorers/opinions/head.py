"""A linear head on features, fitted to opinions of few images without believing them too much.

Each feature is centred and divided by its deviation; the head is linear, with a penalty on the square of its weights.
How strong the penalty is decides by itself: whole contents are left out in turn, and the strength wins whose heads say
best what people said of the contents left out. The same outputs, made without seeing what they are about, set the gain:
a head that promises too much is turned down, one that is too timid up.

A linear head because it is what little data can carry: one optimum, no seed, the same on every machine. With more rows
than features nothing changes; with fewer the work is done in as many dimensions as there are rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from qa_hooks.scorers.opinions.targets import Targets

PENALTIES = tuple(10.0**power for power in (-1, -1.5, -2, -2.5, -3, -3.5, -4, -4.5, -5))  # the strongest first
FOLDS = 5
ITERATIONS = 200


class Head(NamedTuple):
    """`outputs = (features - centre) / width @ weights.T + bias`, float64.

    `centre` and `width` are `(dim,)`, `weights` `(outputs, dim)`, `bias` `(outputs,)`.
    """

    centre: Tensor
    width: Tensor
    weights: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """`(n, dim)` -> `(n, outputs)`."""
        return (features - self.centre) / self.width @ self.weights.T + self.bias


def fit_head(features: Tensor, targets: Targets, contents: Sequence[int], *, seed: int = 0) -> tuple[Head, float]:
    """Fit a head, its penalty chosen and its gain set on contents left out.

    Args:
        features: `(n, dim)`.
        targets: what people said of these rows.
        contents: of each row; rows of one content are never divided.
        seed: of the division of the contents.

    Returns:
        The head, and the penalty.
    """
    features, places = features.double(), torch.tensor(list(contents), dtype=torch.int64, device="cpu")
    folds = _folds(places, seed)
    trials = [(penalty, _left_out(features, targets, folds, penalty)) for penalty in PENALTIES] if folds else []
    judged = [(_mean_loss(targets, folds, outputs), penalty, outputs) for penalty, outputs in trials]
    if not judged or judged[0][0] is None:
        return _fitted(features, targets, PENALTIES[len(PENALTIES) // 2]), PENALTIES[len(PENALTIES) // 2]
    _, penalty, outputs = min(judged, key=lambda trial: (trial[0], -trial[1]))
    head = _fitted(features, targets, penalty)
    gain, shift = _gain(targets, folds, outputs)
    return head._replace(weights=head.weights * gain[:, None], bias=head.bias * gain + shift), penalty


def _folds(places: Tensor, seed: int) -> list[Tensor]:
    """Masks `(n,)` of the rows left out in turn; none where there is one content only."""
    names = places.unique()
    order = names[torch.randperm(len(names), generator=torch.Generator().manual_seed(seed), device="cpu")]
    parts = order.tensor_split(min(FOLDS, len(names)))
    return [torch.isin(places, part) for part in parts] if len(names) > 1 else []


def _left_out(features: Tensor, targets: Targets, folds: Sequence[Tensor], penalty: float) -> Tensor:
    """`(n, outputs)`: what heads say of rows that they were not fitted on."""
    outputs = targets.start().expand(len(features), -1).clone()
    for fold in folds:
        if len(targets.within(~fold)) > 1:
            outputs[fold] = _fitted(features[~fold], targets.within(~fold), penalty)(features[fold])
    return outputs


def _mean_loss(targets: Targets, folds: Sequence[Tensor], outputs: Tensor) -> float | None:
    """Over all that lies within a fold; None where nothing does."""
    losses = torch.cat([targets.within(fold).losses(outputs[fold]) for fold in folds])
    return float(losses.mean()) if len(losses) else None


def _fitted(features: Tensor, targets: Targets, penalty: float) -> Head:
    """The head with the least `mean loss + penalty * sum of squared weights`, in units of outputs and features."""
    centre = features.mean(0)
    width = features.std(0, correction=0)
    width = torch.where(width > 1e-9 * (1 + centre.abs()), width, torch.inf)  # what does not vary says nothing
    rows = (features - centre) / width
    count, dim = rows.shape
    basis = torch.linalg.svd(rows, full_matrices=False).Vh if count < dim else None
    inner = rows if basis is None else rows @ basis.T
    inner = inner / dim**0.5
    units, start = targets.units(), targets.start()
    weights = inner.new_zeros(targets.outputs, inner.shape[1]).requires_grad_()
    bias = inner.new_zeros(targets.outputs).requires_grad_()

    def loss() -> Tensor:
        outputs = start + units * (inner @ weights.T + bias)
        value: Tensor = targets.losses(outputs).mean() + penalty * weights.square().sum()
        return value

    _minimise(loss, [weights, bias])
    found = weights.detach() / dim**0.5 * units[:, None]
    return Head(centre, width, found if basis is None else found @ basis, start + units * bias.detach())


def _minimise(loss: Callable[[], Tensor], parameters: list[Tensor]) -> None:
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=ITERATIONS, history_size=20, tolerance_grad=1e-8, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)


def _gain(targets: Targets, folds: Sequence[Tensor], outputs: Tensor) -> tuple[Tensor, Tensor]:
    """`(outputs,)` factors and shifts with which outputs on contents left out would have been nearest to people's."""
    factor = outputs.new_ones(1).requires_grad_()
    shift = outputs.new_zeros(targets.outputs).requires_grad_()
    rest = outputs.new_ones(targets.outputs - 1)
    parts = [(targets.within(fold), outputs[fold]) for fold in folds]

    def loss() -> Tensor:
        gain = torch.cat([factor, rest])
        return torch.cat([part.losses(said * gain + shift) for part, said in parts]).mean()

    _minimise(loss, [factor, shift])
    if not float(factor) > 0 or not bool(shift.isfinite().all()):
        return torch.cat([outputs.new_ones(1), rest]), outputs.new_zeros(targets.outputs)
    return torch.cat([factor.detach(), rest]), shift.detach()

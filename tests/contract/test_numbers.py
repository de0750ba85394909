"""What the table's callables do with images that break metrics, with half precision and with NaN."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import Tensor

from contract.all_rows import ROWS
from contract.layouts import numbers, value_and_gradient
from contract.row import Row

pytestmark = pytest.mark.filterwarnings("ignore")
KINDS = ["constant", "identical", "identical constant", "saturated", "black", "faint", "random"]
OF_IMAGES = [
    name for name, row in ROWS.items() if row.images and row.gradient and not name.startswith(("piq", "torchm"))
]
# Inputs that are not looked at, or whose NaN is told otherwise: the positions.
IGNORED = {
    "functional.gradient_penalty R1": (1,),  # the fake images
    "losses.ScoreLoss balanced": (1,),  # a fidelity term that is not finite is passed over
    "weighting.Weighter": (0,),  # images whose scores are given
    "weighting.OHEM of scores": (0,),
    "weighting.TopK": (0,),
    "weighting.ohem_weights": (0,),  # weight 1 for a NaN, as documented
    "piq:dss": (0, 1),  # the library's own: only the first calls, which look at the images, refuse
}
CRITICS = ("penalties.", "functional.gradient_penalty")  # these call a critic


def of_kind(kind: str, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Images of one of the kinds that break image metrics, in the shapes of these."""
    first, *others = (torch.rand(x.shape, generator=torch.Generator().manual_seed(k)) for k, x in enumerate(inputs))
    if kind == "constant":
        return torch.full_like(first, 0.3), *(torch.full_like(x, 0.7) for x in others)
    if kind == "identical":
        return first, *(first.clone() for _ in others)
    if kind == "identical constant":
        return torch.full_like(first, 0.5), *(torch.full_like(x, 0.5) for x in others)
    if kind == "saturated":
        return (first > 0.5).float(), *(torch.ones_like(x) for x in others)
    if kind == "black":
        return torch.zeros_like(first), *(torch.zeros_like(x) for x in others)
    if kind == "faint":
        return 0.5 + 1e-4 * first, *(0.5 + 1e-4 * x for x in others)
    return first, *others


def with_images(row: Row, n: int, change) -> tuple[Tensor, ...]:
    inputs = row.inputs(n)
    return (*change(inputs[: row.images]), *inputs[row.images :])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OF_IMAGES)
def test_finite_in_value_and_gradient(name, kind):
    row = ROWS[name]
    inputs = with_images(row, 2, lambda images: of_kind(kind, images))
    for part in value_and_gradient(row, inputs, Tensor.contiguous):
        assert torch.isfinite(part).all()


@pytest.mark.parametrize("side", [1, 2, 5])
@pytest.mark.parametrize("name", [name for name in OF_IMAGES if not name.startswith(CRITICS)])
def test_tiny_images_are_measured_or_refused(name, side):
    row = ROWS[name]
    for kind in KINDS:
        inputs = with_images(row, 2, lambda images, kind=kind: of_kind(kind, [x[..., :side, :side] for x in images]))
        try:
            found = value_and_gradient(row, inputs, Tensor.contiguous)
        except ValueError as error:
            assert str(side) in str(error) or "small" in str(error) or "at least" in str(error)
            continue
        assert all(torch.isfinite(part).all() for part in found)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ROWS)
def test_half_precision_is_computed_in_float32(name, dtype):
    """The result for numbers in half precision is the result for the same numbers in float32. A critic has autocast."""
    row, n = ROWS[name], ROWS[name].batches[-1]
    inputs = row.inputs(n)
    critic = name.startswith(CRITICS)
    halves = [
        x.to(dtype) if x.is_floating_point() and not (critic and k >= row.images) else x for k, x in enumerate(inputs)
    ]
    exact = [x.to(before.dtype) for x, before in zip(halves, inputs, strict=True)]
    for place in row.gradient:
        halves[place].requires_grad_()
        exact[place] = exact[place].detach().requires_grad_()
    expected = numbers(row.call(*exact)).detach()
    with torch.autocast("cpu", dtype=dtype) if critic else contextlib.nullcontext():
        found = numbers(row.call(*halves))
    rtol = (0.3 if critic else 0.05) if dtype == torch.bfloat16 else 0.05 if critic else 0.01
    torch.testing.assert_close(found.double(), expected.double(), rtol=rtol, atol=rtol * float(expected.abs().max()))
    if found.requires_grad:
        found.sum().backward()
        for place in row.gradient:
            assert halves[place].grad is None or torch.isfinite(halves[place].grad).all()


@pytest.mark.parametrize("name", ROWS)
def test_nan_is_refused_or_stays_visible(name):
    """A NaN in any one input ends in an error or in a result that is not finite: never in an ordinary number."""
    row, n = ROWS[name], ROWS[name].batches[-1]
    for place in range(len(row.inputs(n))):
        inputs = [x.clone(memory_format=torch.contiguous_format) for x in row.inputs(n)]
        if not inputs[place].is_floating_point():
            continue
        inputs[place].view(-1)[inputs[place].numel() // 2] = torch.nan
        try:
            found = numbers(row.call(*inputs))
        except (ValueError, TypeError) as error:
            assert str(error)
            continue
        assert not torch.isfinite(found).all() or place in IGNORED.get(name, ()), f"input {place}"

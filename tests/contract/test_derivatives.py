"""A second derivative is right or refused, and so is a forward one, in every way in which torch lets one ask."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.functional import hessian, hvp, vhp

from contract.all_rows import ROWS
from contract.layouts import numbers

pytestmark = pytest.mark.filterwarnings("ignore")
OURS = [name for name, row in ROWS.items() if row.gradient and not name.startswith(("piq:", "torchmetrics:"))]
# Without curvature between their kinks, or with networks of that kind, computed in float32: differences tell nothing.
PIECEWISE = ("GMM", "KNN", "Snapshot", "MBC", "BC", "IR", "Rank", "Opinion", "HGGT", "SSIMPenalty", "Calibration")
PIECEWISE += ("AFINE", "FittedAFINE", "PerceptualDistance")  # rectified features
CURVED = [name for name in OURS if not name.split(".")[-1].startswith(PIECEWISE)]
TWICE = {  # these must not refuse a second backward pass
    *("functional.ssim second order", "functional.ms_ssim second order", "functional.ssim_distance"),
    *("functional.gradient_penalty", "penalties.GradientPenalty"),
}

Function = Callable[[Tensor], Tensor]


def as_function(name: str) -> tuple[Function, Tensor, Tensor]:
    """A number from the first input that has a gradient, in float64; that input, and a direction."""
    row = ROWS[name]
    inputs = [x.double() if x.is_floating_point() else x for x in row.inputs(row.batches[-1])]
    place = row.gradient[0]
    if place < row.images:
        inputs[place] = 0.9 * inputs[place] + 0.05  # no pixel at the end of the range
    weights = torch.linspace(0.5, 1.5, 400, dtype=torch.float64)

    def function(x: Tensor) -> Tensor:
        result = numbers(row.call(*inputs[:place], x, *inputs[place + 1 :]))
        return (result * weights.repeat(1 + len(result) // 400)[: len(result)].to(result)).sum()

    direction = torch.randn(inputs[place].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return function, inputs[place].detach(), direction


def gradient(function: Function, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(function(leaf), leaf)[0]


def through_backward(function: Function, x: Tensor, v: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    function(leaf).backward(create_graph=True)
    first, leaf.grad = leaf.grad, None
    (first * v).sum().backward()
    return torch.zeros_like(x) if leaf.grad is None else leaf.grad


def through_grad(function: Function, x: Tensor, v: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(function(leaf), leaf, create_graph=True)
    (second,) = torch.autograd.grad((first * v).sum(), leaf, allow_unused=True)
    return torch.zeros_like(x) if second is None else second


SECOND = {
    "backward": through_backward,
    "autograd.grad": through_grad,
    "hvp": lambda f, x, v: hvp(f, x, v)[1],
    "vhp": lambda f, x, v: vhp(f, x, v)[1],
    "func.jvp of func.grad": lambda f, x, v: torch.func.jvp(torch.func.grad(f), (x,), (v,))[1],
    "func.grad of func.grad": lambda f, x, v: torch.func.grad(lambda y: (torch.func.grad(f)(y) * v).sum())(x),
}


def dual_number(function: Function, x: Tensor, v: Tensor) -> Tensor:
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(function(forward_ad.make_dual(x, v))).tangent
        return torch.zeros(()) if tangent is None else tangent.clone()


FIRST = {
    "func.jvp": lambda f, x, v: torch.func.jvp(f, (x,), (v,))[1],
    "dual numbers": dual_number,
    "dual numbers that need a gradient": lambda f, x, v: dual_number(f, x.clone().requires_grad_(), v),
    "func.grad": lambda f, x, v: (torch.func.grad(f)(x) * v).sum(),
    "func.vmap": lambda f, x, v: (torch.func.vmap(torch.func.grad(f))(x[None])[0] * v).sum(),
}


def close(found: Tensor, expected: Tensor, rtol: float) -> bool:
    return torch.allclose(found.double(), expected.double(), rtol=0, atol=rtol * float(expected.abs().max()) + 1e-9)


def slope(function: Callable[[Tensor], Tensor], x: Tensor, v: Tensor, step: float = 1e-5) -> Tensor:
    return (function(x + step * v) - function(x - step * v)) / (2 * step)


def curvature(function: Function, x: Tensor, v: Tensor) -> tuple[Tensor, float]:
    """H v by finite differences, and how far it can be trusted: what computes in float32 allows coarse steps only."""
    if function(x).dtype == torch.float64:
        return slope(lambda y: gradient(function, y), x, v), 2e-3
    return slope(lambda y: gradient(function, y), x, v, step=1e-2), 0.2


@pytest.mark.parametrize("name", CURVED)
def test_second_derivatives_are_right_or_refused(name):
    function, x, v = as_function(name)
    expected, rtol = curvature(function, x, v)
    if rtol > 0.1 and expected.abs().max() < 1e-3 * gradient(function, x).abs().max():
        pytest.skip("too straight to be told from rounding")
    for way, ask in SECOND.items():
        try:
            found = ask(function, x, v)
        except (RuntimeError, ValueError, TypeError) as error:
            assert str(error), way
            assert name not in TWICE or way.startswith("func"), way
            continue
        assert close(found, expected, rtol), way


@pytest.mark.parametrize("name", CURVED)
def test_a_meta_gradient_is_right_or_refused(name):
    """MAML: f at y = x - a f'(x), differentiated by x, is f'(y) - a H(x) f'(y)."""
    function, x, _ = as_function(name)
    leaf = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(function(leaf), leaf, create_graph=True)
    rate = 0.01 * float((x.abs().max() + 0.1) / first.abs().max().clamp_min(1e-12))
    try:
        moved = leaf - rate * first
        (found,) = torch.autograd.grad(function(moved), leaf)
    except (RuntimeError, ValueError, TypeError) as error:
        assert "differentiable once" in str(error)
        assert name not in TWICE
        return
    outer = gradient(function, moved.detach())
    direction = outer / outer.abs().max().clamp_min(1e-12)
    bend, rtol = curvature(function, x, direction)
    if rtol > 0.1 and bend.abs().max() < 1e-3 * outer.abs().max():
        pytest.skip("too straight to be told from rounding")
    assert close((outer - found) / rate, bend * outer.abs().max(), 2 * rtol)


@pytest.mark.parametrize("name", OURS)
def test_first_derivatives_are_right_or_refused_in_every_way(name):
    function, x, v = as_function(name)
    expected = (gradient(function, x) * v).sum()
    for way, ask in FIRST.items():
        try:
            found = ask(function, x, v)
        except (RuntimeError, ValueError, TypeError) as error:
            assert str(error), way
            continue
        assert close(found, expected, 1e-3), way


@pytest.mark.parametrize("name", ["ssim", "ms_ssim", "ssim_distance", "ssim second order"])
def test_transforms_of_torch_func_pass_through_ssim(name):
    row = ROWS[f"functional.{name}"]
    x, y = (image.double() for image in row.inputs(3))
    v = torch.randn(x.shape, dtype=x.dtype)
    expected = torch.stack(
        [gradient(lambda a, b=b: row.call(a[None], b[None]).sum(), a) for a, b in zip(x, y, strict=True)]
    )
    found = torch.func.vmap(torch.func.grad(lambda a, b: row.call(a[None], b[None]).sum()))(x, y)
    assert close(found, expected, 1e-6)
    swapped = torch.func.vmap(lambda a, b: row.call(a[None], b[None])[0], in_dims=3, out_dims=0)(
        x.movedim(0, 3), y.movedim(0, 3)
    )
    assert close(swapped, row.call(x, y), 1e-9)
    _, tangent = torch.func.jvp(lambda a: row.call(a, y), (x,), (v,))
    assert close(tangent, slope(lambda a: row.call(a, y), x, v), 1e-5)


def test_the_hessian_of_ssim_is_that_of_the_plain_path():
    row = ROWS["functional.ssim second order"]
    x, y = (image[:, :1, :5, :6].double() for image in row.inputs(1))
    plain = hessian(lambda a: row.call(a, y).sum(), x)
    for found in (
        torch.func.hessian(lambda a: ROWS["functional.ssim"].call(a, y).sum())(x),
        torch.func.jacrev(torch.func.jacfwd(lambda a: row.call(a, y).sum()))(x),
    ):
        assert close(found.reshape(plain.shape), plain, 1e-8)
    with pytest.raises(RuntimeError, match="second_order=True"):
        hessian(lambda a: ROWS["functional.ssim"].call(a, y).sum(), x)

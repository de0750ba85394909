"""The gradient of a critic with respect to images, and the penalties on its norm.

    WGAN-GP (Gulrajani et al. 2017, eq. 3):  E (||grad D(x^)||_2 - 1)^2,  x^ = e x~ + (1 - e) x,  e ~ U[0, 1] per sample
    R1, R2 (Mescheder et al. 2018, eq. 9):   E ||grad D(x)||^2 on real or on fake images (weighted gamma / 2)

The critic is called once, on the points alone. The points are float32, whatever type the images have, unless the
critic's own weights are in half precision. Under float16 autocast the whole pass runs in float32 (its gradients would
underflow); under bfloat16 the user's autocast stays on. Attention runs in torch's plain kernel, because the fused ones
have no second derivative.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from qa_hooks.images import check_images, check_pair

Critic = Callable[[Tensor], Any]
OutputFn = Callable[[Any], Tensor]


def critic_scores(output: Any, count: int, output_fn: OutputFn | None = None, *, name: str = "critic") -> Tensor:
    """A critic's output as `(N,)`: (N,), (N, 1) and maps (averaged) as they are, tuples and dicts through `output_fn`.

    Raises:
        TypeError: a tuple or dict without `output_fn`.
        ValueError: a tensor without one row per image.
    """
    if output_fn is not None:
        try:
            output = output_fn(output)
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            what = (
                f"a dict with the keys {sorted(output)}" if isinstance(output, dict) else f"a {type(output).__name__}"
            )
            raise ValueError(f"output_fn failed on what {name} gave, {what}: {error!r}") from error
    if not isinstance(output, Tensor):
        raise TypeError(
            f"{name} must give a tensor with one score per image, got {type(output).__name__}; "
            "pass output_fn= to pick the scores, for example output_fn=lambda out: out[0]"
        )
    if output.ndim == 0 or output.shape[0] != count:
        raise ValueError(
            f"{name} must give one score per image (N,), (N, 1) or a map (N, 1, H, W): "
            f"got {tuple(output.shape)} for {count} images (an averaged score cannot be used)"
        )
    return output.reshape(count) if output.numel() == count else output.flatten(1).mean(1)


def interpolate(real: Tensor, fake: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """x^ = e fake + (1 - e) real with e ~ U[0, 1] per sample, `(N, C, H, W)`; e is drawn on the generator's device."""
    device = generator.device if generator is not None else real.device
    mix = torch.rand(real.shape[0], *[1] * (real.ndim - 1), generator=generator, device=device, dtype=torch.float32).to(
        real, non_blocking=True
    )
    return real + mix * (fake - real)


def input_gradient(
    critic: Critic,
    points: Tensor,
    *,
    output_fn: OutputFn | None = None,
    create_graph: bool = True,
) -> Tensor:
    """The gradient of sum_i D(x_i) with respect to the points, `(N, C, H, W)` float32.

    Args:
        critic: any callable that scores images; a compiled one runs uncompiled here (a compiled graph has no double
            backward).
        points: `(N, C, H, W)`; detached first.
        output_fn: picks the scores from a tuple or dict.
        create_graph: keep the graph, so that a penalty on the result trains the critic.

    Raises:
        ValueError: the critic does not depend on the points (detached inside, or no graph), or, with `create_graph`,
            uses an operator that has no second derivative.

    Example:
        >>> critic = lambda x: (x ** 2).sum((1, 2, 3))
        >>> input_gradient(critic, torch.ones(1, 1, 2, 2)).flatten().tolist()
        [2.0, 2.0, 2.0, 2.0]
    """
    if torch.compiler.is_compiling():
        raise ValueError(_COMPILED)
    if torch.is_inference_mode_enabled() or points.is_inference():
        raise ValueError("a gradient penalty cannot be computed under torch.inference_mode(), or on images made in it")
    points = _leaf(critic, points)
    with torch.enable_grad(), _eager(), _full_precision_gradients(points.device.type), sdpa_kernel(SDPBackend.MATH):
        scores = critic_scores(_uncompiled(critic)(points), points.shape[0], output_fn)
        if not scores.requires_grad:
            raise ValueError("the critic's output does not depend on its input: is it detached, or run under no_grad?")
        (gradient,) = torch.autograd.grad(scores.sum(), points, create_graph=create_graph, allow_unused=True)
    if gradient is None:
        raise ValueError("the critic's output does not depend on its input: is the input detached inside it?")
    if create_graph:
        _check_second_derivative(gradient)
    return gradient.float() if gradient.dtype in (torch.float16, torch.bfloat16) else gradient


def gradient_norm_penalty(gradient: Tensor, *, target: float = 1.0) -> Tensor:
    """mean_i (||g_i||_2 - target)^2, a scalar; with target 0 the mean squared norm, free of any square root."""
    rows = gradient.flatten(1)
    if target == 0:
        return rows.square().sum(1).mean()
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1)  # its slope at 0 is 0
    return (norms - target).square().mean()


@overload
def gradient_penalty(
    critic: Critic,
    real: Tensor,
    fake: Tensor,
    *,
    at: str = ...,
    target: float = ...,
    return_grad: Literal[False] = ...,
    output_fn: OutputFn | None = ...,
    generator: torch.Generator | None = ...,
) -> Tensor: ...
@overload
def gradient_penalty(
    critic: Critic,
    real: Tensor,
    fake: Tensor,
    *,
    at: str = ...,
    target: float = ...,
    return_grad: Literal[True],
    output_fn: OutputFn | None = ...,
    generator: torch.Generator | None = ...,
) -> tuple[Tensor, Tensor]: ...
def gradient_penalty(
    critic: Critic,
    real: Tensor,
    fake: Tensor,
    *,
    at: str = "interpolated",
    target: float = 1.0,
    return_grad: bool = False,
    output_fn: OutputFn | None = None,
    generator: torch.Generator | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """WGAN-GP's gradient penalty, and R1 and R2 (`at="real"`/`"fake"`, `target=0`).

    Args:
        critic: any callable `(N, C, H, W) -> (N,)`, (N, 1) or maps, which are averaged.
        real, fake: `(N, C, H, W)`, one shape, in any range.
        at: where the gradient is taken.
        target: the norm aimed at.
        return_grad: also return the gradient `(N, C, H, W)`, so that a NIQE term needs no second one.
        output_fn: picks the scores from a tuple or dict.
        generator: where the interpolation's random numbers come from; by default torch's global state, as in the
            trainer's own penalty that this replaces. The modules in `qa_hooks.penalties` draw from their own.

    Returns:
        A scalar, unweighted; with `return_grad` also the gradient.

    Raises:
        TypeError, ValueError: images or critic outputs that cannot be used; the message says what arrived.

    Example:
        >>> linear = lambda x: 3 * x.sum((1, 2, 3))
        >>> images = torch.zeros(4, 1, 1, 1)
        >>> gradient_penalty(linear, images, images)
        tensor(4.)
    """
    check_images("real", real)
    check_images("fake", fake)
    check_pair("real", real, "fake", fake)
    points = points_at(real, fake, at, generator)
    gradient = input_gradient(critic, points, output_fn=output_fn)
    penalty = gradient_norm_penalty(gradient, target=target)
    return (penalty, gradient) if return_grad else penalty


def points_at(real: Tensor, fake: Tensor, at: str, generator: torch.Generator | None) -> Tensor:
    """Where a gradient penalty looks: "interpolated", "real" or "fake"."""
    if at == "interpolated":
        return interpolate(real.detach(), fake.detach(), generator)
    if at in ("real", "fake"):
        return real if at == "real" else fake
    raise ValueError(f'at must be "interpolated", "real" or "fake", got {at!r}')


def _leaf(critic: Critic, points: Tensor) -> Tensor:
    """The points, to be differentiated by: in float32, unless the critic itself is in half precision."""
    points = points.detach()
    if points.dtype in (torch.float16, torch.bfloat16):
        from qa_hooks._base.reach import modules_of

        weights = [p.dtype for module in modules_of(critic) for p in module.parameters() if p.is_floating_point()]
        if points.dtype not in weights and (weights or torch.is_autocast_enabled(points.device.type)):
            points = points.float()
    try:
        return points.requires_grad_(True)
    except RuntimeError as error:  # torch has no public way to ask whether it transforms a function
        raise ValueError(
            "a gradient penalty cannot be transformed by torch.func (grad, vmap, hessian): it takes a gradient itself. "
            "Differentiate it by .backward() or torch.autograd.grad"
        ) from error


_NO_DERIVATIVE = ("torch::autograd::NotImplemented", "torch::autograd::Error")


def _check_second_derivative(gradient: Tensor) -> None:
    """Refuse a gradient whose graph holds an operator without a derivative: the penalty's backward pass would fail."""
    seen: set[Any] = set()
    waiting = [gradient.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        following = [after for after, _ in node.next_functions]
        if node.name() in _NO_DERIVATIVE:
            # Among what its backward pass saved is its own output, the one that comes after the others.
            own = [a for a in following if a and any(b in following for b, _ in a.next_functions)] or following
            names = {after.name().removesuffix("0").removesuffix("Backward") for after in own if after}
            names = {name for name in names if "::" not in name} or {"one that is marked once_differentiable"}
            raise ValueError(
                f"the critic uses an operator that has no second derivative ({', '.join(sorted(names))}), and a "
                "gradient penalty needs it. Write the critic's pass with plain operations: for attention "
                "`with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):`, for recurrent layers on a "
                "GPU `with torch.backends.cudnn.flags(enabled=False):`"
            )
        waiting += following


def _uncompiled(critic: Critic) -> Critic:
    original = getattr(critic, "_orig_mod", None)
    return original if isinstance(original, nn.Module) else critic


_COMPILED = (
    "a gradient penalty was called inside a function compiled by torch.compile, which has no double backward: "
    "compile the critic, not the function that calls the penalty"
)


@contextlib.contextmanager
def _eager() -> Iterator[None]:
    """Compiled modules inside a user's lambda run uncompiled as well."""

    from qa_hooks._base.isolation import uncompiled

    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(uncompiled())
        except RuntimeError as error:
            raise ValueError(_COMPILED) from error
        yield


@contextlib.contextmanager
def _full_precision_gradients(device_type: str) -> Iterator[None]:
    if torch.is_autocast_enabled(device_type) and torch.get_autocast_dtype(device_type) == torch.float16:
        with torch.autocast(device_type, enabled=False):
            yield
    else:
        yield

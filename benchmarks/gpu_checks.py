"""Is what the device computes right? Against float64 on the CPU, in mixed precision, compiled, without synchronisation.

Each check returns a dictionary with "ok" (True, False, or None where the device cannot be asked) and "found", words.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.penalties import dcgan_critic
from benchmarks.ssim import images
from benchmarks.timing import device
from qa_hooks import Hooks
from qa_hooks.callbacks import SampleGrid
from qa_hooks.functional import frechet_distance, kernel_distance, ms_ssim, ssim
from qa_hooks.functional.mixture import mixture_log_density
from qa_hooks.functional.neighbours import nearest_neighbours
from qa_hooks.losses import ScoreLoss, SSIMLoss
from qa_hooks.penalties import GradientPenalty, QAGANPenalty, SSIMPenalty, fit_gradient_model
from qa_hooks.scorers import NIQE

Finding = dict[str, Any]
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def checks(tiny: bool) -> Iterator[tuple[str, Callable[[], Finding]]]:
    """All of them, by name, in the order in which they run."""
    side = 176 if tiny else 256
    x, y = images(2, 3, side, side)
    rows = [torch.randn(400, 64 if tiny else 512, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    yield "SSIM, float64 on the CPU", partial(against_float64, ssim, [x, y], limit=1e-4)
    yield "MS-SSIM, float64 on the CPU", partial(against_float64, ms_ssim, [x, y], limit=1e-4)
    yield "NIQE, float64 on the CPU", partial(against_float64, niqe, [x], limit=1e-3, gradient=False)
    yield "nearest neighbours, float64 on the CPU", partial(against_float64, neighbours, rows, limit=1e-4)
    yield "Gaussian mixture, float64 on the CPU", partial(against_float64, mixture, rows, limit=1e-4)
    yield "Frechet distance, float64 on the CPU", partial(against_float64, frechet, rows, limit=1e-4, gradient=False)
    yield "kernel distance, float64 on the CPU", partial(against_float64, kernel, rows, limit=1e-3, gradient=False)
    for name, penalty in penalties().items():
        yield f"penalty {name}, float64 on the CPU", partial(penalty_against_float64, penalty)
        for half in HALVES:
            yield f"penalty {name}, {half} autocast", partial(mixed, penalty, half)
    yield "SSIMLoss compiled", partial(compiled, SSIMLoss)
    yield "ScoreLoss of NIQE compiled", partial(compiled, lambda: ScoreLoss(NIQE().to(device())), side=192)
    yield "critic compiled, penalty outside", compiled_critic
    yield "SSIM in channels_last", partial(channels_last, ssim, x, y)
    yield "SSIMLoss in a CUDA graph", graph
    for name, call in hot_paths():
        yield f"no synchronisation: {name}", partial(silent, call)


def without_tf32(run: Callable[[], Finding]) -> Finding:
    """A check with convolutions in true float32; on a GPU most of its error would be TF32's otherwise."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        return run()
    finally:
        torch.backends.cudnn.allow_tf32 = before


def niqe(batch: Tensor) -> Tensor:
    """NIQE's scores; its gradient jumps where a coefficient changes its sign, so only values are compared."""
    return NIQE().to(batch.device)(batch)


def neighbours(queries: Tensor, bank: Tensor) -> Tensor:
    return nearest_neighbours(queries, bank, k=3).distances


def mixture(values: Tensor, means: Tensor) -> Tensor:
    dim = values.shape[1]
    factors = torch.eye(dim, dtype=values.dtype, device=values.device).expand(4, dim, dim) * 1.5
    weights = torch.full((4,), 0.25, dtype=values.dtype, device=values.device).log()
    return mixture_log_density(values, weights, means[:4], factors)


def frechet(first: Tensor, second: Tensor) -> Tensor:
    moments = [(part.mean(0), part.T.cov()) for part in (first.double(), second.double())]
    return torch.as_tensor(frechet_distance(*moments[0], *moments[1]))


def kernel(first: Tensor, second: Tensor) -> Tensor:
    return torch.as_tensor(kernel_distance(first, second + 0.5)[0])


def penalties() -> dict[str, Callable[[], Any]]:
    """Penalties by name, made anew for each use."""
    model = fit_gradient_model(critic_of(), (real_and_fake(128, seed)[0] for seed in range(4)), progress=False)
    return {
        "gradient": lambda: GradientPenalty(value_range=(-1, 1), weight=10.0),
        "SSIM": lambda: SSIMPenalty(value_range=(-1, 1), weight=0.1),
        "QAGAN, NIQE": lambda: QAGANPenalty("niqe", value_range=(-1, 1), model=model),
    }


def critic_of() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return dcgan_critic().to(device())


def real_and_fake(count: int = 16, seed: int = 0) -> tuple[Tensor, Tensor]:
    real, fake = images(count, 3, 32, 32, seed=seed)
    return real * 2 - 1, (fake * 1.6 - 0.8).roll(1, 0)


# -- float64 on the CPU ------------------------------------------------------------------------------------------------


def against_float64(
    function: Callable[..., Tensor], tensors: list[Tensor], *, limit: float, gradient: bool = True
) -> Finding:
    """The largest error of values, and of the gradient to the first tensor, relative to the largest exact number."""

    def computed(given: list[Tensor]) -> list[Tensor]:
        first = given[0].detach().requires_grad_(gradient)
        value = function(first, *given[1:])
        return [value, *(torch.autograd.grad(value.sum(), first) if gradient else [])]

    exact = computed([tensor.cpu().double() for tensor in tensors])
    ours = computed([tensor.to(device(), torch.float32) for tensor in tensors])
    return judged(ours, exact, limit)


def judged(ours: list[Tensor], exact: list[Tensor], limit: float) -> Finding:
    errors = [relative_error(a, b) for a, b in zip(ours, exact, strict=True)]
    names = ("value", "gradient")[: len(errors)]
    words = ", ".join(f"{name} {error:.1e}" for name, error in zip(names, errors, strict=True))
    return {"ok": max(errors) <= limit, "found": f"{words} (limit {limit:g})", "errors": errors}


def relative_error(found: Tensor, exact: Tensor) -> float:
    found, exact = found.detach().cpu().double(), exact.detach().cpu().double()
    if not found.isfinite().all():
        return float("inf")
    return float((found - exact).abs().max() / exact.abs().max().clamp_min(1e-12))


def penalised(penalty: Any, critic: nn.Module, pair: tuple[Tensor, Tensor]) -> list[Tensor]:
    """The penalty, and its gradient to all of the critic's parameters as one vector."""
    value = penalty(critic, *pair)
    parts = torch.autograd.grad(value, list(critic.parameters()), allow_unused=True)
    return [value, torch.cat([part.flatten().double() for part in parts if part is not None])]


def penalty_against_float64(make: Callable[[], Any], limit: float = 2e-3) -> Finding:
    critic, pair = critic_of(), real_and_fake()
    exact_critic, exact_pair = copy.deepcopy(critic).cpu().double(), [part.cpu().double() for part in pair]
    exact = penalised(make(), exact_critic, (exact_pair[0], exact_pair[1]))
    return judged(penalised(make().to(device()), critic, pair), exact, limit)


# -- mixed precision, compilation, layouts -----------------------------------------------------------------------------


def mixed(make: Callable[[], Any], half: str, steps: int = 5) -> Finding:
    """Steps with autocast and a GradScaler: parameters stay finite, gradients point where float32's do."""
    pair, plain = real_and_fake(), critic_of()
    exact = penalised(make().to(device()), plain, pair)[1]
    critic, penalty = critic_of(), make().to(device())
    optimizer = torch.optim.Adam(critic.parameters(), 1e-4, betas=(0.0, 0.9))
    scaler = torch.amp.GradScaler(device().type, init_scale=1024.0, enabled=half == "fp16")
    cosine, taken = float("nan"), 0
    for step in range(steps):
        with torch.autocast(device().type, dtype=HALVES[half]):
            real_scores, fake_scores = critic(pair[0]), critic(pair[1])
            term = penalty(critic, *pair, real_scores=real_scores, fake_scores=fake_scores)
            loss = fake_scores.float().mean() - real_scores.float().mean() + term
        if step == 0:
            parts = torch.autograd.grad(term, list(critic.parameters()), allow_unused=True, retain_graph=True)
            found = torch.cat([part.flatten().double() for part in parts if part is not None])
            cosine = float(torch.cosine_similarity(found.cpu(), exact.cpu(), 0))
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        before = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        taken += scaler.get_scale() >= before
    finite = all(bool(parameter.isfinite().all()) for parameter in critic.parameters())
    words = f"cosine to float32 {cosine:.4f}, {taken} of {steps} steps taken, {'' if finite else 'not '}finite"
    return {"ok": finite and cosine > 0.97 and taken == steps, "found": words, "cosine": cosine}


def compiled(make: Callable[[], Any], side: int = 64, limit: float = 1e-3) -> Finding:
    """A loss under torch.compile, value and gradient against the plain one."""
    x, y = images(2, 3, side, side)

    def computed(loss: Any) -> list[Tensor]:
        leaf = x.clone().requires_grad_()
        value = loss(leaf, y) if isinstance(loss_of, SSIMLoss) else loss(leaf)
        return [value, *torch.autograd.grad(value, leaf)]

    loss_of = make()
    plain = computed(loss_of)
    torch._dynamo.reset()
    backend = "inductor" if device().type == "cuda" else "aot_eager"
    found = judged(computed(torch.compile(loss_of, backend=backend)), plain, limit)
    return {**found, "found": f"{backend}: {found['found']}"}


def compiled_critic() -> Finding:
    """The critic compiled, the penalty called outside of it, as a training script would."""
    torch._dynamo.reset()
    critic, pair = critic_of(), real_and_fake()
    backend = "inductor" if device().type == "cuda" else "aot_eager"
    make = penalties()["gradient"]
    plain = penalised(make().to(device()), critic, pair)
    found = judged(penalised(make().to(device()), torch.compile(critic, backend=backend), pair), plain, 1e-3)
    return {**found, "found": f"{backend}: {found['found']}"}


def channels_last(function: Callable[..., Tensor], x: Tensor, y: Tensor) -> Finding:
    def computed(layout: torch.memory_format) -> list[Tensor]:
        leaf = x.clone(memory_format=layout).requires_grad_()
        value = function(leaf, y.contiguous(memory_format=layout))
        return [value, *torch.autograd.grad(value.sum(), leaf)]

    return judged(computed(torch.channels_last), computed(torch.contiguous_format), 1e-5)


def graph() -> Finding:
    """Forward and backward captured once and replayed on other images."""
    if device().type != "cuda":
        return {"ok": None, "found": "needs CUDA"}
    loss, (x, y), (other, _) = SSIMLoss(), images(4, 3, 64, 64), images(4, 3, 64, 64, seed=1)
    leaf, stream = x.clone().requires_grad_(), torch.cuda.Stream()
    with torch.cuda.stream(stream):  # as torch asks: warm up on another stream; the first calls look at the images
        for _ in range(20):
            torch.autograd.grad(loss(leaf, y), leaf)
    torch.cuda.current_stream().wait_stream(stream)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        value = loss(leaf, y)
        (gradient,) = torch.autograd.grad(value, leaf)
    with torch.no_grad():
        leaf.copy_(other)
    captured.replay()
    fresh = other.clone().requires_grad_()
    exact = loss(fresh, y)
    return judged([value, gradient], [exact, *torch.autograd.grad(exact, fresh)], 1e-5)


# -- synchronisation ---------------------------------------------------------------------------------------------------


def hot_paths() -> Iterator[tuple[str, Callable[[], object]]]:
    """What runs in each step of a training, as calls that have been warmed up."""
    critic, pair, (x, y) = critic_of(), real_and_fake(), images(4, 3, 64, 64)
    for name, make in penalties().items():
        penalty = make().to(device())
        yield f"penalty {name}", lambda penalty=penalty: penalty(critic, *pair).backward()  # type: ignore[misc]
    loss = SSIMLoss()
    yield "SSIMLoss", lambda: loss(x.requires_grad_(), y).backward()
    grid = SampleGrid(lambda n, generator: x[:n].detach(), every=10**6)
    hooks = Hooks([grid], track={"ssim": loss}, log_every=10**6)
    yield "idle hooks", hooks.step


def silent(call: Callable[[], object]) -> Finding:
    """Whether a call leaves the device alone: CUDA raises where the CPU would wait for it."""
    if device().type != "cuda":
        call()
        return {"ok": None, "found": "runs; synchronisation is seen on CUDA only"}
    for _ in range(20):  # the first calls look at the images
        call()
    torch.cuda.synchronize()
    with contextlib.ExitStack() as stack:
        stack.callback(torch.cuda.set_sync_debug_mode, "default")
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(5):
                call()
        except RuntimeError as error:
            return {"ok": False, "found": f"it waits: {str(error).splitlines()[0][:120]}"}
    return {"ok": True, "found": "5 calls without waiting"}

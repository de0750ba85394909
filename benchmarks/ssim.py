"""SSIM and MS-SSIM against kornia, piq, pytorch-msssim and torchmetrics: time, memory and correctness.

python -m benchmarks ssim [--threads 1 2] [--runs 9] [--quick]

A peer counts for the ratio when it computes the same thing. torchmetrics does not: it includes reflected borders.
kornia has no MS-SSIM of this kind.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import OURS, Candidate, Row, compare, device, header, parser, peak_memory, table
from qa_hooks.functional.multiscale_similarity import ms_ssim
from qa_hooks.functional.structural_similarity import ssim, ssim_distance

INEXACT = frozenset({"torchmetrics"})
PEERS = ["kornia", "piq", "pytorch-msssim", "torchmetrics"]
Score = Callable[[Tensor, Tensor], Tensor]  # (N, C, H, W) twice -> (N,)


def implementations(multi_scale: bool) -> dict[str, Score]:
    """Ours and the installed peers', each as a function of two batches in [0, 1]."""
    found: dict[str, Score] = {OURS: ms_ssim if multi_scale else ssim}
    for name, load in _LOADERS.items():
        try:
            score = load(multi_scale)
        except ImportError:
            continue
        if score is not None:
            found[name] = score
    return found


def _piq(multi_scale: bool) -> Score:
    piq: Any = importlib.import_module("piq")

    if multi_scale:
        return lambda x, y: piq.multi_scale_ssim(x, y, data_range=1.0, reduction="none")
    return lambda x, y: piq.ssim(x, y, data_range=1.0, reduction="none", downsample=False)


def _pytorch_msssim(multi_scale: bool) -> Score:
    pytorch_msssim: Any = importlib.import_module("pytorch_msssim")

    score = pytorch_msssim.ms_ssim if multi_scale else pytorch_msssim.ssim
    return lambda x, y: score(x, y, data_range=1.0, size_average=False)


def _torchmetrics(multi_scale: bool) -> Score:
    image: Any = importlib.import_module("torchmetrics.functional.image")

    if multi_scale:
        return lambda x, y: image.multiscale_structural_similarity_index_measure(
            x, y, data_range=1.0, reduction="none", normalize="relu"
        )
    return lambda x, y: image.structural_similarity_index_measure(x, y, data_range=1.0, reduction="none")


def _kornia(multi_scale: bool) -> Score | None:
    kornia: Any = importlib.import_module("kornia")

    if multi_scale:
        return None
    return lambda x, y: kornia.metrics.ssim(x, y, 11, max_val=1.0, padding="valid").mean((1, 2, 3))


_LOADERS: dict[str, Callable[[bool], Score | None]] = {
    "kornia": _kornia,
    "piq": _piq,
    "pytorch-msssim": _pytorch_msssim,
    "torchmetrics": _torchmetrics,
}


def images(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Smooth structure and a noisy copy of it, in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(*shape[:2], max(shape[2] // 8, 2), max(shape[3] // 8, 2), generator=generator)
    x = torch.nn.functional.interpolate(coarse, size=shape[2:], mode="bicubic").clamp(0, 1)
    y = (x + 0.05 * torch.randn(shape, generator=generator)).clamp(0, 1)
    return x.to(device()), y.to(device())


def forward(score: Score, x: Tensor, y: Tensor) -> Candidate:
    def call() -> None:
        with torch.no_grad():
            score(x, y)

    return call


def forward_backward(score: Score, x: Tensor, y: Tensor) -> Candidate:
    leaf = x.clone().requires_grad_()

    def call() -> None:
        torch.autograd.grad(score(leaf, y).sum(), leaf)

    return call


def times(runs: int, quick: bool) -> Iterator[Row]:
    """The rows of performance.md."""
    threads = torch.get_num_threads()
    single = implementations(multi_scale=False)
    works = [
        ("SSIM forward", forward, (16, 3, 256, 256), 0.4 if threads == 1 else 0.55),
        ("SSIM fwd+bwd", forward_backward, (16, 3, 256, 256), 0.2),
        ("SSIM fwd+bwd", forward_backward, (1, 3, 1024, 1024), 0.2),
        ("SSIM fwd+bwd", forward_backward, (64, 3, 32, 32), 0.5),
    ]
    for name, make, shape, goal in works[-1:] if quick else works:
        x, y = images(*shape)
        calls = 5 if x.numel() < 1_000_000 else 1
        candidates = {key: make(score, x, y) for key, score in single.items()}
        yield compare(
            f"{name} {'x'.join(map(str, shape))}", candidates, goal=goal, inexact=INEXACT, runs=runs, calls=calls
        )
    if not quick:
        x, y = images(16, 3, 256, 256)
        candidates = {key: forward_backward(score, x, y) for key, score in implementations(multi_scale=True).items()}
        yield compare("MS-SSIM fwd+bwd 16x3x256x256", candidates, goal=0.3, inexact=INEXACT, runs=runs)


def distance_times(runs: int) -> str:
    """What the critic's penalty spends on d_Q in each step; nobody else has it."""
    lines = []
    for shape in ((64, 3, 32, 32), (64, 1, 16, 16)):
        x, y = images(*shape)
        row = compare("", {OURS: forward(ssim_distance, x, y)}, goal=1.0, runs=runs, calls=20)
        lines.append(f"ssim_distance forward {'x'.join(map(str, shape))}: {row.ours:.2f} ms")
    return "\n".join(lines)


def memory_work(name: str, *, small: bool) -> Candidate | None:
    """Called in a fresh process by `peak_memory`: SSIM forward and backward."""
    score = implementations(multi_scale=False).get(name)
    if score is None:
        return None
    shape = (1, 3, 64, 64) if small else (16, 3, 256, 256)
    return forward_backward(score, *images(*shape))


def memory(threads: int) -> Row:
    used = {name: peak_memory("benchmarks.ssim", name, threads=threads) for name in [OURS, "piq", "pytorch-msssim"]}
    found = {name: value for name, value in used.items() if value is not None}
    ours = found.pop(OURS)
    ratio = ours / min(found.values()) if found else float("nan")
    return Row("SSIM fwd+bwd 16x3x256x256", ours, found, ratio, (ratio, ratio), 0.3)


def correctness() -> str:
    """Largest difference to a float64 computation of the textbook formula (the gradient's relative to its maximum), and
    what bfloat16 autocast does to both."""
    lines = []
    for multi_scale in (False, True):
        x, y = images(2, 3, 256, 256)
        found = implementations(multi_scale)
        # The reference: a peer's textbook formula in float64, or our own plain path where there is none.
        reference = found.get("piq") or found.get("pytorch-msssim") or found[OURS]
        exact_x = x.double().requires_grad_()
        exact = reference(exact_x, y.double())
        (exact_gradient,) = torch.autograd.grad(exact.sum(), exact_x)
        lines.append(f"{'MS-SSIM' if multi_scale else 'SSIM'} of 2x3x256x256, exact {exact.mean().item():.6f}")
        lines.append(f"  {'':16}{'value':>10}{'gradient':>10}   bf16 autocast: {'value':>8}{'error':>10}{'cosine':>8}")
        for name, score in found.items():
            leaf = x.clone().requires_grad_()
            value = score(leaf, y)
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
            error = (value - exact).abs().max().item()
            relative = ((gradient - exact_gradient).abs().max() / exact_gradient.abs().max()).item()
            try:
                with torch.autocast(device().type, dtype=torch.bfloat16):
                    half = score(leaf, y)
                (half_gradient,) = torch.autograd.grad(half.sum(), leaf)
                cosine = torch.cosine_similarity(half_gradient.double().flatten(), exact_gradient.flatten(), 0).item()
                drift = (half - exact).abs().max().item()
                mixed = f"{half.mean().item():8.5f}{drift:10.1e}{cosine:8.4f}"
            except RuntimeError as failure:
                mixed = f"fails: {str(failure).splitlines()[0][:60]}"
            lines.append(f"  {name:16}{error:10.1e}{relative:10.1e}{'':18}{mixed}")
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    options = parser(__doc__).parse_args(arguments)
    runs = 7 if options.quick else options.runs
    warnings.filterwarnings("ignore")
    for threads in options.threads:
        torch.set_num_threads(threads)
        print(header(PEERS, threads), end="\n\n")
        print(table(list(times(runs, options.quick))), end="\n\n")
        print(distance_times(runs), end="\n\n")
    if not options.quick:
        print("peak memory over the inputs\n" + table([memory(options.threads[0])], unit="MB"), end="\n\n")
    print(correctness())

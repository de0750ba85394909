"""NIQE side by side with BasicSR and pyiqa: time, agreement, and whether descending the gradient lowers the score.

    python -m benchmarks niqe --original niqe_pris_params.npz [--threads 1] [--runs 9]

Peers that cannot be imported are left out. Runs are interleaved in one process; times are CPU milliseconds.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qa_hooks.functional.niqe import FeatureConfig, niqe_features
from qa_hooks.images import as_tensor
from qa_hooks.scorers.naturalness import NaturalnessModel
from qa_hooks.scorers.niqe import NIQE

Work = dict[str, Callable[[], Any]]


def crops(count: int, side: int = 256) -> Tensor:
    """`(count, 3, side, side)` float32 crops of scikit-image's photographs, in [0, 1]."""
    import skimage.data

    result: list[Tensor] = []
    while len(result) < count:
        for name in ("astronaut", "chelsea", "coffee", "rocket"):
            image = as_tensor(getattr(skimage.data, name)())[0]
            top, left = 11 * len(result) % (image.shape[1] - side + 1), 17 * len(result) % (image.shape[2] - side + 1)
            result.append(image[:, top : top + side, left : left + side])
    return torch.stack(result[:count]).float() / 255


def measure(work: Work, runs: int) -> dict[str, list[float]]:
    """CPU milliseconds of each function, `runs` times, interleaved after one warm-up."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for index in range(runs + 1):
        for name, function in work.items():
            start = time.process_time()
            function()
            if index:
                times[name].append(1000 * (time.process_time() - start))
    return times


def table(title: str, work: Work, runs: int) -> str:
    """One markdown table; the ratio is ours to the peer's, median and range over the interleaved runs."""
    times = measure(work, runs)
    lines = [f"### {title}", "", "| | CPU ms | ours / theirs (range) |", "|---|---|---|"]
    for name, values in times.items():
        ratios = sorted(ours / theirs for ours, theirs in zip(times["qa_hooks"], values, strict=True))
        ratio = "" if name == "qa_hooks" else f"{statistics.median(ratios):.3f} ({ratios[0]:.3f}-{ratios[-1]:.3f})"
        lines.append(f"| {name} | {statistics.median(values):.2f} | {ratio} |")
    return "\n".join(lines) + "\n"


def basicsr() -> Callable[[Tensor], list[float]] | None:
    """BasicSR's calculate_niqe on a batch, or None when it cannot be imported."""
    try:
        from basicsr.metrics.niqe import calculate_niqe
    except ImportError:
        return None

    def run(images: Tensor) -> list[float]:
        arrays = (255 * images).round().byte().permute(0, 2, 3, 1).numpy()[..., ::-1]
        return [float(calculate_niqe(np.ascontiguousarray(array), 0)) for array in arrays]

    return run


def pyiqa(model: NaturalnessModel) -> torch.nn.Module | None:
    """pyiqa's NIQE with the given parameters, or None when it cannot be imported."""
    try:
        from pyiqa.archs.niqe_arch import NIQE as Peer  # type: ignore[import-not-found,unused-ignore]
        from scipy.io import savemat
    except ImportError:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "parameters.mat")
        savemat(path, {"mu_prisparam": model.mean.numpy()[None], "cov_prisparam": model.covariance.numpy()})
        peer: torch.nn.Module = Peer(pretrained_model_path=str(path))
    return peer


def descend(scorer: torch.nn.Module, image: Tensor, steps: int = 30) -> tuple[float, float]:
    """The score before and after `steps` of Adam at a rate of 0.002."""
    image = image.clone().requires_grad_()
    optimizer = torch.optim.Adam([image], lr=2e-3)
    before = float(scorer(image))
    for _ in range(steps):
        optimizer.zero_grad()
        scorer(image).sum().backward()
        optimizer.step()
    return before, float(scorer(image))


def backward(function: Callable[[Tensor], Tensor], images: Tensor) -> Callable[[], None]:
    """A function that runs forward and backward to the images."""
    leaf = images.clone().requires_grad_()

    def run() -> None:
        leaf.grad = None
        function(leaf).sum().backward()

    return run


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks niqe", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--original", type=Path, required=True, help="niqe_pris_params.npz or modelparameters.mat")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=9)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)

    model = NaturalnessModel.load(options.original)
    by_color = {color: NIQE(model, color=color) for color in ("y_ycbcr", "y_yiq")}
    numpy_peer, torch_peer = basicsr(), pyiqa(model)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {options.threads} threads")
    print(f"torch {torch.__version__}, median of {options.runs}\n")
    batch, one = crops(16), crops(1)
    for title, images in (("forward, 16x3x256x256", batch), ("forward, 1x3x256x256", one)):
        work: Work = {"qa_hooks": lambda images=images: by_color["y_ycbcr"](images)}  # type: ignore[misc]
        if numpy_peer:
            work["basicsr"] = lambda images=images: numpy_peer(images)  # type: ignore[misc]
        if torch_peer:
            work["pyiqa"] = lambda images=images: torch_peer(images)  # type: ignore[misc]
        print(table(title, work, options.runs))
    work = {"qa_hooks": backward(by_color["y_yiq"], batch)}
    if torch_peer:
        work["pyiqa"] = backward(torch_peer, batch)
    print(table("forward + backward, 16x3x256x256", work, options.runs))

    print("### features of gradient maps, forward + backward\n\n| maps | CPU ms |\n|---|---|")
    for side in (16, 32):
        maps = torch.randn(64, 1, side, side)
        times = measure({"ours": backward(lambda x: niqe_features(x, FeatureConfig()), maps)}, options.runs)["ours"]
        print(f"| 64x1x{side}x{side} | {statistics.median(times):.2f} |")

    print("\n### agreement and descent\n")
    for name, peer, color in (("basicsr", numpy_peer, "y_ycbcr"), ("pyiqa", torch_peer, "y_yiq")):
        if peer:
            theirs = torch.as_tensor(peer(batch)).flatten().double()
            difference = (by_color[color](batch).double() - theirs).abs().max()
            print(f"- largest difference from {name} on 16 crops: {float(difference):.4f}")
    for name, scorer in (("qa_hooks", by_color["y_yiq"]), ("pyiqa", torch_peer)):
        if scorer:
            before, after = descend(scorer, one)
            print(f"- 30 steps down the gradient, {name}: {before:.2f} -> {after:.2f}")

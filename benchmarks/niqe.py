"""NIQE side by side with BasicSR and pyiqa: time, agreement, and whether descending the gradient lowers the score.

    python -m benchmarks niqe [--original niqe_pris_params.npz] [--threads 1 2] [--runs 9] [--quick]

Peers that cannot be imported are left out, and without the published parameters those that come with the package are
measured; a line says so. pyiqa's gradient lacks the path through alpha (an argmin there).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.timing import OURS, Candidate, compare, device, header, parser, table
from qa_hooks.functional.niqe import niqe_features
from qa_hooks.images import as_tensor
from qa_hooks.scorers.niqe.model import NaturalnessModel
from qa_hooks.scorers.niqe.original import load_original
from qa_hooks.scorers.niqe.scorer import NIQE


def crops(count: int, side: int = 256) -> Tensor:
    """`(count, 3, side, side)` float32 crops of scikit-image's photographs, in [0, 1]."""
    import skimage.data

    result: list[Tensor] = []
    while len(result) < count:
        for name in ("astronaut", "chelsea", "coffee", "rocket"):
            image = as_tensor(getattr(skimage.data, name)())[0]
            top, left = 11 * len(result) % (image.shape[1] - side + 1), 17 * len(result) % (image.shape[2] - side + 1)
            result.append(image[:, top : top + side, left : left + side])
    return (torch.stack(result[:count]).float() / 255).to(device())


def basicsr() -> Callable[[Tensor], list[float]] | None:
    """BasicSR's calculate_niqe on a batch, or None when it cannot be imported."""
    try:
        from basicsr.metrics.niqe import calculate_niqe
    except ImportError:
        return None

    def run(images: Tensor) -> list[float]:
        arrays = (255 * images).round().byte().permute(0, 2, 3, 1).cpu().numpy()[..., ::-1]
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


def pristine(path: Path | None) -> tuple[NaturalnessModel, str]:
    """The parameters to measure with, and what to say about them."""
    if path:
        return NaturalnessModel.load(path), f"parameters of {path.name}"
    try:
        return load_original(), "the published parameters"
    except RuntimeError:
        stand_in = replace(NIQE().model, provenance={"name": "bsd100"})  # for any conversion to grey
        return stand_in, "parameters of bsd100: the published ones are not on this machine (--original, see --help)"


def descend(scorer: torch.nn.Module, image: Tensor, steps: int = 30) -> tuple[float, float]:
    """The score before and after `steps` of Adam at a rate of 0.002."""
    image = image.clone().requires_grad_()
    optimizer = torch.optim.Adam([image], lr=2e-3)
    before = float(scorer(image).detach())
    for _ in range(steps):
        optimizer.zero_grad()
        scorer(image).sum().backward()
        optimizer.step()
    return before, float(scorer(image).detach())


def backward(function: Callable[[Tensor], Tensor], images: Tensor) -> Callable[[], None]:
    """A function that runs forward and backward to the images."""
    leaf = images.clone().requires_grad_()

    def run() -> None:
        leaf.grad = None
        function(leaf).sum().backward()

    return run


def main(arguments: list[str]) -> None:
    options = parser(__doc__)
    options.add_argument("--original", type=Path, help="file with the original parameters; looked for when not given")
    chosen = options.parse_args(arguments)
    runs = 7 if chosen.quick else chosen.runs
    model, said = pristine(chosen.original)
    by_color = {color: NIQE(model, color=color).to(device()) for color in ("y_ycbcr", "y_yiq")}
    ours, numpy_peer, torch_peer = by_color["y_ycbcr"], basicsr(), pyiqa(model)
    batch, one = crops(16), crops(1)
    for threads in chosen.threads:
        torch.set_num_threads(threads)
        print(header(["basicsr", "pyiqa"], threads) + "\n" + said)
        rows = []
        for images in (one,) if chosen.quick else (batch, one):
            work: dict[str, Candidate] = {OURS: lambda images=images: ours(images)}  # type: ignore[misc]
            if numpy_peer:
                work["basicsr"] = lambda images=images: numpy_peer(images)  # type: ignore[misc]
            if torch_peer:
                work["pyiqa"] = lambda images=images: torch_peer(images)  # type: ignore[misc]
            rows.append(compare(f"forward, {_size(images)}", work, goal=0.33, runs=runs))
        images = one if chosen.quick else batch
        both: dict[str, Candidate] = {OURS: backward(by_color["y_yiq"], images)}
        if torch_peer:
            both["pyiqa"] = backward(torch_peer, images)
        rows.append(compare(f"forward + backward, {_size(images)}", both, goal=0.4, runs=runs))
        for side in (16, 32):
            maps = torch.randn(64, 1, side, side, device=device())
            work = {OURS: backward(niqe_features, maps)}
            rows.append(
                compare(f"gradient maps, forward + backward, {_size(maps)}", work, goal=0.4, runs=runs, calls=5)
            )
        print(table(rows) + "\n")

    for name, peer, color in (("basicsr", numpy_peer, "y_ycbcr"), ("pyiqa", torch_peer, "y_yiq")):
        if peer:
            theirs = torch.as_tensor(peer(batch)).flatten().double().cpu()
            difference = (by_color[color](batch).double().cpu() - theirs).abs().max()
            print(f"largest difference from {name} on 16 crops: {float(difference):.4f}")
    for name, scorer in ((OURS, by_color["y_yiq"]), ("pyiqa", torch_peer)):
        if scorer:
            before, after = descend(scorer, one)
            print(f"30 steps down the gradient, {name}: {before:.2f} -> {after:.2f}")


def _size(images: Tensor) -> str:
    return "x".join(str(size) for size in images.shape)

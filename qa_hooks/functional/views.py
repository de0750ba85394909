"""Random views of a batch: crops, resizes, flips and a little noise, to score an image on more than one pixel grid.

A pattern that fools a score often fits one pixel grid, for example a network's 32x32 patches. The mean score over
several views ("expectation over transformation", Athalye et al. 2018) is harder to fool by such a pattern. Stripes,
which are stripes in every view, fool it as well (docs/sr.md, Real-ESRGAN).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

SMALLEST = 0.75  # of the image's sides, for the crop and for what comes out
LARGEST = 1.25


def random_view(shape: Sequence[int], generator: torch.Generator, *, noise: float = 0.01) -> Callable[..., Tensor]:
    """A function that crops, resizes and flips a whole batch of images in one way, drawn at random.

    Args:
        shape: `(N, C, H, W)` of the images that it is for.
        generator: on the CPU.
        noise: standard deviation of the noise.

    Returns:
        A function of images of that shape. Called with `noise=False` it leaves the noise out, for references. The
        images that it returns are float32, with 3/4 to 5/4 of the height and of the width.

    Example:
        >>> view = random_view((2, 3, 16, 16), torch.Generator().manual_seed(0), noise=0.0)
        >>> bool(torch.allclose(view(torch.full((2, 3, 16, 16), 0.5)), torch.tensor(0.5)))
        True
    """
    height, width = shape[2:]
    crop, size, flip = torch.rand(3, generator=generator, dtype=torch.float32, device="cpu").tolist()
    crop = SMALLEST + (1 - SMALLEST) * crop
    size = SMALLEST + (LARGEST - SMALLEST) * size
    rows, columns = max(1, round(crop * height)), max(1, round(crop * width))
    top, left = (int(v) for v in torch.randint(1 << 30, (2,), generator=generator, device="cpu"))
    top, left = top % (height - rows + 1), left % (width - columns + 1)
    out = max(1, round(size * height)), max(1, round(size * width))
    added = (
        noise * torch.randn(shape[0], shape[1], *out, generator=generator, dtype=torch.float32, device="cpu")
        if noise
        else None
    )

    def view(images: Tensor, *, noise: bool = True) -> Tensor:
        seen = images.float()[:, :, top : top + rows, left : left + columns]
        seen = F.interpolate(seen, out, mode="bilinear", align_corners=False, antialias=True)
        seen = seen.flip(-1) if flip < 0.5 else seen
        return seen + added.to(seen.device) if noise and added is not None else seen

    return view

"""PSNR, SSIM and MS-SSIM against a reference, with the conventions of super-resolution papers by option."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qa_hooks._base.checks import check_channels
from qa_hooks.functional.multiscale_similarity import ms_ssim
from qa_hooks.functional.structural_similarity import ssim
from qa_hooks.images import Range
from qa_hooks.scorers.scorer import Scorer

# Y of YCbCr (ITU-R BT.601, 16..235) of RGB in [0, 1], divided by 255.
Y_WEIGHTS, Y_OFFSET = (65.481 / 255, 128.553 / 255, 24.966 / 255), 16 / 255


class FullReferenceScorer(Scorer):
    """What the three share: a crop of the border and the choice of channel, as in BasicSR.

    With other options it is another measure, and has another name: `psnr_y_crop4` for `channel="y", crop_border=4`.

    Args:
        crop_border: pixels cut from each side before comparing (super-resolution papers cut the scale factor).
        channel: "rgb", or "y" for the luma of YCbCr in its 16..235 form.
        value_range: what the numbers of the images mean.
    """

    inputs = frozenset({"reference"})
    keeps_float64 = True

    def __init__(self, *, crop_border: int = 0, channel: str = "rgb", value_range: Range = (0.0, 1.0)) -> None:
        super().__init__(value_range=value_range)
        if channel not in ("rgb", "y"):
            raise ValueError(f"channel must be 'rgb' or 'y', got {channel!r}")
        if crop_border < 0:
            raise ValueError(f"crop_border must not be negative, got {crop_border}")
        self.crop_border, self.channel = int(crop_border), channel
        self.name += "_y" * (channel == "y") + f"_crop{self.crop_border}" * bool(crop_border)

    def options(self) -> dict[str, Any]:
        return {"crop_border": self.crop_border, "channel": self.channel}

    def score(self, images: Tensor, **inputs: Any) -> Tensor:
        check_channels(self.name, images)
        return self.compare(self._prepare(images), self._prepare(inputs["reference"]))

    def compare(self, images: Tensor, reference: Tensor) -> Tensor:
        """What a subclass writes: two prepared `(N, C, H, W)` in [0, 1] -> `(N,)`."""
        raise NotImplementedError

    def _prepare(self, images: Tensor) -> Tensor:
        if self.channel == "y" and images.shape[1] == 3:
            weights = images.new_tensor(Y_WEIGHTS).view(1, 3, 1, 1)
            images = (images * weights).sum(1, keepdim=True) + Y_OFFSET
        if not self.crop_border:
            return images
        border, (height, width) = self.crop_border, images.shape[-2:]
        if min(height, width) <= 2 * border:
            raise ValueError(f"crop_border={border} leaves nothing of images of {height}x{width}")
        return images[..., border:-border, border:-border]


class PSNR(FullReferenceScorer):
    """Peak signal-to-noise ratio, 10 log10(1 / MSE) in dB, at most 100 (identical images; keeps the gradient finite).

    SRCC .86 with people's ratings of five distortions together: docs/judges.md.

    Example:
        >>> PSNR()(torch.zeros(1, 3, 8, 8), reference=torch.full((1, 3, 8, 8), 0.1)).round()
        tensor([20.])
    """

    name, higher_is_better, score_range = "psnr", True, (0.0, 100.0)

    def compare(self, images: Tensor, reference: Tensor) -> Tensor:
        return -10 * torch.log10((images - reference).square().flatten(1).mean(1) + 1e-10)


class SSIM(FullReferenceScorer):
    """Structural similarity (Wang et al. 2004): 11 taps, sigma 1.5, no padding; see `qa_hooks.functional.ssim`.

    SRCC .68 with people's ratings of five distortions together: docs/judges.md.

    Example:
        >>> image = torch.rand(1, 3, 16, 16)
        >>> SSIM()(image, reference=image)
        tensor([1.])
    """

    name, higher_is_better, score_range = "ssim", True, (-1.0, 1.0)

    def compare(self, images: Tensor, reference: Tensor) -> Tensor:
        return ssim(images, reference)


class MSSSIM(FullReferenceScorer):
    """Multi-scale structural similarity (Wang, Simoncelli, Bovik 2003); see `qa_hooks.functional.ms_ssim`.

    SRCC .81 with people's ratings of five distortions together: docs/judges.md.

    Example:
        >>> image = torch.rand(1, 3, 192, 192)
        >>> MSSSIM()(image, reference=image)
        tensor([1.])
    """

    name, higher_is_better, score_range = "ms_ssim", True, (0.0, 1.0)

    def compare(self, images: Tensor, reference: Tensor) -> Tensor:
        return ms_ssim(images, reference)

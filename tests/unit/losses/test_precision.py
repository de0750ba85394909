"""Half-precision and double images give the loss of the same images in float32, and its gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qa_hooks.losses import HGGTNegativeLoss, MSSSIMLoss, ScoreLoss, SSIMDistanceLoss, SSIMLoss
from qa_hooks.scorers import NIQE, PSNR, FunctionScorer


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1))


LOSSES = {
    "ssim": SSIMLoss,
    "ms_ssim": MSSSIMLoss,
    "ssim_distance": SSIMDistanceLoss,
    "official distance": lambda: SSIMDistanceLoss(variant="official"),
    "hggt": HGGTNegativeLoss,
    "psnr": lambda: ScoreLoss(PSNR()),
    "niqe": lambda: ScoreLoss(NIQE(), ceiling=3.0),
    "a network": lambda: ScoreLoss(FunctionScorer(network(), name="net", higher_is_better=True), ceiling=9.0),
}


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(1)
    target = torch.rand(2, 3, 192, 192)
    return (target + 0.1 * torch.randn_like(target)).clamp(0, 1), target


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", LOSSES)
def test_every_type_of_image(name, dtype, pair):
    def run(kind):
        loss = LOSSES[name]()
        pred, target = (images.to(dtype).to(kind) for images in pair)
        pred.requires_grad_()
        further = {"original": target, "negative": target / 2, "negative_votes": torch.tensor([3, 1])}
        value = loss(pred, target if name in ("psnr",) or not isinstance(loss, ScoreLoss) else None,
                     **(further if name == "hggt" else {}))  # fmt: skip
        (gradient,) = torch.autograd.grad(1000 * value, pred)  # scaled, as half precision needs it
        return value.detach().double(), gradient.double()

    (value, gradient), (expected, slope) = run(dtype), run(torch.float32)
    torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-5)
    assert float((gradient - slope).norm() / slope.norm()) < 0.02

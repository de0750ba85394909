"""Metrics of PIQ (photosynthesis-team/piq, Apache-2.0): `create_scorer("piq:gmsd")`.

Those up to "tv" run without weights; the others fetch theirs from PIQ's releases, LPIPS's and DISTS's backbone from
torchvision.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from qa_hooks.scorers.libraries.adapter import Metric, TableScorer

_EACH = {"reduction": "none"}


class PIQScorer(TableScorer):
    """A metric of PIQ by its name, with PIQ's own defaults ("piq:ssim" downsamples large images, for example).

    SRCC .92 (gmsd) to .77 (vif) with people's ratings of five distortions together: docs/judges.md.

    Example:
        >>> from qa_hooks.scorers import create_scorer
        >>> scorer = create_scorer("piq:gmsd")  # doctest: +SKIP
        >>> scorer.higher_is_better, sorted(scorer.inputs)  # doctest: +SKIP
        (False, ['reference'])
    """

    library = "piq"
    licence = "Apache-2.0"
    TABLE: ClassVar[Mapping[str, Metric]] = {
        "psnr": Metric("piq.psnr", True, options=_EACH),
        "ssim": Metric("piq.ssim", True, (-1.0, 1.0), options=_EACH),
        "ms-ssim": Metric("piq.multi_scale_ssim", True, (0.0, 1.0), options=_EACH),
        "iw-ssim": Metric("piq.information_weighted_ssim", True, (0.0, 1.0), options=_EACH),
        "vif": Metric("piq.vif_p", True, options=_EACH),
        "fsim": Metric("piq.fsim", True, (0.0, 1.0), options=_EACH),
        "srsim": Metric("piq.srsim", True, (0.0, 1.0), each=True),  # its "none" still normalises over the batch
        "gmsd": Metric("piq.gmsd", False, options=_EACH),
        "ms-gmsd": Metric("piq.multi_scale_gmsd", False, options=_EACH),
        "vsi": Metric("piq.vsi", True, (0.0, 1.0), options=_EACH),
        "dss": Metric("piq.dss", True, (0.0, 1.0), options=_EACH),
        "haarpsi": Metric("piq.haarpsi", True, (0.0, 1.0), options=_EACH),
        "mdsi": Metric("piq.mdsi", False, options=_EACH),
        "tv": Metric("piq.total_variation", False, inputs=(), options=_EACH),
        "brisque": Metric("qa_hooks.scorers.libraries.piq.BRISQUE", False, inputs=()),
        "lpips": Metric("piq.LPIPS", False, options=_EACH),
        "dists": Metric("piq.DISTS", False, (0.0, 1.0), options=_EACH),
        "pieapp": Metric("piq.PieAPP", False, options={**_EACH, "enable_grad": True}),
        "clip-iqa": Metric("qa_hooks.scorers.libraries.piq.CLIPIQA", True, (0.0, 1.0), inputs=()),
    }


class BRISQUE(nn.Module):
    """PIQ's BRISQUE, whose support vectors are fetched when it is made and not when it is first called."""

    def __init__(self) -> None:
        super().__init__()
        self(torch.rand(1, 1, 64, 64, dtype=torch.float32, device="cpu"))

    def forward(self, images: Tensor) -> Tensor:
        """`(N, C, H, W)` in [0, 1] -> `(N,)`."""
        from piq import brisque

        return cast(Tensor, brisque(images, reduction="none"))


class CLIPIQA(nn.Module):
    """PIQ's CLIP-IQA (Wang et al. 2023), with its numbers and the gradient that its own `forward` detaches.

    Args:
        metric: a `piq.CLIPIQA`; without one it is made, which fetches CLIP's weights.
    """

    def __init__(self, metric: Any = None) -> None:
        super().__init__()
        if metric is None:
            from piq import CLIPIQA as Original

            metric = Original()
        self.metric = metric

    def forward(self, images: Tensor) -> Tensor:
        """`(N, 3, H, W)` in [0, 1] -> `(N,)`, the probability of "Good photo." against "Bad photo."."""
        metric = self.metric
        features = metric.feature_extractor.encode_image(
            (images - metric.default_mean) / metric.default_std, pos_embedding=False
        ).float()
        features = features / features.norm(dim=-1, keepdim=True)
        logits = metric.logit_scale.to(features) * features @ metric.anchors.t()
        return cast(Tensor, logits.softmax(-1)[:, 0])

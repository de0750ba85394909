"""Metrics of TorchMetrics (Lightning-AI, Apache-2.0): `create_scorer("torchmetrics:arniqa")`; and LPIPS and DISTS.

LPIPS and DISTS are taken from here because TorchMetrics is maintained, carries their learned weights inside its wheel,
and leaves the backbone to torchvision, whose cache most machines already have. The `lpips` package (2021) warns of
removed torchvision arguments; PIQ has LPIPS for VGG only and fetches weights from its own releases.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from qa_hooks.images import Range
from qa_hooks.scorers.libraries.adapter import Metric, TableScorer

_HERE = "torchmetrics.functional.image"
_CLASSES = "torchmetrics.image"
_UNIT = {"data_range": 1.0, "reduction": "none"}
_EACH = {"reduction": "none"}


class TorchMetricsScorer(TableScorer):
    """A metric of TorchMetrics by its name, per image.

    Example:
        >>> from qa_hooks.scorers import create_scorer
        >>> scorer = create_scorer("torchmetrics:ergas")  # doctest: +SKIP
        >>> scorer.higher_is_better  # doctest: +SKIP
        False
    """

    library = "torchmetrics"
    licence = "Apache-2.0"
    TABLE: ClassVar[Mapping[str, Metric]] = {
        "psnr": Metric(f"{_HERE}.peak_signal_noise_ratio", True, options={**_UNIT, "dim": (1, 2, 3)}),
        "ssim": Metric(f"{_HERE}.structural_similarity_index_measure", True, (-1.0, 1.0), options=_UNIT),
        "ms-ssim": Metric(f"{_HERE}.multiscale_structural_similarity_index_measure", True, (0.0, 1.0), options=_UNIT),
        "uqi": Metric(f"{_HERE}.universal_image_quality_index", True, (-1.0, 1.0), options=_EACH),
        # Its backward fails: values that it needs are overwritten in place.
        "vif": Metric(f"{_HERE}.visual_information_fidelity", True, each=True, differentiable=False),
        "scc": Metric(f"{_HERE}.spatial_correlation_coefficient", True, (-1.0, 1.0), options=_EACH),
        "ergas": Metric(f"{_HERE}.error_relative_global_dimensionless_synthesis", False, options=_EACH),
        "rmse-sw": Metric(f"{_HERE}.root_mean_squared_error_using_sliding_window", False, each=True),
        "tv": Metric(f"{_HERE}.total_variation", False, inputs=(), options=_EACH),
        "lpips": Metric(
            f"{_CLASSES}.LearnedPerceptualImagePatchSimilarity", False, part="net", call={"normalize": True}
        ),
        "dists": Metric(f"{_HERE}.dists.DISTSNetwork", False, (0.0, 1.0), call={"require_grad": True}),
        "arniqa": Metric(
            f"{_CLASSES}.arniqa.ARNIQA", True, (0.0, 1.0), inputs=(), part="model", call={"normalize": True}
        ),
        "clip-score": Metric(
            "qa_hooks.scorers.libraries.torchmetrics.CLIPScore",
            True,
            (0.0, 100.0),
            inputs=("prompt",),
            differentiable=False,
        ),
    }


class LPIPS(TorchMetricsScorer):
    """Learned perceptual image patch similarity (Zhang et al. 2018), lower is better; version 0.1 of the weights.

    Agreement with people's ratings: measured by `python -m benchmarks opinions` where the weights can be had.

    Args:
        net: the backbone: "alex" to report, "vgg" to optimise (both by the authors' advice), or "squeeze".
        value_range: what the numbers of the images mean.
    """

    name, higher_is_better, inputs = "lpips", False, frozenset({"reference"})

    def __init__(self, *, net: str = "alex", value_range: Range = (0.0, 1.0)) -> None:
        super().__init__("lpips", net_type=net, value_range=value_range)
        self.name, self.spec = "lpips" if net == "alex" else f"lpips_{net}", "lpips"


class DISTS(TorchMetricsScorer):
    """Deep image structure and texture similarity (Ding et al. 2020), lower is better: tolerant of resampled texture.

    Agreement with people's ratings: measured by `python -m benchmarks opinions` where the weights can be had.

    Args:
        value_range: what the numbers of the images mean.
    """

    name, higher_is_better, inputs, score_range = "dists", False, frozenset({"reference"}), (0.0, 1.0)

    def __init__(self, *, value_range: Range = (0.0, 1.0)) -> None:
        super().__init__("dists", value_range=value_range)
        self.name, self.spec = "dists", "dists"


class CLIPScore(nn.Module):
    """100 max(cos(image, prompt), 0), Hessel et al. 2021, one by one, with the model loaded once.

    TorchMetrics sends images through CLIP's processor on the CPU, so there is no gradient: a monitor. With a gradient:
    "pyiqa:clipscore".

    Args:
        model_name_or_path: of `torchmetrics.multimodal.CLIPScore`; or a function that returns (model, processor).
    """

    def __init__(self, model_name_or_path: Any = "openai/clip-vit-large-patch14") -> None:
        super().__init__()
        from torchmetrics.multimodal import CLIPScore as Original

        original = Original(model_name_or_path)
        self.model, self.processor = original.model, original.processor

    def forward(self, images: Tensor, prompt: list[str]) -> Tensor:
        """`(N, 3, H, W)` in [0, 1] and N prompts -> `(N,)`."""
        from torchmetrics.functional.multimodal import clip_score

        def loaded() -> tuple[Any, Any]:
            return self.model, self.processor

        quantised = (images.detach() * 255).round().to(torch.uint8)
        return torch.stack([clip_score(quantised[i], prompt[i], loaded).reshape(()) for i in range(len(quantised))])

"""How well an image fits its prompt, by a CLIP-like model of transformers: `create_scorer("transformers:MODEL")`.

    score = exp(logit scale) cos(image, prompt) + bias, the model's own logit of an image and its own prompt

MODEL is a folder that `save_pretrained` wrote, or a model's id, which transformers downloads. CLIP, SigLIP and their
fine-tuned kin, PickScore among them. How images are prepared: `qa_hooks.features.clip_like`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from qa_hooks.features.clip_like import PREFIX, clip_like, prepared
from qa_hooks.images import Range
from qa_hooks.scorers.libraries.adapter import LibraryScorer


class TransformersScorer(LibraryScorer):
    """The logit of an image and its prompt; higher is better, without a limit.

    Args:
        metric: a folder or a model's id.
        value_range: what the numbers of the images mean.

    Attributes:
        nominal_range: between these ends every cosine lies, times the model's scale.

    Raises:
        ImportError: transformers is not installed.
        ValueError: no CLIP-like model, or some of its files are missing.
        RuntimeError: the weights could not be loaded.

    Example:
        >>> from qa_hooks.scorers import create_scorer
        >>> scorer = create_scorer("transformers:openai/clip-vit-base-patch32")  # doctest: +SKIP
        >>> scorer(images, prompt=["a cat", "a dog"])  # doctest: +SKIP
    """

    library = "transformers"
    licence = "see the model's card"

    def __init__(self, metric: str, *, value_range: Range = (0.0, 1.0)) -> None:
        network = clip_like(metric)
        super().__init__(
            network,
            spec=f"{PREFIX}{metric}",
            higher_is_better=True,
            score_range=None,
            inputs=frozenset({"prompt"}),
            differentiable=True,
            value_range=value_range,
            options={},
        )
        self.name = f"transformers_{''.join(c if c.isalnum() else '_' for c in Path(metric).name)}"
        scale, bias = float(network.model.logit_scale.detach().exp()), _bias(network.model)
        self.nominal_range = (bias - scale, bias + scale)

    def measure(self, images: Tensor, **inputs: Any) -> Tensor:
        pixels = prepared(images, self.metric.how)
        outputs = self.metric.model(pixel_values=pixels, **self.metric.tokens(inputs["prompt"]))
        scores: Tensor = outputs.logits_per_image.diagonal()
        return scores


def _bias(model: nn.Module) -> float:
    bias = getattr(model, "logit_bias", None)
    return float(bias.detach()) if isinstance(bias, Tensor) else 0.0

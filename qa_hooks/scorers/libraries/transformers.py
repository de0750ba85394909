"""How well an image fits its prompt, by a CLIP-like model of transformers: `create_scorer("transformers:MODEL")`.

    score = exp(logit scale) cos(image, prompt) + bias, the model's own logit of an image and its own prompt

MODEL is a folder that `save_pretrained` wrote, or a model's id, which transformers downloads. CLIP, SigLIP and their
fine-tuned kin, PickScore among them. The preparation of images is the model's own, done on tensors so that a gradient
reaches the pixels; where it resizes, results differ from the processor's, which rounds to 8 bits, in the third digit.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qa_hooks.images import Range
from qa_hooks.scorers.libraries.adapter import LibraryScorer, import_library, loading, through_clamp

MODES = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers


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
        if not metric:
            raise ValueError("name a model: transformers:openai/clip-vit-base-patch32, or a folder")
        import_library("transformers")
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

        processors: Any = AutoImageProcessor  # has no types
        spec = f"transformers:{metric}"
        with loading(spec), torch.random.fork_rng(devices=[]):
            try:
                model = AutoModel.from_pretrained(metric, use_safetensors=True)
                if not hasattr(model, "logit_scale"):
                    raise ValueError(f"{type(model).__name__} has no logit scale")
                how = dict(processors.from_pretrained(metric).to_dict())
                tokenizer = AutoTokenizer.from_pretrained(metric)
            except (OSError, ImportError, MemoryError, torch.OutOfMemoryError):
                raise
            except Exception as error:  # broken files: safetensors and tokenizers raise classes of their own
                raise ValueError(f"{spec} is no CLIP-like model with all its files: {error}") from error
        super().__init__(
            model.float(),
            spec=spec,
            higher_is_better=True,
            score_range=None,
            inputs=frozenset({"prompt"}),
            differentiable=True,
            value_range=value_range,
            options={},
        )
        self.name = f"transformers_{''.join(c if c.isalnum() else '_' for c in Path(metric).name)}"
        self._how, self._tokenizer = how, tokenizer
        self._length = int(model.config.text_config.max_position_embeddings)
        scale, bias = float(model.logit_scale.detach().exp()), _bias(model)
        self.nominal_range = (bias - scale, bias + scale)

    def measure(self, images: Tensor, **inputs: Any) -> Tensor:
        # Padded to one length, so that an image's score does not depend on its neighbours' prompts.
        how = {"padding": "max_length", "max_length": self._length, "truncation": True, "return_tensors": "pt"}
        texts = {
            name: value.to(images.device) for name, value in self._tokenizer(list(inputs["prompt"]), **how).items()
        }
        texts.pop("token_type_ids", None)
        outputs = self.metric(pixel_values=prepared(images, self._how), **texts)
        scores: Tensor = outputs.logits_per_image.diagonal()
        return scores


def prepared(images: Tensor, how: Mapping[str, Any]) -> Tensor:
    """What an image processor of transformers with these settings does, on tensors in [0, 1].

    Raises:
        ValueError: a way of resizing that is not known here.
    """
    if how.get("do_resize", True):
        mode = MODES.get(int(how.get("resample") or 2))
        if mode is None:
            raise ValueError(f"the processor resizes by Pillow's filter {how['resample']}; known are {MODES}")
        size = _resized(images, how["size"])
        if size != images.shape[2:]:
            images = through_clamp(F.interpolate(images, size, mode=mode, antialias=True))
    if how.get("do_center_crop"):
        images = _cropped(images, how["crop_size"])
    if how.get("do_normalize", True):
        mean, std = (images.new_tensor(how[name]).view(1, -1, 1, 1) for name in ("image_mean", "image_std"))
        images = (images - mean) / std
    return images


def _resized(images: Tensor, size: Any) -> tuple[int, int]:
    if isinstance(size, Mapping) and size.get("height") and size.get("width"):
        return int(size["height"]), int(size["width"])
    side = int(size["shortest_edge"] if isinstance(size, Mapping) else size)
    height, width = images.shape[2:]
    return (side, int(side * width / height)) if height <= width else (int(side * height / width), side)


def _cropped(images: Tensor, size: Any) -> Tensor:
    height, width = (size["height"], size["width"]) if isinstance(size, Mapping) else (size, size)
    short = max(0, height - images.shape[2]), max(0, width - images.shape[3])
    if any(short):  # black at the edges, as the processor does it
        images = F.pad(images, (short[1] // 2, short[1] - short[1] // 2, short[0] // 2, short[0] - short[0] // 2))
    top, left = (images.shape[2] - height) // 2, (images.shape[3] - width) // 2
    return images[:, :, top : top + height, left : left + width]


def _bias(model: nn.Module) -> float:
    bias = getattr(model, "logit_bias", None)
    return float(bias.detach()) if isinstance(bias, Tensor) else 0.0

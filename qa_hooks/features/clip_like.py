"""CLIP-like models of transformers: images and prompts as unit vectors of one space.

    create_extractor("transformers:openai/clip-vit-base-patch32")      a model's id, or a folder of `save_pretrained`

The preparation of images is the model's own, done on tensors so that a gradient reaches the pixels; where it resizes,
results differ from the processor's, which rounds to 8 bits, in the third digit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qa_hooks._base.hashing import fingerprint
from qa_hooks._base.libraries import import_library, loading
from qa_hooks.functional.clamp import through_clamp

PREFIX = "transformers:"
MODES = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers


class ClipLike(nn.Module):
    """A model with its tokenizer and the settings of its image processor.

    Attributes:
        model: frozen, float32, in eval mode.
        how: the settings of its image processor.
    """

    def __init__(self, model: Any, tokenizer: Any, how: Mapping[str, Any]) -> None:
        super().__init__()
        self.model, self.how, self._tokenizer = model, dict(how), tokenizer
        self._length = int(model.config.text_config.max_position_embeddings)

    def forward(self, images: Tensor) -> Tensor:
        """`(N, 3, H, W)` in [0, 1] -> `(N, dim)`, of length 1."""
        return _unit(self.model.get_image_features(pixel_values=prepared(images, self.how)))

    def texts(self, prompts: Sequence[str]) -> Tensor:
        """N prompts -> `(N, dim)`, of length 1."""
        return _unit(self.model.get_text_features(**self.tokens(prompts)))

    def tokens(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """What the model takes beside images, padded to one length, so that no prompt depends on its neighbours."""
        how = {"padding": "max_length", "max_length": self._length, "truncation": True, "return_tensors": "pt"}
        device = next(self.model.parameters()).device
        found = {name: value.to(device) for name, value in self._tokenizer(list(prompts), **how).items()}
        found.pop("token_type_ids", None)
        return found

    def extra_repr(self) -> str:
        words = json.dumps(sorted(self._tokenizer.get_vocab().items()))
        how = json.dumps(self.how, sort_keys=True, default=str)
        return f"processor={fingerprint(how)}, vocabulary={fingerprint(words)}, length={self._length}"


def clip_like(source: str, *, download: bool = True) -> ClipLike:
    """The model of an id or a folder; nothing in it is run but what transformers has itself.

    Raises:
        ImportError: transformers is not installed.
        ValueError: no name, no CLIP-like model, or some of its files are missing.
        RuntimeError: the weights could not be loaded, or are not on this machine and `download` is False.
    """
    if not source:
        raise ValueError(f"name a model: {PREFIX}openai/clip-vit-base-patch32, or a folder")
    import_library("transformers")
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    processors: Any = AutoImageProcessor  # has no types
    spec, how = f"{PREFIX}{source}", {"trust_remote_code": False, "local_files_only": not download}
    with loading(spec), torch.random.fork_rng(devices=[]), torch.device("cpu"):
        try:
            model = AutoModel.from_pretrained(source, use_safetensors=True, **how)
            if not hasattr(model, "logit_scale"):
                raise ValueError(f"{type(model).__name__} has no logit scale")
            processor = dict(processors.from_pretrained(source, **how).to_dict())
            tokenizer = AutoTokenizer.from_pretrained(source, **how)
        except (OSError, ImportError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # broken files: safetensors and tokenizers raise classes of their own
            raise ValueError(f"{spec} is no CLIP-like model with all its files: {error}") from error
    return ClipLike(model.float().eval().requires_grad_(False), tokenizer, processor)


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


def _unit(features: Any) -> Tensor:
    """The rows at length 1; transformers 5 wraps what transformers 4 returned."""
    rows: Tensor = features if isinstance(features, Tensor) else features.pooler_output
    return F.normalize(rows.float(), dim=1)

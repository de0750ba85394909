"""A validation metric for each scorer, `calculate_qa_<scorer>`, and `calculate_qa_score` for any other by its spec.

The frameworks hand over uint8 images `(H, W, C)`, BGR or RGB, and all options of the metric's block. They take higher
for better unless the block says `better: lower`, and would keep the worst checkpoint without a word: refused here.
"""

from __future__ import annotations

import functools
import inspect
import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qa_hooks._base.checks import check_count
from qa_hooks.integrations.sr.conventions import Framework, default_device_cpu
from qa_hooks.scorers import Scorer, create_scorer
from qa_hooks.scorers.catalogue import SPECS

ANY = "score"


def framework_metrics(framework: Framework) -> list[Callable[..., float]]:
    """The functions to register: one for each scorer that needs no fitting, and the one for any."""
    specs = [name for name, entry in SPECS.items() if not entry.needs_fit]
    return [_metric(framework, spec) for spec in (*specs, ANY)]


def _metric(framework: Framework, spec: str) -> Callable[..., float]:
    name = f"calculate_qa_{re.sub(r'[-:]', '_', spec)}"

    def metric(
        img: np.ndarray[Any, Any],
        img2: np.ndarray[Any, Any] | None = None,
        *,
        crop_border: int = 0,
        better: str = "higher",
        device: torch.device | str | None = None,
        scorer: Any = None,
        test_y_channel: bool = False,
        input_order: str = "HWC",
        convert_to: str | None = None,
        **unknown: Any,
    ) -> float:
        if unknown:
            raise ValueError(
                f"{name}.{next(iter(unknown))} is not known; {name} takes crop_border, better, scorer, test_y_channel, "
                "input_order and convert_to"
            )
        if input_order not in ("HWC", "CHW"):
            raise ValueError(f"{name}.input_order must be HWC or CHW, got {input_order!r}")
        if (scorer is None) == (spec == ANY):
            what = "needs scorer:, such as pyiqa:musiq" if spec == ANY else f"takes no scorer: it is {spec}"
            raise ValueError(f"{name} {what}")
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        with default_device_cpu(), torch.inference_mode():
            asked = _with_channel(name, spec if scorer is None else scorer, test_y_channel, convert_to)
            found = _scorer(json.dumps(asked), str(device))
            direction = "higher" if found.higher_is_better else "lower"
            if better != direction:
                raise ValueError(f"{name}: {direction} is better for {found.name}; say so, with better: {direction}")
            if found.inputs - {"reference"}:
                raise ValueError(f"{name}: {found.name} needs {', '.join(sorted(found.inputs))}")
            read = functools.partial(_images, name, border=crop_border, order=input_order, framework=framework)
            images = read(img).to(device)
            if "reference" not in found.inputs:
                return float(found(images))
            if img2 is None:
                raise ValueError(f"{name} compares with the ground truth, and this validation set has none")
            return float(found(images, reference=read(img2).to(device)))

    metric.__name__ = metric.__qualname__ = name
    return metric


def _with_channel(name: str, spec: Any, test_y_channel: bool, convert_to: str | None) -> Any:
    """The spec with the frameworks' words for a channel in the scorer's own.

    `test_y_channel: true` of PSNR and SSIM is `channel: y`; `convert_to: y` (or `gray`) of NIQE is `color: y_ycbcr`.
    """
    options = dict(spec) if isinstance(spec, dict) else {"type": spec}
    kind = SPECS.get(str(options.get("type")))
    taken = inspect.signature(kind.kind).parameters if kind is not None else {}
    if test_y_channel:
        if "channel" not in taken:
            raise ValueError(
                f"{name}.test_y_channel: {options['type']} is not measured on one channel; leave the option out "
                "(psnr, ssim and ms_ssim take channel: y, and niqe takes color: y_ycbcr)"
            )
        options["channel"] = "y"
    if convert_to is not None:
        colors = {"y": "y_ycbcr", "gray": "gray"}
        if "color" not in taken or convert_to not in colors:
            raise ValueError(f"{name}.convert_to is 'y' or 'gray', and for niqe only, got {convert_to!r}")
        options["color"] = colors[convert_to]
    return options


@functools.lru_cache(maxsize=16)
def _scorer(spec: str, device: str) -> Scorer:
    return create_scorer(json.loads(spec)).eval().to(device)


def _images(name: str, image: np.ndarray[Any, Any], *, border: int, order: str, framework: Framework) -> Tensor:
    """`(1, C, H, W)` RGB in [0, 1] of `(H, W, C)`, `(C, H, W)` or `(H, W)`."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim not in (2, 3):
        what = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise TypeError(f"{name} takes a uint8 image (H, W, C), got {what}")
    image = image[..., None] if image.ndim == 2 else image.transpose(1, 2, 0) if order == "CHW" else image
    border = check_count(f"{name}.crop_border", border, least=0)
    if 2 * border >= min(image.shape[:2]):
        raise ValueError(f"{name}.crop_border={border} leaves nothing of an image of {image.shape[:2]}")
    image = image[border : image.shape[0] - border, border : image.shape[1] - border]
    if not framework.rgb_metrics:
        image = image[..., ::-1]
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float() / 255

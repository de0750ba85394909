"""One way to make a scorer, in code, YAML and on the command line; and the file format of fitted ones."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from qa_hooks.images import Range
from qa_hooks.scorers.calibration import Calibration
from qa_hooks.scorers.scorer import Scorer
from qa_hooks.writers import check_writable

FORMAT = "qa_hooks.scorer"
NATURALNESS = "qa_hooks.naturalness"

# spec -> (module, class, options). Imported when asked for.
SPECS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "psnr": ("qa_hooks.scorers.full_reference", "PSNR", {}),
    "ssim": ("qa_hooks.scorers.full_reference", "SSIM", {}),
    "ms_ssim": ("qa_hooks.scorers.full_reference", "MSSSIM", {}),
    "niqe": ("qa_hooks.scorers.niqe", "NIQE", {"pristine": "original"}),
    "niqe_bsd100": ("qa_hooks.scorers.niqe", "NIQE", {"pristine": "bsd100"}),
}


def create_scorer(spec: str | Path | Mapping[str, Any] | Scorer, value_range: Range = (0.0, 1.0)) -> Scorer:
    """Make a scorer from a name, a file or a mapping.

    Args:
        spec: a name ("niqe_bsd100", "ssim", ...), the path of a saved scorer ("scorer.safetensors"), a mapping
            `{"type": name, option: value, ...}`, or a scorer, which is returned as it is.
        value_range: what the numbers of the images mean.

    Raises:
        ValueError: an unknown name or a broken file.
        TypeError: options that the scorer does not have.

    Example:
        >>> create_scorer({"type": "psnr", "channel": "y", "crop_border": 4}).name
        'psnr'
    """
    if isinstance(spec, Scorer):
        if tuple(value_range) not in ((0.0, 1.0), spec.value_range):
            raise ValueError(f"{spec.name} was made with value_range={spec.value_range}, got value_range={value_range}")
        return spec
    options: dict[str, Any] = {}
    if isinstance(spec, Mapping):
        options = dict(spec)
        if "type" not in options:
            raise ValueError(f"a scorer's mapping needs the key 'type', got {sorted(options)}")
        spec = options.pop("type")
        value_range = options.pop("value_range", value_range)
    if isinstance(spec, (str, Path)) and str(spec).endswith(".safetensors"):
        if options:
            raise ValueError(f"a saved scorer takes no options, got {sorted(options)}")
        return load_scorer(spec, value_range)
    if str(spec) not in SPECS:
        raise ValueError(
            f"unknown scorer {str(spec)!r}; known are {', '.join(SPECS)}, or the path of a .safetensors file"
        )
    module, name, defaults = SPECS[str(spec)]
    scorer: Scorer = getattr(importlib.import_module(module), name)(**{**defaults, **options}, value_range=value_range)
    return scorer


def save_scorer(scorer: Scorer, path: str | Path) -> None:
    """Write a scorer; the file appears whole or not at all."""
    from safetensors.torch import save_file

    known = {name for _, name, _ in SPECS.values()}
    if type(scorer).__name__ not in known:
        raise TypeError(f"{type(scorer).__name__} cannot be saved; the scorers that can are {sorted(known)}")
    tensors, calibration = scorer.tensors(), scorer.calibration
    header = {"class": type(scorer).__name__, "options": scorer.options(), "calibration": None}
    if calibration is not None:
        header["calibration"] = calibration.method
        tensors["calibration.points"] = calibration.points
    path = Path(path)
    check_writable(path.parent, name="path")
    partial = path.with_name(path.name + ".partial")
    save_file(tensors, partial, metadata={"format": FORMAT, "version": "1", "scorer": json.dumps(header)})
    partial.replace(path)


def load_scorer(path: str | Path, value_range: Range = (0.0, 1.0)) -> Scorer:
    """Read a scorer that `save` wrote, or a NIQE model that `qa-hooks fit niqe` wrote.

    Raises:
        ValueError: not such a file, or a broken one; the message names it.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise ValueError(f"{path} does not exist")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = json.loads(metadata.get("scorer", "null"))
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    if metadata.get("format") == NATURALNESS:
        return create_scorer({"type": "niqe", "pristine": str(path)}, value_range)
    if metadata.get("format") != FORMAT or not isinstance(header, dict):
        raise ValueError(f"{path} is not a saved scorer: its format is {metadata.get('format')!r}, expected {FORMAT!r}")
    modules = {name: module for module, name, _ in SPECS.values()}
    if header.get("class") not in modules:
        raise ValueError(
            f"{path} holds a scorer of the unknown class {header.get('class')!r}; known: {sorted(modules)}"
        )
    kind: type[Scorer] = getattr(importlib.import_module(modules[header["class"]]), header["class"])
    own = {name: value for name, value in tensors.items() if not name.startswith("calibration.")}
    try:
        scorer = kind.from_saved(dict(header["options"]), own, value_range)
        if header.get("calibration"):
            points = tensors.get("calibration.points", torch.empty(0))
            scorer.calibration = Calibration(header["calibration"], points)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not fit {header['class']}: {error}") from error
    return scorer

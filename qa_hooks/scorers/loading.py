"""Read a saved scorer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from qa_hooks._base.checks import check_size
from qa_hooks._base.files import read_safetensors
from qa_hooks._base.headers import parse_header
from qa_hooks.features import FeatureExtractor
from qa_hooks.images import Range
from qa_hooks.scorers.calibration import Calibration
from qa_hooks.scorers.catalogue import SAVED, SPECS
from qa_hooks.scorers.saving import FORMAT
from qa_hooks.scorers.scorer import OTHER_SIZES, Scorer

NATURALNESS = "qa_hooks.naturalness"
BROKEN = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)  # what a bad file leads to


def load_scorer(
    path: str | Path,
    value_range: Range = (0.0, 1.0),
    *,
    extractor: FeatureExtractor | nn.Module | str | Mapping[str, Any] | None = None,
    other_sizes: str = "warn",
) -> Scorer:
    """Read a scorer that `save` wrote, or a NIQE model that `qa-hooks fit niqe` wrote.

    Nothing is downloaded: a feature network that is not on this machine yet is refused by name. Sizes and numbers in
    the file are checked before anything is made of them.

    Args:
        path: the file.
        value_range: what the numbers of the images mean.
        extractor: for scorers fitted in features of a network of yours; for others it may stand in for the one that
            the file names. Its fingerprint must be the file's.
        other_sizes: "warn", "raise" or "resize": what becomes of images that have another size than all of those that
            the scorer was fitted on.

    Raises:
        ValueError: not such a file, or a broken one; the message names it.
    """
    tensors, metadata = read_safetensors(path, "is not a whole safetensors file")
    if metadata.get("format") == NATURALNESS:
        scorer: Scorer = SPECS["niqe"].kind(pristine=str(path), value_range=value_range)
        return scorer
    return restored_scorer(tensors, metadata, value_range, extractor=extractor, other_sizes=other_sizes, path=path)


def restored_scorer(
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    value_range: Range,
    *,
    extractor: FeatureExtractor | nn.Module | str | Mapping[str, Any] | None = None,
    other_sizes: str = "warn",
    path: str | Path,
) -> Scorer:
    """The scorer of the tensors and the header that `scorer_parts` gave; `path` names them in messages."""
    header = _header(path, metadata)
    own = {name: value for name, value in tensors.items() if not name.startswith("calibration.")}
    try:
        scorer = _rebuilt(SAVED[header["class"]].kind, dict(header["options"]), own, value_range, extractor)
        if header.get("calibration"):
            scorer.calibration = Calibration(header["calibration"], tensors["calibration.points"])
        if header.get("size") is not None:
            scorer.fitted_size = check_size(header["size"])
    except BROKEN as error:
        raise ValueError(f"{path} does not fit {header['class']}: {error}") from error
    if other_sizes not in OTHER_SIZES:
        raise ValueError(f"other_sizes must be one of {OTHER_SIZES}, got {other_sizes!r}")
    scorer.other_sizes = other_sizes
    return scorer


def read_header(path: str | Path) -> dict[str, Any]:
    """What a saved scorer says of itself: "class", "options", "calibration", "size"; and its class under "kind".

    Raises:
        ValueError: not such a file, or a broken one; the message names it.
    """
    _, metadata = read_safetensors(path, "is not a whole safetensors file")
    header = _header(path, metadata)
    if not isinstance(header.get("options"), dict):
        raise ValueError(f"{path} is not a saved scorer: it has no options")
    return {**header, "kind": SAVED[header["class"]].kind}


def _header(path: str | Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        header = parse_header(metadata.get("scorer", "null"))
    except ValueError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    if metadata.get("format") != FORMAT or not isinstance(header, dict):
        raise ValueError(f"{path} is not a saved scorer: its format is {metadata.get('format')!r}, expected {FORMAT!r}")
    if str(header.get("class")) not in SAVED:
        raise ValueError(f"{path} holds a scorer of the unknown class {header.get('class')!r}; known: {sorted(SAVED)}")
    return header


def _rebuilt(
    kind: Any, options: dict[str, Any], tensors: dict[str, Tensor], value_range: Range, extractor: Any
) -> Scorer:
    scorer: Scorer
    if extractor is not None and "extractor" not in options:
        raise ValueError("it has no features of an extractor, so it takes no extractor=")
    if extractor is not None:
        scorer = kind.from_saved(options, tensors, value_range, extractor=extractor)
    else:
        scorer = kind.from_saved(options, tensors, value_range)
    return scorer

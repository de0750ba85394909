"""The file format of scorers: safetensors with a JSON header. Nothing is unpickled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from qa_hooks._base.files import check_writable, write_safetensors
from qa_hooks.scorers.catalogue import SAVED

FORMAT = "qa_hooks.scorer"


def save_scorer(scorer: Any, path: str | Path) -> None:
    """Write a scorer; the file appears whole or not at all."""
    tensors, metadata = scorer_parts(scorer)
    check_writable(Path(path).parent, name="path")
    write_safetensors(path, tensors, metadata)


def scorer_parts(scorer: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the header of a scorer's file; `TypeError` for a scorer that cannot be saved."""
    if type(scorer).__name__ not in SAVED:
        raise TypeError(f"{type(scorer).__name__} cannot be saved; the scorers that can are {sorted(SAVED)}")
    tensors, calibration = scorer.tensors(), scorer.calibration
    header = {"class": type(scorer).__name__, "options": scorer.options(), "calibration": None}
    if calibration is not None:
        header["calibration"] = calibration.method
        tensors["calibration.points"] = calibration.points
    if scorer.fitted_size is not None:
        header["size"] = list(scorer.fitted_size)
    return tensors, {"format": FORMAT, "version": "1", "scorer": json.dumps(header)}

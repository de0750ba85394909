"""The file of a quality adapter: safetensors with a JSON header."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from qa_hooks._base.files import check_writable, read_safetensors, write_safetensors
from qa_hooks._base.headers import parse_header
from qa_hooks.integrations.diffusers.quality.scale import warn_of_scale
from qa_hooks.integrations.diffusers.quality.scores import QualityScores

FORMAT = "qa_hooks.quality_adapter"
LARGEST = 1024  # tokens and frequencies that a file may ask for
OPTIONS = {"form", "init", "tokens", "hidden", "encoding", "drop", "seed"}


def write_adapter(path: str | Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write the trained tensors and what they mean; the file appears whole or not at all."""
    check_writable(Path(path).parent, name="path")
    write_safetensors(path, tensors, {"format": FORMAT, "facts": json.dumps(facts)})


def read_adapter(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any], QualityScores]:
    """Tensors, facts and the units of the scores; `ValueError` names a file that is something else, or broken."""
    complaint = "does not hold a quality adapter"
    tensors, header = read_safetensors(path, complaint, format=FORMAT)
    try:
        facts = parse_header(header["facts"])
        scores = QualityScores.from_facts(facts["scores"])
        options = facts["options"]
        if set(options) != OPTIONS:
            raise ValueError(f"its options are {sorted(options)}")
        if max(int(options["tokens"]), int(options["encoding"] or 0)) > LARGEST:
            raise ValueError(f"it asks for more than {LARGEST} tokens or frequencies")
        options["drop"] = tuple(options["drop"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} {complaint}: {error}") from error
    broken = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    if broken:
        raise ValueError(f"{path} {complaint}: {broken[0]} is not finite")
    return tensors, facts, scores


def check_fits(
    path: str | Path,
    facts: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    names: Sequence[str],
) -> None:
    """`ValueError` unless the tensors of a file are those of an adapter at these places."""
    places = facts.get("places")
    if places != list(names) or {n: t.shape for n, t in tensors.items()} != {n: p.shape for n, p in own.items()}:
        raise ValueError(
            f"{path} was trained on another network: it has {len(places or [])} places and {len(tensors)} tensors, and "
            f"this one has {len(names)} and {len(own)}"
        )


def check_scores(known: QualityScores, given: QualityScores) -> None:
    """`ValueError` unless an adapter of the known scores can go on with the given ones; another scale is warned of."""
    known.check_same(given.names, given.higher_is_better, given.fingerprints, "these are")
    if given.mean.shape != known.mean.shape:
        raise ValueError(f"these are {len(given.mean)} numbers an image, and the adapter has {len(known.mean)}")
    middle, spread = (given.mean - known.mean) / known.deviation, given.deviation / known.deviation
    warn_of_scale(known, middle, spread, given.fingerprints)

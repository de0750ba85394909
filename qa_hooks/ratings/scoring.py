"""Score rated images once: a table for each scorer, whose rows are contents, so that nothing is scored twice.

    psnr-1f0c5d7e9a3b2468.csv    path,psnr        path: the fingerprint of a file, of its reference, of its prompt

The name holds the scorer's fingerprint: another scorer has another table. A file that was moved or renamed keeps its
score, and a file that has changed gets a new one. A killed run leaves what it had, and the same call goes on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from qa_hooks._base.checks import check_count
from qa_hooks._base.containers import member_bytes
from qa_hooks._base.files import check_writable
from qa_hooks._base.hashing import fingerprint
from qa_hooks.folders.scoring.growing import GrowingTable, left_spec
from qa_hooks.folders.scoring.score_folder import alone_at, score_into, scorer_facts
from qa_hooks.folders.scoring.score_table import FORMAT, VERSION, growing_path, read_scores
from qa_hooks.folders.scoring.tiles import PiecedImage, read_pieces
from qa_hooks.ratings.statistics import Rows
from qa_hooks.scorers import Scorer
from qa_hooks.sources.windows import read_ahead


@dataclasses.dataclass(frozen=True)
class Stimulus:
    """An image on disk with what a scorer may need beside it."""

    image: Path
    reference: Path | None = None
    prompt: str = ""


def score_stimuli(
    stimuli: Sequence[Stimulus | None],
    named: Mapping[str, Scorer],
    cache: str | Path,
    *,
    batch_size: int = 16,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> tuple[dict[str, Rows], dict[str, dict[str, str]]]:
    """The goodness `(n,)` of each scorer, NaN where there is none, and what went wrong: scorer -> image -> message.

    Args:
        stimuli: the images; None where one is missing.
        named: scorers by name.
        cache: a folder that keeps the tables of scores.
        batch_size, device, progress: as in `qa_hooks.folders.score_folder`.

    Raises:
        ValueError: a scorer that needs references or prompts where there are none, or that scores no image at all.
    """
    cache = Path(cache)
    check_writable(cache, name="cache")
    known: dict[Path, str] = {}
    files = dict.fromkeys(path for s in stimuli if s is not None for path in (s.image, s.reference) if path is not None)
    for path, digest in zip(files, read_ahead(lambda path: fingerprint(member_bytes(path)), files), strict=True):
        known[path] = digest
    scores: dict[str, Rows] = {}
    problems: dict[str, dict[str, str]] = {}
    for name, scorer in named.items():
        _check_inputs(name, scorer, stimuli)
        keys = [None if stimulus is None else _key(stimulus, scorer, known) for stimulus in stimuli]
        wanted = {key: stimulus for key, stimulus in zip(keys, stimuli, strict=True) if key and stimulus is not None}
        if not wanted:
            raise ValueError(f"there is no image for {name} to score")
        table = cache / f"{name.replace(':', '_').replace('/', '_')}-{scorer.fingerprint}.csv"
        found, failed = _scored(table, wanted, name, scorer, check_count("batch_size", batch_size), device, progress)
        scores[name] = np.array([found.get(key or "", float("nan")) for key in keys]) * (
            1 if scorer.higher_is_better else -1
        )
        if failed:
            problems[name] = {str(wanted[key].image): message for key, message in failed.items() if key in wanted}
    return scores, problems


def _check_inputs(name: str, scorer: Scorer, stimuli: Sequence[Stimulus | None]) -> None:
    there = [stimulus for stimulus in stimuli if stimulus is not None]
    if "reference" in scorer.inputs and not any(stimulus.reference for stimulus in there):
        raise ValueError(f"{name} compares with references, which these ratings do not name or the folder lacks")
    if "prompt" in scorer.inputs and not any(stimulus.prompt for stimulus in there):
        raise ValueError(f"{name} needs a prompt for each image, which these ratings do not have")


def _key(stimulus: Stimulus, scorer: Scorer, known: Mapping[Path, str]) -> str:
    parts = [known[stimulus.image]]
    if "reference" in scorer.inputs:
        parts.append(known[stimulus.reference] if stimulus.reference is not None else "none")
    if "prompt" in scorer.inputs:
        parts.append(fingerprint(stimulus.prompt))
    return "-".join(parts)


def _scored(
    table: Path,
    wanted: Mapping[str, Stimulus],
    name: str,
    scorer: Scorer,
    batch_size: int,
    device: str | torch.device | None,
    progress: bool,
) -> tuple[dict[str, float], dict[str, str]]:
    """Scores and failures by content; rows of other images that the table has from earlier calls stay in it."""
    spec = {"format": FORMAT, "version": VERSION, "folder": "", "reference": None, "tiles": None, "overlap": 0}
    begun = GrowingTable(table, {**spec, "scorers": scorer_facts({name: scorer})})
    everything: dict[str, tuple[int, ...]] = dict.fromkeys(wanted, ())

    def start() -> None:
        begun.start({**dict.fromkeys(_left(table), ()), **everything}, resume=True)

    try:
        with alone_at(table, start):
            made = score_into(
                table,
                everything,
                _reader(wanted, scorer),
                {name: scorer},
                batch_size=batch_size,
                device=device,
                progress=progress,
            )
    except ValueError as error:  # none could be scored: the user knows files, not fingerprints
        text = str(error)
        for key, stimulus in wanted.items():
            text = text.replace(key, str(stimulus.image))
        raise ValueError(text) from error
    paths, values = made.per_image(name)
    return dict(zip(paths, values.tolist(), strict=True)), made.failures


def _left(table: Path) -> list[str]:
    """The contents that earlier calls have scored, or left out."""
    spec = left_spec(table)
    if spec is None:
        return []
    if growing_path(table).is_file():  # a call that was killed
        return sorted(GrowingTable(table, spec).done())
    return [*read_scores(table).paths, *spec.get("left_out", ())]


def _reader(wanted: Mapping[str, Stimulus], scorer: Scorer) -> Callable[[str], PiecedImage]:
    references = (lambda key: wanted[key].reference) if "reference" in scorer.inputs else None

    def read(key: str) -> PiecedImage:
        image = read_pieces(key, wanted[key].image, references, None, 0)
        image.prompt = wanted[key].prompt
        return image

    return read

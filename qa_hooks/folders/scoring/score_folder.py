"""Score every image of a folder into a table that can be interrupted, continued and shared among processes.

An image that cannot be read, or that a scorer refuses (too small, no reference), is listed and counted, and the rest
goes on. Batches hold images of one size. Batching can change the last digits of some scores: a table made in one go, a
table made with interruptions and a table made by several processes agree to float32 rounding. Memory holds one window
of images, the paths, and at the end the rows as text.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from qa_hooks._base.checks import check_count
from qa_hooks._base.containers import file_state
from qa_hooks._base.files import check_writable, exclusive, naming
from qa_hooks._base.processes import rank, together, world_size
from qa_hooks._base.progress import Progress
from qa_hooks.folders.scoring.batching import scored_windows
from qa_hooks.folders.scoring.growing import GrowingTable, image_line, journal_key, left_spec, number
from qa_hooks.folders.scoring.journal import Journal
from qa_hooks.folders.scoring.score_table import FORMAT, VERSION, ScoreTable, begun_path, growing_path, read_scores
from qa_hooks.folders.scoring.tiles import PiecedImage, check_tiles, find_references, read_pieces
from qa_hooks.scorers import Scorer, create_scorer
from qa_hooks.sources.grids import find_images
from qa_hooks.sources.windows import read_ahead

Spec = str | Path | Mapping[str, Any] | Scorer


def score_folder(
    folder: str | Path,
    scorers: Spec | Sequence[Spec],
    output: str | Path,
    *,
    tiles: int | None = None,
    overlap: int = 0,
    reference: str | Path | None = None,
    grid: str | None = None,
    batch_size: int = 32,
    device: str | torch.device | None = None,
    resume: bool = True,
    progress: bool = True,
) -> ScoreTable:
    """Score a folder into a CSV with a JSON beside it; the same call continues what an earlier one has left.

    Under a process group every process scores its share and all return the whole table.

    Args:
        folder: image files, sub-folders included; or what else `list_images` takes.
        scorers: one or several: whatever `create_scorer` takes. Files whose scorers share a name become
            `{name}@{file's stem}`.
        output: the CSV; columns are described in `qa_hooks.folders.scoring.score_table`. Beside the raw scores
            stand calibrated ones where a scorer has a calibration.
        tiles: score tiles of this side instead of whole images, from the left and the top; the last ones are shifted
            inwards so that they are full. Where an image is smaller than a tile, the tile is as small as the image.
        overlap: pixels that neighbouring tiles share.
        reference: for full-reference scorers, a folder with files of the same relative names (another suffix will do).
        grid: cut each picture into the images that it is a grid of, as in `qa_hooks.sources.grids.find_images`.
        batch_size: images, or tiles, at a time; large ones come in smaller batches.
        device: where the scorers run; None leaves them where they are.
        resume: continue an existing table; False replaces it. Images whose file changed after the earlier run are
            scored again. Rows of deleted images are removed. Images that failed are tried again. After a run that was
            killed, the images that it was at work on are scored one by one; one at which the process is killed twice
            is left out as a failure, and is tried again when its file changes.
        progress: show a bar when stderr is a terminal.

    Returns:
        The whole table; `.failures` tells what could not be scored, `.summary()` counts.

    Raises:
        ValueError: no images, an output that belongs to other settings or to something else, a reference that is
            missing or needless, or not one image that could be scored.
    """
    named = name_scorers(scorers, device)
    batch_size = check_count("batch_size", batch_size)
    tiles = check_tiles(tiles, overlap)
    folder, output = Path(folder), Path(output)
    paths = {path.relative_to(folder).as_posix(): path for path in find_images(folder, grid)}
    references = find_references(reference, named, paths)
    check_writable(output.parent, name="output")
    if output.is_dir():
        raise ValueError(f"output must be a file such as scores.csv, {str(output)!r} is a folder")
    spec = _describe(folder, named, tiles, overlap, reference)
    if grid is not None:
        spec["grid"] = grid
    current = {name: file_state(path) for name, path in paths.items()}
    with alone_at(output, lambda: GrowingTable(output, spec).start(current, resume=resume)):
        return score_into(
            output,
            current,
            lambda name: read_pieces(name, paths[name], references, tiles, overlap),
            named,
            batch_size=batch_size,
            device=device,
            progress=progress,
        )


@contextlib.contextmanager
def alone_at(output: Path, start: Callable[[], None]) -> Iterator[None]:
    """Work on a table that no other run is at work on; `start` begins it, on rank 0, before the others look.

    Raises:
        ValueError: another run is at work on it.
    """
    with contextlib.ExitStack() as stack:
        with together():
            if rank() == 0:
                stack.enter_context(exclusive(output))
                start()
        yield


def score_into(
    output: Path,
    current: Mapping[str, Sequence[int]],
    read: Callable[[str], PiecedImage],
    named: Mapping[str, Scorer],
    *,
    batch_size: int,
    device: str | torch.device | None,
    progress: bool,
) -> ScoreTable:
    """Score what a table that was begun lacks, each process its share, and finish it; all get the whole table.

    Args:
        output: of a `GrowingTable` that was started.
        current: the images by name, with the state of their files.
        read: the image of a name.
        named, batch_size, device, progress: as in `score_folder`.

    Raises:
        ValueError: not one image could be scored.
    """
    with together():  # nobody writes before all have looked at what is done: the shares are shares of one list
        table = GrowingTable(output, left_spec(output) or {})
        done, suspects = table.done(), table.suspects()

    def key(name: str) -> str:
        return journal_key(name, current[name])

    def work(names: Iterator[str], ahead: bool) -> Iterator[list[PiecedImage]]:
        images = read_ahead(read, names) if ahead else map(read, names)
        return scored_windows(images, named, batch_size, device)

    waiting = [name for name in sorted(current) if name not in done]
    alone = [name for name in waiting if suspects and key(name) in suspects]
    mine = sorted(set(waiting) - set(alone))[rank() :: world_size()]
    # One process works on the suspects: when it dies, the others are killed with it, and are not to blame for that.
    mine = alone + mine if rank() == 0 else mine
    with together():
        failed = 0
        with (
            Progress("scores", len(mine), shown=progress) as bar,
            naming(growing_path(output, rank())),
            table.appender(rank()) as out,
            Journal(begun_path(output, rank())) as journal,
        ):
            for window in journal.watch(mine, key, work):
                for image, rows in zip(window, _rows(window, named, tiled=table.tiled), strict=True):
                    failed += bool(image.problem)
                    out.write(image_line(image.name, current[image.name], rows, image.problem))
                out.flush()  # the scores of a window are known at once
                bar.update(len(window), failed=failed)
    with together():
        if rank() == 0:
            table.finish(current)
    return read_scores(output)


def _rows(window: Sequence[PiecedImage], named: Mapping[str, Scorer], *, tiled: bool) -> Iterator[list[list[Any]]]:
    """The cells of each image's rows; none when no scorer could do anything with it and the reason is known."""
    scores = {name: [score for image in window for score in image.scores[name]] for name in named}
    cells = zip(*score_columns(scores, named).values(), strict=True)
    for image in window:
        own = [(corner, next(cells)) for corner in image.corners]
        if image.problem and all(math.isnan(value) for _, values in own for value in values):
            yield []
        else:
            yield [[*(corner if tiled else ()), *map(number, values)] for corner, values in own]


def score_columns(scores: Mapping[str, Sequence[float]], named: Mapping[str, Scorer]) -> dict[str, list[float]]:
    """Raw scores by scorer -> what stands in the columns: these, and calibrated ones where a scorer has them."""
    columns: dict[str, list[float]] = {}
    for name, scorer in named.items():
        raw = torch.tensor(scores[name], device="cpu", dtype=torch.float32)
        columns[name] = raw.tolist()
        if scorer.calibration is not None:
            goodness = raw if scorer.higher_is_better else -raw
            columns[f"{name}_calibrated"] = torch.where(raw.isnan(), raw, scorer.calibration(goodness)).tolist()
    return columns


def name_scorers(
    scorers: Spec | Sequence[Spec], device: str | torch.device | None, *, prompts: bool = False, least: int = 1
) -> dict[str, Scorer]:
    """Scorers by a name that is unique among them, on the device; at least so many.

    Raises:
        ValueError: fewer, two of one name, or one that needs prompts without `prompts`.
    """
    several = not isinstance(scorers, str | Path | Mapping | Scorer) and isinstance(scorers, Iterable)
    specs: list[Any] = list(scorers) if several else [scorers]  # type: ignore[arg-type]
    if len(specs) < least:
        raise ValueError("scorers is empty: give at least one")
    made = [create_scorer(spec) for spec in specs]
    names = [scorer.name for scorer in made]
    named: dict[str, Scorer] = {}
    for spec, scorer in zip(specs, made, strict=True):
        is_file = str(spec).endswith(".safetensors")
        name = f"{scorer.name}@{Path(spec).stem}" if is_file and names.count(scorer.name) > 1 else scorer.name
        if name in named:
            raise ValueError(f"two scorers are called {name!r}: score them into two tables")
        if "prompt" in scorer.inputs and not prompts:
            raise ValueError(f"{name} needs a prompt for each image, which a folder does not have")
        named[name] = scorer.to(device) if device is not None else scorer
    return named


def _describe(
    folder: Path, named: Mapping[str, Scorer], tiles: int | None, overlap: int, reference: str | Path | None
) -> dict[str, Any]:
    """What the JSON says; rows of two tables may be mixed when these agree."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "folder": str(folder.resolve()),
        "reference": None if reference is None else str(Path(reference).resolve()),
        "tiles": tiles,
        "overlap": overlap,
        "scorers": scorer_facts(named),
    }


def scorer_facts(named: Mapping[str, Scorer]) -> list[dict[str, Any]]:
    """What the JSON of a table says of its columns, in their order."""
    return [
        {
            "name": name,
            "class": type(scorer).__name__,
            "fingerprint": scorer.fingerprint,
            "higher_is_better": scorer.higher_is_better,
            "score_range": scorer.score_range,
            "calibrated": scorer.calibration is not None,
        }
        for name, scorer in named.items()
    ]

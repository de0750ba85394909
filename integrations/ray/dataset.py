"""Score a data set on all machines of a Ray cluster into a folder of Parquet files; nothing is lost when a worker dies.

Each shard (`qa_hooks.integrations.ray.shards`) is a task: a worker reads it, scores it and writes its part of the
table, which appears whole or not at all (`qa_hooks.folders.scoring.shards`). Nothing but counts travels between the
processes. Ray gives the shard of a worker that died to another one; what the whole run has finished when it is
killed, the same call skips.
"""

from __future__ import annotations

import itertools
import json
import platform
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import qa_hooks
from qa_hooks._base.checks import check_count
from qa_hooks._base.files import check_writable, exclusive, naming, write_text
from qa_hooks._base.hashing import fingerprint
from qa_hooks._base.progress import Progress
from qa_hooks._base.text import plural
from qa_hooks.folders.scoring.growing import refuse_other_settings
from qa_hooks.folders.scoring.journal import LEFT_OUT, Journal
from qa_hooks.folders.scoring.score_folder import Spec
from qa_hooks.folders.scoring.score_table import FORMAT, VERSION, ScoreTable, begun_path, read_scores, read_spec
from qa_hooks.folders.scoring.shards import MANIFEST, SHOWN, Counts, part_path, read_counts, write_part
from qa_hooks.integrations.ray.batches import Item, ScoreBatches
from qa_hooks.integrations.ray.cluster import check_device, cluster, put, reason, remote
from qa_hooks.integrations.ray.shards import Shard, find_shards

PATIENCE = 8  # shards that may fail before one is finished
KEPT: dict[str, ScoreBatches] = {}  # of a worker: the scorers that it has made for a call of score_dataset


@dataclass(frozen=True, eq=False)
class ScoredDataset:
    """What `score_dataset` has written.

    Attributes:
        output: the folder.
        images, problems: how many images the table has, and how many of them had a problem.
        failures: the first few problems by path; all are in the column `problem`.
        shards, skipped: how many parts the table has, and how many were there already.
    """

    output: Path
    images: int
    problems: int
    failures: dict[str, str]
    shards: int
    skipped: int

    def read(self) -> ScoreTable:
        """The whole table, in memory: about 100 bytes an image. Larger ones are for programs that read Parquet."""
        return read_scores(self.output)

    def summary(self) -> str:
        """One line."""
        problems = f"; {self.problems} with problems" if self.problems else ""
        before = f", {self.skipped} of them from an earlier run" if self.skipped else ""
        return f"{self.images} images in {self.shards} shards{before}{problems}"


def score_dataset(
    source: str | Path,
    scorers: Spec | Sequence[Spec],
    output: str | Path,
    *,
    column: str | None = None,
    shard_size: int = 4096,
    batch_size: int = 32,
    device: str | None = None,
    address: str | None = None,
    resume: bool = True,
    progress: bool = True,
) -> ScoredDataset:
    """Score a data set with Ray into a folder of Parquet files; the same call continues what an earlier one has left.

    Args:
        source: a folder of images, of Parquet files or of tars, one such file, or what else `list_images` takes; all
            machines must see it under this path.
        scorers: one or several: whatever `create_scorer` takes; scorers that need nothing but the image.
        output: the folder to write, seen by all machines: `read_scores`, `filter_scores`, `pick_folder` and
            `QualityTable.load` read it as they read a CSV.
        column: of the images in Parquet files; None takes the first of `image`, `img`, `jpg`, ... that is there.
        shard_size: about how many images make a shard: so many are scored again after a worker has died.
        batch_size: images at a time; large ones come in smaller batches.
        device: "cpu", or "cuda": a GPU for each worker. None: GPUs where the cluster has some.
        address: of a running cluster, or "auto" for the one of this machine; None starts Ray on this machine for this
            call. A Ray that this process has initialised is taken as it is.
        resume: skip finished shards; False scores all anew. Shards whose files have changed are scored again. An image
            that had a problem is not tried again while its shard stays as it is.
        progress: show how far it is.

    Returns:
        Counts; `.read()` reads the table.

    Raises:
        ImportError: Ray is missing.
        TypeError: a data set of Ray; `dataset.map_batches(ScoreBatches, ...)` is for those.
        ValueError: no images, an output that belongs to other settings or to something else, not one image that could
            be scored.
        RuntimeError: shards that were not finished (their workers died again and again, or their files changed while
            they were read). All others are, and the same call goes on with them.
    """
    if not isinstance(source, str | Path):
        raise TypeError(
            f"source must be a path, got {type(source).__name__}; a data set of Ray takes "
            "dataset.map_batches(ScoreBatches, ...).write_parquet(...)"
        )
    if not isinstance(output, str | Path):
        raise TypeError(f"output must be the path of a folder, got {type(output).__name__}")
    check_device(device)
    shard_size, output = check_count("shard_size", shard_size), Path(output)
    score = ScoreBatches(scorers, batch_size=batch_size, device="cpu" if device == "cpu" else None)
    if output.exists() and not output.is_dir():
        raise ValueError(f"output must be a folder, {str(output)!r} is a file")
    if Path(source).is_dir() and output.resolve().is_relative_to(Path(source).resolve()):
        raise ValueError(
            f"output={str(output)!r} lies in {source}, where its files would be taken for data: choose another"
        )
    shards = find_shards(source, column=column, shard_size=shard_size)
    check_writable(output, name="output")
    spec = {
        "format": FORMAT,
        "version": VERSION,
        "qa_hooks": qa_hooks.__version__,
        "folder": str(Path(source).resolve()),
        "column": column,
        "shard_size": shard_size,
        "tiles": None,
        "overlap": 0,
        "scorers": score.facts,
    }
    with exclusive(output):
        _begin(output, spec, resume=resume)
        parts = {part_path(output, fingerprint(score.fingerprint, shard.state)): shard for shard in shards}
        counts = {path: read_counts(path) for path in parts if path.is_file()}
        skipped = len(counts)
        waiting = {path: shard for path, shard in parts.items() if path not in counts}
        if waiting:
            with cluster(address) as ray, Progress("shards", len(waiting), unit="shard", shown=progress) as bar:
                for path, found in _scored(ray, score, waiting, device):
                    counts[path] = found
                    bar.update(1, failed=sum(count.problems for count in counts.values()))
        return _finish(output, spec, [counts[path] for path in parts], list(parts), skipped)


def _begin(output: Path, spec: dict[str, Any], *, resume: bool) -> None:
    """Write the manifest of a table that is not complete, when nothing speaks against it."""
    old = read_spec(output)
    if old is None and any(not path.name.endswith(".partial") for path in output.iterdir()):
        raise ValueError(f"{output} holds files and no {MANIFEST}, it is no table of scores: choose another folder")
    if old is not None and resume:
        refuse_other_settings(output, old, spec)
    if old is not None and not resume:
        for part in output.glob("part-*.parquet*"):
            part.unlink()
    write_text(output / MANIFEST, json.dumps({**spec, "complete": False}, indent=1) + "\n")


def _finish(
    output: Path, spec: dict[str, Any], counts: Sequence[Counts], parts: Sequence[Path], skipped: int
) -> ScoredDataset:
    """Write the manifest of the complete table, and remove what is not of it; `ValueError` if nothing was scored."""
    lost = [part.name for part in parts if not part.is_file()]
    if lost:
        raise RuntimeError(
            f"{output} has not the part {lost[0]} that a worker has written: is it a folder that all machines share?"
        )
    failures = {path: why for count in counts for path, why in count.failures.items()}
    result = ScoredDataset(
        output,
        sum(count.images for count in counts),
        sum(count.problems for count in counts),
        dict(list(failures.items())[:SHOWN]),
        len(parts),
        skipped,
    )
    for part in set(output.glob("part-*.parquet*")) - set(parts):
        part.unlink()
    if result.problems == result.images:
        for part in (*parts, output / MANIFEST):
            part.unlink()
        path, why = next(iter(failures.items()), ("", "there was none"))
        raise ValueError(f"none of {plural(result.images, 'image')} could be scored; the first, {path}: {why}")
    spec |= {"images": result.images, "problems": result.problems, "shards": [part.name for part in parts]}
    write_text(output / MANIFEST, json.dumps({**spec, "complete": True}, indent=1) + "\n")
    return result


def _scored(
    ray: Any, score: ScoreBatches, waiting: dict[Path, Shard], device: str | None
) -> Iterator[tuple[Path, Counts]]:
    """Part and counts of each shard as they are finished; `RuntimeError` at the end when some were not."""
    task, room = remote(ray, score_shard, device)
    shared, call, remaining = put(ray, score), uuid.uuid4().hex, iter(waiting.items())
    running: dict[Any, Path] = {}
    failed: dict[str, str] = {}
    finished = 0
    while True:
        for path, shard in itertools.islice(remaining, max(0, room() - len(running))):
            running[task.remote(shared, shard, str(path), call)] = path
        if not running:
            break
        for done in ray.wait(list(running))[0]:
            path = running.pop(done)
            try:
                found = Counts(*ray.get(done))
            except ray.exceptions.RayError as error:
                failed[str(waiting[path])] = reason(error)
            else:
                finished += 1
                yield path, found
        if len(failed) >= PATIENCE and not finished:
            break
    if failed:
        first, why = next(iter(failed.items()))
        raise RuntimeError(
            f"{len(failed)} of {len(waiting)} shards were not finished; the first, {first}: {why}. "
            f"{finished or 'none'} {'was' if finished == 1 else 'were'}, and the same command goes on with the others"
        )


def score_shard(score: ScoreBatches, shard: Shard, part: str, call: str) -> Counts:
    """Score a shard and write its part; what a worker does.

    Args:
        score: the scorers, as they came; those that this process has made for the same `call` are taken instead.
        shard: what to read.
        part: the file to write.
        call: the name of this call of `score_dataset`: scorers of two calls may differ though their fingerprints agree,
            for functions count by their names.

    Raises:
        RuntimeError: a folder that this machine does not see, or files that changed while they were read.
    """
    path = Path(part)
    if not (path.parent / MANIFEST).is_file():
        raise RuntimeError(f"{platform.node()} does not see {path.parent}: it must be a folder that all share")
    if call not in KEPT:  # a worker is asked many times, and makes the scorers once
        KEPT.clear()
    score = KEPT.setdefault(call, score)
    columns: dict[str, list[float]] = {name: [] for name in score.names}
    names, problems = [], []

    def work(rows: Iterator[Item], ahead: bool) -> Iterator[list[tuple[str, dict[str, float], str]]]:
        return ([row] for row in score.stream(rows, ahead=ahead))

    with naming(path), Journal(begun_path(path)) as journal:

        def readable(row: Item) -> Item:
            return row._replace(image=ValueError(LEFT_OUT)) if journal.leaves_out(row.name) else row

        for ((name, scores, problem),) in journal.watch(map(readable, shard.images()), lambda row: row.name, work):
            names.append(name)
            problems.append(problem)
            for column, value in scores.items():
                columns[column].append(value)
        if shard.has_changed():
            raise RuntimeError("its files changed while they were read")
        return write_part(path, names, columns, problems)

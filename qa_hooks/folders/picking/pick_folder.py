"""The best images of a folder in a folder of their own, with a manifest and a picture: what `qa-hooks pick` calls.

OUT/images/...         the kept images under their relative names, copies or links; point a trainer here
OUT/manifest.csv       path,score,kept,rank of every image, best first
OUT/contact_sheet.png  best to worst
OUT/scores.csv         the table (`qa_hooks.folders.scoring.score_table`), from which an interrupted run goes on
"""

from __future__ import annotations

import csv
import math
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qa_hooks._base.containers import file_behind, member_file
from qa_hooks._base.files import check_writable, exclusive, whole_file
from qa_hooks._base.processes import rank, together
from qa_hooks._base.progress import counted
from qa_hooks._base.text import plural, printable, true_cell
from qa_hooks.drawing.contact_sheet import contact_sheet
from qa_hooks.features import create_extractor
from qa_hooks.folders.picking.filter_table import choose_best
from qa_hooks.folders.scoring.growing import csv_line, number
from qa_hooks.folders.scoring.score_folder import Spec, score_folder
from qa_hooks.folders.scoring.score_table import TEXT, ScoreTable, read_scores
from qa_hooks.images import load_image, save_image
from qa_hooks.scorers import create_scorer
from qa_hooks.weighting.picker import Picked, pick

SHOWN = 24  # images of the contact sheet from each end of the kept and of the dropped ones
SIDE = 144  # pixels of each of them


@dataclass(frozen=True, eq=False)
class PickedFolder:
    """What `pick_folder` did.

    Attributes:
        out: the folder that it made.
        kept: relative paths, best first.
        table: the scores of all images.
        scorer_name, higher_is_better: what they were picked by.
        recall: what it does to recall, in words, when that was asked for.
    """

    out: Path
    kept: list[str]
    table: ScoreTable
    scorer_name: str
    higher_is_better: bool
    recall: str = ""

    @property
    def failures(self) -> dict[str, str]:
        """Images that could not be scored: path -> message."""
        return self.table.failures

    def summary(self) -> str:
        """One line."""
        paths, scores = self.table.per_image(self.scorer_name)
        known = dict(zip(paths, scores.tolist(), strict=True))
        ends = f"{known[self.kept[0]]:.4g} to {known[self.kept[-1]]:.4g}"
        total = len(set(paths) | set(self.failures))
        problems = f"; {len(self.failures)} with problems" if self.failures else ""
        kept = f"kept {len(self.kept)} of {plural(total, 'image')}"
        return f"{self.out}: {kept}, {self.scorer_name} {ends}{problems}{self.recall}"


def pick_folder(
    folder: str | Path,
    scorer: Spec | None,
    out: str | Path,
    *,
    scores: str | Path | ScoreTable | None = None,
    by: str | None = None,
    keep: float | int = 0.9,
    link: bool = False,
    reference: str | Path | None = None,
    grid: str | None = None,
    batch_size: int = 32,
    device: str | torch.device | None = None,
    recall: bool = False,
    resume: bool = True,
    progress: bool = True,
) -> PickedFolder:
    """Score a folder and put its best images into another one; the same call continues an interrupted one.

    A repeated call keeps copies that are still right (by size and time) and takes away those that are no longer kept.

    Args:
        folder: image files, sub-folders included.
        scorer: whatever `create_scorer` takes; None with `scores`.
        out: the folder to make, not inside `folder`; what comes into it is described above.
        scores: a table of the folder's images that is there already, or its path (a CSV, or a folder of Parquet
            files), instead of scoring; there is no OUT/scores.csv then.
        by: the column of that table; needed when there are several scorers.
        keep: a share in (0, 1] of the images that have a score, or a whole number of images.
        link: symbolic links instead of copies.
        recall: also report how much of the variety of all scored images the kept ones have, in the features of the
            scorer, or of the extractor "random" where it has none; reads the images once more.
        reference, grid, batch_size, device, resume, progress: as in `score_folder`.

    Raises:
        ValueError: folders that contain each other, an `out` that holds something else, what `score_folder` raises.
    """
    folder, out = Path(folder), Path(out)
    target = out / "images"
    inside, around = folder.resolve(), target.resolve()
    if around.is_relative_to(inside) or inside.is_relative_to(around):
        raise ValueError(
            f"what is picked goes into a folder of its own: {str(out)!r} must not lie inside {str(folder)!r}, nor "
            "around it"
        )
    # A keep that makes no sense is told before hours of scoring.
    choose_best(torch.zeros(1, device="cpu", dtype=torch.float32), keep)
    if (scorer is None) == (scores is None) or (by is not None and scores is None):
        raise ValueError("pick by a scorer, scorer=, or by a column of a table, scores= and by=")
    made = None if scorer is None else create_scorer(scorer)
    check_writable(out, name="out")
    if target.is_dir() and any(target.iterdir()) and not (out / "manifest.csv").is_file():
        raise ValueError(f"{target} holds files that no earlier pick has put there: choose another folder")
    if made is None:
        table, name, higher = _read(scores, by, folder, reference=reference, grid=grid)
    else:
        options = {"reference": reference, "batch_size": batch_size, "device": device, "resume": resume, "grid": grid}
        table = score_folder(folder, made, out / "scores.csv", progress=progress, **options)  # type: ignore[arg-type]
        name, higher = made.name, made.higher_is_better
    paths, values = table.per_image(name)
    best = choose_best(values if higher else -values, keep)
    kept = [paths[index] for index in best.kept]
    told = ""
    if recall:
        extractor = getattr(made, "extractor", None) or create_extractor("random")
        files, share = [folder / path for path in paths], len(kept) / len(best.order)
        by_score = values if made is not None or higher else -values  # without a scorer higher is better
        told = _recall(pick(files, made, scores=by_score, keep=share, extractor=extractor, progress=progress))
    with together():
        if rank() == 0:
            ranked = [(paths[index], float(values[index])) for index in best.order]
            rows = _manifest(ranked, len(kept), (*paths, *table.failures))
            with exclusive(out / "manifest.csv"):  # another pick may have begun when the table was finished
                _refuse_strangers(out, {str(row[0]) for row in rows})
                _write_manifest(out / "manifest.csv", rows)
                _place(folder, target, kept, link=link, progress=progress)
                sheet = _sheet(folder, f"{name} ({'higher' if higher else 'lower'} is better)", rows, len(kept))
                save_image(sheet, out / "contact_sheet.png")
    return PickedFolder(out, kept, table, name, higher, told)


def _read(
    scores: Any, by: str | None, folder: Path, *, reference: Any, grid: str | None
) -> tuple[ScoreTable, str, bool]:
    """A table that is there already, its column and direction; `ValueError` when it is not of this folder."""
    if reference is not None or grid is not None:
        raise ValueError("reference= and grid= are for scoring: the table of scores= was made with its own")
    table = (scores if isinstance(scores, ScoreTable) else read_scores(scores)).by_file()
    name, higher = table.chosen(by)
    lost = [path for path in table.paths if not _is_there(folder, path)]
    if lost:
        raise ValueError(
            f"{len(lost)} of {plural(len(table), 'image')} of the table are not in {folder}, the first is {lost[0]}: "
            "is the table of another folder? Rows of Parquet files and members of tars cannot be picked"
        )
    return table, name, higher


def _is_there(folder: Path, name: str) -> bool:
    """Below the folder, as a file or as a member of a file of many."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        return False
    try:
        return file_behind(folder / name).exists()
    except OSError:
        return False


def _recall(picked: Picked) -> str:
    """Words about the variety that is left. Only recall says something: a part of a set has precision 1 in it."""
    if picked.before is None or picked.after is None:
        return "; too few images for a recall"
    before, after = picked.before.recall, picked.after.recall
    return f"; recall of the whole set {after:.3f}, of as many drawn at random {before:.3f}"


def _refuse_strangers(out: Path, own: set[str]) -> None:
    """Only what this pick, or an earlier one into the same folder, has put there may be there."""
    if (out / "manifest.csv").is_file():
        with (out / "manifest.csv").open(**TEXT) as file:
            own |= {true_cell(row[0]) for row in csv.reader(file) if row}
    for name in _files(out / "images"):
        if name not in own:
            raise ValueError(f"{out / 'images' / name} is not of this pick or an earlier one: choose another folder")


def _files(root: Path) -> list[str]:
    """Relative names of all files and links below a folder; links are not followed."""
    found = []
    for parent, _, names in os.walk(root):
        found += [Path(parent, name).relative_to(root).as_posix() for name in names]
    return found


def _manifest(ranked: Sequence[tuple[str, float]], kept: int, paths: Iterable[str]) -> list[tuple[Any, ...]]:
    """The rows of the manifest: the ranked images, best first, then those of all paths that have no score."""
    scored = {path for path, _ in ranked}
    rows: list[tuple[Any, ...]] = [
        (path, number(score), int(n <= kept), n) for n, (path, score) in enumerate(ranked, 1)
    ]
    return rows + [(path, "nan", 0, "") for path in dict.fromkeys(paths) if path not in scored]


def _write_manifest(path: Path, rows: Sequence[tuple[object, ...]]) -> None:
    with whole_file(path) as partial, partial.open("w", **TEXT) as file:
        file.write(csv_line(["path", "score", "kept", "rank"]))
        file.writelines(csv_line(row) for row in rows)


def _place(folder: Path, target: Path, kept: Sequence[str], *, link: bool, progress: bool) -> None:
    """Copies or links of the kept files, and no others; each appears whole or not at all."""
    inside = next((name for name in kept if not (folder / name).is_file()), None)
    if link and inside is not None:
        raise ValueError(f"{inside} is no file of its own, so nothing can link to it: copy them, with link=False")
    target.mkdir(exist_ok=True)
    for name in set(_files(target)) - set(kept):
        (target / name).unlink()
    beside = target.parent / ".partial"  # not among the images
    for name in counted(kept, "links" if link else "copies", shown=progress):
        source, copy = folder / name, target / name
        if not source.is_file():
            copy.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(copy) as partial:
                partial.write_bytes(member_file(source))
            continue
        source = source.resolve()
        if copy.is_symlink():
            if link and copy.readlink() == source:
                continue
        elif not link and copy.is_file():
            old, new = copy.stat(), source.stat()
            if (old.st_size, old.st_mtime_ns) == (new.st_size, new.st_mtime_ns):
                continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        beside.unlink(missing_ok=True)
        if link:
            beside.symlink_to(source)
        else:
            shutil.copy2(source, beside)
        beside.replace(copy)


def _sheet(folder: Path, scorer: str, rows: Sequence[tuple[Any, ...]], kept: int) -> Tensor:
    """The best and the worst of the kept images, then of the dropped ones, each with its name and score."""
    ranked = [(str(path), float(score)) for path, score, _, place in rows if place != ""]
    images: list[Tensor | None] = []
    labels: list[str] = []

    def heading(text: str) -> None:
        images.append(None)
        labels.append(text)

    for title, part in (("kept", ranked[:kept]), ("dropped", ranked[kept:])):
        if part:
            heading(f"{title}: {len(part)} of {len(ranked)} by {scorer}, best to worst")
        for place, (path, score) in enumerate(part):
            if len(part) > 2 * SHOWN and SHOWN <= place < len(part) - SHOWN:
                if place == SHOWN:
                    heading(f"... {len(part) - 2 * SHOWN} between ...")
                continue
            images.append(load_image(folder / path))
            labels.append(f"{printable(path, one_line=True)}\n{score:.4g}")
    sides = [max(image.shape[1:]) for image in images if image is not None]
    scale = max(1, 64 // max(sides))
    columns = min(8, max(4, math.ceil(math.sqrt(len(sides)))))
    return contact_sheet(images, labels, columns=columns, scale=scale, max_side=SIDE, detail=SIDE)

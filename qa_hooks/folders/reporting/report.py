"""`report_runs`: one page of HTML about one run or several, to be opened from a disk or mailed."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qa_hooks._base.files import check_writable, write_text
from qa_hooks._base.headers import json_lines, read_json
from qa_hooks.folders.labels import labels
from qa_hooks.folders.reporting.page import page
from qa_hooks.folders.reporting.series import Run
from qa_hooks.writers import read_run_log
from qa_hooks.writers.run_log import NAME


def report_runs(runs: Sequence[str | Path], output: str | Path, *, headline: str = "") -> Path:
    """Write a page with last and best values, curves with bands, pictures, the best checkpoint, alarms and settings.

    Nothing in it comes from another file or host.

    Args:
        runs: folders that `Hooks(log_dir=...)` or `qa-hooks watch` wrote.
        output: the .html file.
        headline: a line to stand below the title.

    Returns:
        The output's path.

    Raises:
        ValueError: no runs, two of one folder, or a folder without values and pictures.
        ImportError: matplotlib is not installed.
    """
    output = Path(output)
    if output.suffix != ".html" or output.is_dir():
        raise ValueError(f"output must be a file ending in .html, got {str(output)!r}")
    check_writable(output.parent, name="output")
    write_text(output, report_page(runs, headline=headline))
    return output


def report_page(runs: Sequence[str | Path], *, headline: str = "") -> str:
    """The HTML that `report_runs` writes; it raises the same."""
    folders = [Path(run) for run in runs]
    if not folders or len({folder.resolve() for folder in folders}) < len(folders):
        raise ValueError(f"runs must be folders that differ, got {[str(folder) for folder in folders]}")
    return page([read_run(folder, name) for folder, name in zip(folders, labels(folders), strict=True)], headline)


def is_run(folder: Path) -> bool:
    """Whether a folder holds a log."""
    return (folder / NAME).is_file() or any(folder.glob("*tfevents*"))


def read_run(folder: Path, name: str) -> Run:
    """Read one run; what is missing is left out, but for the values."""
    from tensorboard.backend.event_processing.event_accumulator import IMAGES, TENSORS, EventAccumulator

    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    values = read_run_log(folder) if (folder / NAME).is_file() else {}
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it warns of runs that were started again
    events = EventAccumulator(str(folder), size_guidance={IMAGES: 0, TENSORS: 0})
    events.Reload()
    tags = events.Tags()
    pictures = {
        tag: [(event.step, event.encoded_image_string) for event in events.Images(tag)] for tag in tags["images"]
    }
    pictures = {tag: found for tag, found in pictures.items() if found}  # TensorBoard drops those of steps done again
    if not values and not pictures:
        below = [path.parent.as_posix() for path in sorted(folder.rglob(NAME))]
        raise ValueError(
            f"{folder} holds no values and no pictures: it is a run that logged nothing, or no folder that "
            "Hooks(log_dir=...) or qa-hooks watch wrote" + f"; runs below it: {' '.join(below[:9])}" * bool(below)
        )
    texts = {
        tag: [(event.step, event.tensor_proto.string_val[0].decode()) for event in events.Tensors(tag)]
        for tag in tags["tensors"]
        if tag.endswith("/text_summary")
    }
    settings = next((found[-1][1] for tag, found in texts.items() if tag.startswith("qa_hooks/settings") and found), "")
    best = [_json(path) for path in sorted(folder.rglob("best.json"))]
    raised = list(json_lines(folder / "alarms.jsonl")) if (folder / "alarms.jsonl").is_file() else []
    for tag, found in texts.items():
        if which := re.fullmatch(r"qa_eval/(.*)/alarm/text_summary", tag):
            raised += [{"step": step, "key": which[1], "message": message} for step, message in found]
    told = {tag: [(line["step"], line["about"]) for line in lines if "about" in line] for tag, lines in values.items()}
    about = {tag: said for tag, said in told.items() if said}
    alarms = [alarm for alarm in raised if isinstance(alarm, dict)]
    return Run(name, values, about, pictures, settings, [found for found in best if found], alarms)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except ValueError:  # of another program
        return {}
    return found if isinstance(found, dict) else {}

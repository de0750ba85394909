"""`report_runs`: one page of HTML about one run or several, to be opened from a disk or mailed."""

from __future__ import annotations

import base64
import html
import logging
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from qa_hooks._base.files import check_writable, write_text
from qa_hooks._base.headers import json_lines, read_json
from qa_hooks.folders.labels import labels
from qa_hooks.folders.reporting.curves import curve
from qa_hooks.writers import read_run_log
from qa_hooks.writers.run_log import NAME

GROUPS = {
    "qa_eval": "Measured",
    "qa_loss": "Losses and penalties",
    "qa_train": "Training",
    "qa_weight": "Weights",
    "qa_perf": "Cost",
}
SHOWN = 4  # pictures of a tag: the first, the last, and between
NO_VERDICT = """There is no verdict between the runs: a run keeps the mean of its scores with an interval, and not the
score of each image. Of runs that were measured on the same images (one seed, one validation set), one may be better by
more than chance although the intervals overlap, since what is hard for one is hard for the other. That is found from
the images, pair by pair:
<code>qa-hooks compare REAL A B --scorer SCORER --paired</code> for folders with files of the same
names, or <code>qa_hooks.evaluation.compare_checkpoints</code> for two networks."""
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 }
td, th { border: 1px solid #ccc; padding: .3em .6em; text-align: left }
td.number { text-align: right; font-variant-numeric: tabular-nums } .alarm { color: #a00 }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(340px, 100%), 1fr)); gap: 8px }
.curves svg { width: 100%; height: auto }
figure { display: inline-block; margin: 0 12px 12px 0; vertical-align: top; max-width: 100%; overflow-x: auto }
figure img { max-width: 280px } summary { display: block; cursor: zoom-in }
details[open] > summary { cursor: zoom-out } details[open] img { max-width: none }
pre { background: #f5f5f5; padding: .8em; overflow-x: auto; white-space: pre-wrap }
"""


class Run(NamedTuple):
    """What a folder of a run holds.

    Attributes:
        name: the folder's, with as much of its path as tells it from the others.
        values: lines by tag (`read_run_log`).
        pictures: `(step, PNG)` by tag.
        better: "higher" or "lower" by tag, where its description says which is better.
        changes: the tags whose values compare a measurement with the one before it, and so have no best.
        settings: text of the run's settings; "" where it has none.
        best: what each `best.json` below the folder says.
        alarms: what `alarms.jsonl` says.
    """

    name: str
    values: dict[str, list[dict[str, Any]]]
    pictures: dict[str, list[tuple[int, bytes]]]
    better: dict[str, str]
    changes: frozenset[str]
    settings: str
    best: list[dict[str, Any]]
    alarms: list[dict[str, Any]]


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
    written = [tag for tag in tags["tensors"] if tag.startswith("qa_hooks/settings")]
    texts = [event.tensor_proto.string_val[0].decode() for event in events.Tensors(written[0])] if written else []
    best = [_json(path) for path in sorted(folder.rglob("best.json"))]
    alarms = folder / "alarms.jsonl"
    raised = list(json_lines(alarms)) if alarms.is_file() else []
    told = {tag: metadata.summary_description for tag, metadata in events.summary_metadata.items()}
    better = {tag: found[1] for tag, text in told.items() if (found := re.search(r"\b(higher|lower) is better", text))}
    changes = frozenset(tag for tag, text in told.items() if re.search(r"\bsince the last (measurement|panel)\b", text))
    settings = texts[-1] if texts else ""
    return Run(name, values, pictures, better, changes, settings, [found for found in best if found], raised)


def page(runs: Sequence[Run], headline: str = "") -> str:
    """The whole HTML."""
    title = ", ".join(run.name for run in runs)
    parts = [f"<h1>{html.escape(title)}</h1>", f"<p>{html.escape(headline)}</p>" * bool(headline), _summary(runs)]
    for group, heading in GROUPS.items():
        tags = sorted({tag for run in runs for tag in run.values if tag.startswith(f"{group}/")})
        if tags:
            charts = "\n".join(_chart(runs, tag) for tag in tags)
            parts.append(f'<h2>{heading}</h2><div class="curves">{charts}</div>')
    for run in runs:
        parts += _pictures(run)
        if run.settings:
            parts.append(f"<h2>Settings of {html.escape(run.name)}</h2><pre>{html.escape(run.settings)}</pre>")
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>' + "\n".join(parts) + "</body></html>\n"


def _summary(runs: Sequence[Run]) -> str:
    """The last and the best values with their intervals, for each run; the best checkpoints; the alarms."""
    tags = sorted({tag for run in runs for tag in run.values if tag.startswith("qa_eval/")})
    head = "".join(f"<th>{html.escape(run.name)}: last</th><th>best</th>" for run in runs)
    rows = [f"<tr><th>value</th>{head}</tr>"]
    for tag in tags:
        better = next((run.better[tag] for run in runs if tag in run.better), "")
        to_beat = "" if any(tag in run.changes for run in runs) else better
        found = [run.values.get(tag, []) for run in runs]
        parts = [part for lines in found for part in (lines[-1:], _best(lines, to_beat))]
        cells = "".join(f'<td class="number">{"".join(map(_at_step, part))}</td>' for part in parts)
        label = html.escape(tag.removeprefix("qa_eval/").removesuffix("/value"))
        rows.append(f"<tr><td>{label}{f' <small>({better} is better)</small>' * bool(better)}</td>{cells}</tr>")
    lines = []
    for run in runs:
        name = html.escape(run.name)
        for best in run.best:
            key = str(best.get("metric", best.get("key", "value")))
            measure = str(best.get("spec") or "").partition("[")[0]  # "distortion" alone does not say which
            key = html.escape(f"{key} of {measure}" if measure else key)
            lines.append(f"<li>{name}: best {key} at step {best.get('step')}: {_interval(best)}</li>")
        lines += [f'<li class="alarm">{name}: {html.escape(_words(alarm))}</li>' for alarm in run.alarms]
    judged = any(sum(any("low" in line for line in run.values.get(tag, [])) for run in runs) > 1 for tag in tags)
    return f"<table>{''.join(rows)}</table>{f'<p>{NO_VERDICT}</p>' * judged}<ul>{''.join(lines)}</ul>"


def _pictures(run: Run) -> list[str]:
    heading = (
        f"<h2>Pictures of {html.escape(run.name)}</h2><p>A click shows a picture pixel by pixel, or smaller again.</p>"
    )
    parts = [heading] if run.pictures else []
    for tag, found in sorted(run.pictures.items()):
        chosen = sorted({round(n * (len(found) - 1) / max(1, SHOWN - 1)) for n in range(SHOWN)})
        figures = "".join(_figure(*found[n]) for n in chosen)
        parts.append(f"<h3>{html.escape(tag.removeprefix('qa_images/'))}</h3>{figures}")
    return parts


def _figure(step: int, png: bytes) -> str:
    data = base64.b64encode(png).decode()
    picture = (
        f'<details><summary><img src="data:image/png;base64,{data}" alt=""></summary></details>'  # a click opens it
    )
    return f"<figure>{picture}<figcaption>step {step}</figcaption></figure>"


def _chart(runs: Sequence[Run], tag: str) -> str:
    return curve({run.name: run.values[tag] for run in runs if tag in run.values}, tag)


def _best(lines: Sequence[Mapping[str, Any]], better: str) -> Sequence[Mapping[str, Any]]:
    """The line of the best value, the first of equal ones; none where no direction is known, or no value is finite."""
    finite = [line for line in lines if line.get("value") is not None and math.isfinite(line["value"])]
    if not better or not finite:
        return []
    return [(max if better == "higher" else min)(finite, key=lambda line: line["value"])]


def _at_step(line: Mapping[str, Any]) -> str:
    return f"{_interval(line)} <small>(step {line['step']})</small>"


def _interval(found: Mapping[str, Any]) -> str:
    def number(key: str) -> str:
        return "nan" if found.get(key) is None else f"{found[key]:.4g}"

    return number("value") + (f" [{number('low')}, {number('high')}]" if found.get("low") is not None else "")


def _words(alarm: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in alarm.items())


def _json(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except ValueError:  # of another program
        return {}
    return found if isinstance(found, dict) else {}

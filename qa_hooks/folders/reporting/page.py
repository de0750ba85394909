"""The HTML of `report_runs`: alarms, a table, charts, pictures and settings, which nothing else is needed for."""

from __future__ import annotations

import base64
import html
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from qa_hooks._base.checks import warn
from qa_hooks._base.text import plural
from qa_hooks.folders.reporting.curves import curve
from qa_hooks.folders.reporting.series import Run, Series, series_of

GROUPS = {
    "qa_eval": "Measured",
    "qa_loss": "Losses and penalties",
    "qa_train": "Training",
    "qa_weight": "Weights",
    "qa_perf": "Cost",
}
SHOWN = 4  # pictures of a tag: the first, the last, and between
ALARMS = 5  # of a run that stand unfolded, each the first of its key
GUARD = {"severity", "high_frequency"}  # a guard's numbers have one of these beside them
NO_VERDICT = """There is no verdict between the runs: a run keeps the mean of its scores with an interval, and not the
score of each image. Of runs that were measured on the same images (one seed, one validation set), one may be better by
more than chance although the intervals overlap, since what is hard for one is hard for the other. That is found from
the images, pair by pair:
<code>qa-hooks compare REAL A B --scorer SCORER --paired</code> for folders with files of the same
names, or <code>qa_hooks.evaluation.compare_checkpoints</code> for two networks."""
NOT_COMPARED = (
    "Some values were not measured in one way. Values with different specs are not compared: each spec has a row and a "
    "chart of its own"
)
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 } .wide { overflow-x: auto }
td, th { border: 1px solid #ccc; padding: .3em .6em; text-align: left }
td.number { text-align: right; font-variant-numeric: tabular-nums }
.alarm { border-left: 4px solid #a00; padding: .3em .8em; background: #fbeeee } .alarm b { color: #a00 }
.note { border-left: 4px solid #a60; padding: .3em .8em; background: #fbf5ea } .note p { margin: .3em 0 }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(340px, 100%), 1fr)); gap: 8px }
.curves svg { width: 100%; height: auto } code { background: #f5f5f5; overflow-wrap: anywhere }
figure { display: inline-block; margin: 0 12px 12px 0; vertical-align: top; max-width: 100%; overflow-x: auto }
figure img { max-width: 280px } summary { cursor: pointer } figure summary { display: block; cursor: zoom-in }
figure details[open] > summary { cursor: zoom-out } figure details[open] img { max-width: none }
"""


def page(runs: Sequence[Run], headline: str = "") -> str:
    """The whole HTML; it warns where values were not measured in one way."""
    title = ", ".join(run.name for run in runs)
    parts = [f"<h1>{html.escape(title)}</h1>", f"<p>{html.escape(headline)}</p>" * bool(headline)]
    tags = sorted({tag for run in runs for tag in run.values})
    found = {
        group: [s for tag in tags if tag.startswith(f"{group}/") for s in series_of(runs, tag)] for group in GROUPS
    }
    measured, guards = found["qa_eval"], _guards(tags)
    found["qa_eval"] = [series for series in measured if _base(series.tag) not in guards]
    parts += [*_alarms(runs, guards), _not_compared(measured), _table(runs, found["qa_eval"]), _best_steps(runs)]
    parts += [_guard(runs, base, [series for series in measured if _base(series.tag) == base]) for base in guards]
    parts.append(_specs(measured))
    for group, heading in GROUPS.items():
        if found[group]:
            parts += [f"<h2>{heading}</h2>", _charts(runs, found[group])]
    for run in runs:
        parts += _pictures(run)
        if run.settings:
            parts += [f"<h2>Settings of {html.escape(run.name)}</h2>", _settings(run.settings)]
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>' + "\n".join(parts) + "</body></html>\n"


# -- alarms and remarks --------------------------------------------------------------------------------------------


def _guards(tags: Sequence[str]) -> list[str]:
    """What the tags of guards begin with: "qa_eval/reward_guard"."""
    found = {_base(tag) for tag in tags if tag.startswith("qa_eval/") and tag.rpartition("/")[2] in GUARD}
    return sorted(found)


def _alarms(runs: Sequence[Run], guards: Sequence[str]) -> list[str]:
    """A paragraph for each alarm; those that come again are folded."""
    parts = []
    for run in runs:
        alarms = list(run.alarms)
        for base in guards:
            lines = [line for line in run.values.get(f"{base}/alarms", []) if line.get("value")]
            key = base.partition("/")[2]
            if lines and not any(alarm.get("key") == key for alarm in run.alarms):  # a log of before has no words
                alarms.append({"step": lines[0]["step"], "key": key, "message": "the log has no words of it"})
        firsts = {str(alarm.get("key", alarm)): alarm for alarm in reversed(alarms)}
        shown = [alarm for alarm in alarms if any(alarm is first for first in firsts.values())][:ALARMS]
        rest = [alarm for alarm in alarms if not any(alarm is first for first in shown)]
        parts += [_alarm(run.name, alarm) for alarm in shown]
        if rest:
            more = f"{plural(len(rest), 'further alarm')} of {html.escape(run.name)}"
            folded = "".join(_alarm(run.name, alarm) for alarm in rest)
            parts.append(f"<details><summary>{more}</summary>{folded}</details>")
    return parts


def _alarm(run: str, alarm: Mapping[str, Any]) -> str:
    if "message" in alarm:
        key = f" of {alarm['key']}" if alarm.get("key") else ""
        where, words = f"alarm{key} at step {alarm.get('step')}", str(alarm["message"])
    else:
        where, words = "alarm", ", ".join(f"{key} {value}" for key, value in alarm.items())
    return f'<p class="alarm"><b>{html.escape(f"{run}: {where}")}</b>: {html.escape(words)}</p>'


def _not_compared(measured: Sequence[Series]) -> str:
    """What was measured in several ways, each way with its runs; also as a warning."""
    ways: dict[str, dict[str, list[str]]] = {}
    for series in measured:
        if series.spec:
            ways.setdefault(_base(series.tag), {}).setdefault(series.spec, list(series.runs))
    if not ways:
        return ""
    lines = []
    for base, specs in ways.items():
        told = "; ".join(f"{spec} ({', '.join(names)})" for spec, names in specs.items())
        lines.append(f"{base.partition('/')[2]}: {told}")
    more = f"; and {len(lines) - 3} more" if len(lines) > 3 else ""
    warn(f"{NOT_COMPARED}: {'; '.join(lines[:3])}{more}")
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f'<div class="note"><p>{NOT_COMPARED}:</p><ul>{items}</ul></div>'


# -- values ----------------------------------------------------------------------------------------------------------


def _table(runs: Sequence[Run], measured: Sequence[Series]) -> str:
    """The last and the best values with their intervals, for each run, and what is to be said of them."""
    if not measured:
        return ""
    head = "".join(f"<th>{html.escape(run.name)}: last</th><th>best</th>" for run in runs)
    rows = [f"<tr><th>value</th>{head}</tr>"]
    for series in measured:
        better = "" if series.about.change else series.about.better
        found = [series.runs.get(run.name, []) for run in runs]
        parts = [part for lines in found for part in (lines[-1:], _best(lines, better))]
        cells = "".join(f'<td class="number">{"".join(map(_at_step, part))}</td>' for part in parts)
        label = html.escape(series.tag.removeprefix("qa_eval/").removesuffix("/value"))
        label += f" <small>({series.about.better} is better)</small>" * bool(series.about.better)
        label += " <small>(untrained features)</small>" * bool(series.about.doubt)
        label += f"<br><small>{html.escape(series.spec)}</small>" * bool(series.spec)
        rows.append(f"<tr><td>{label}</td>{cells}</tr>")
    doubts = sorted({series.about.doubt for series in measured} - {""})
    said = "".join(f"<p>Untrained features: {html.escape(doubt)}.</p>" for doubt in doubts)
    judged = any(sum(any("low" in line for line in lines) for lines in s.runs.values()) > 1 for s in measured)
    return f'<div class="wide"><table>{"".join(rows)}</table></div>{said}{f"<p>{NO_VERDICT}</p>" * judged}'


def _best_steps(runs: Sequence[Run]) -> str:
    lines = []
    for run in runs:
        for best in run.best:
            key = str(best.get("metric", best.get("key", "value")))
            measure = str(best.get("spec") or "").partition("[")[0]  # "distortion" alone does not say which
            key = html.escape(f"{key} of {measure}" if measure else key)
            step = html.escape(str(best.get("step")))
            lines.append(f"<li>{html.escape(run.name)}: best {key} at step {step}: {_interval(best)}</li>")
    return f"<ul>{''.join(lines)}</ul>" if lines else ""


def _guard(runs: Sequence[Run], base: str, measured: Sequence[Series]) -> str:
    """A guard's numbers, folded: its alarms stand above."""
    summary = f"{html.escape(base.partition('/')[2])}: {plural(len(measured), 'number')} of the guard"
    having = [run for run in runs if any(run.name in series.runs for series in measured)]
    return f"<details><summary>{summary}</summary>{_table(having, measured)}{_charts(runs, measured)}</details>"


def _specs(measured: Sequence[Series]) -> str:
    """How each value was made, folded."""
    lines = [
        f"<li>{html.escape(series.tag.removeprefix('qa_eval/'))}: {html.escape(str(series.about))}</li>"
        for series in measured
        if series.about.words and series.about.spec
    ]
    return f"<details><summary>How the values were made</summary><ul>{''.join(lines)}</ul></details>" if lines else ""


def _charts(runs: Sequence[Run], found: Sequence[Series]) -> str:
    names = [run.name for run in runs]
    charts = []
    for series in found:
        below = [series.spec] if series.spec else ["untrained features"] if series.about.doubt else []
        charts.append(curve(series.runs, "\n".join([series.tag, *below]), names))
    return f'<div class="curves">{"".join(charts)}</div>'


def _best(lines: Sequence[Mapping[str, Any]], better: str) -> Sequence[Mapping[str, Any]]:
    """The line of the best value, the first of equal ones; none where no direction is known, or nothing is better.

    Nothing is better where no value is finite, and where all of several are equal.
    """
    finite = [line for line in lines if line.get("value") is not None and math.isfinite(line["value"])]
    if not better or not finite or (len(finite) > 1 and len({line["value"] for line in finite}) == 1):
        return []
    return [(max if better == "higher" else min)(finite, key=lambda line: line["value"])]


def _at_step(line: Mapping[str, Any]) -> str:
    return f"{_interval(line)} <small>(step {line['step']})</small>"


def _interval(found: Mapping[str, Any]) -> str:
    def number(key: str) -> str:
        value = found.get(key)
        return f"{value:.4g}" if isinstance(value, (int, float)) else "nan"

    return number("value") + (f" [{number('low')}, {number('high')}]" if found.get("low") is not None else "")


def _base(tag: str) -> str:
    return tag.rpartition("/")[0]


# -- pictures and settings -------------------------------------------------------------------------------------------


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


def _settings(text: str) -> str:
    """The Markdown of `qa_hooks.callbacks.settings.settings_text`, line by line; all else in it is text.

    Example:
        >>> _settings("**tracked**\\n\\n- `a: <b>`\\n- `c`\\n\\ntorch 2")
        '<h3>tracked</h3><ul><li><code>a: &lt;b&gt;</code></li><li><code>c</code></li></ul><p>torch 2</p>'
    """
    forms = {
        r"\*\*(.*)\*\*": "<h3>{}</h3>",
        r"- `(.*)`": "<li><code>{}</code></li>",
        r"`(.*)`": "<p><code>{}</code></p>",
    }
    parts = []
    for line in filter(None, text.splitlines()):
        found = [
            form.format(html.escape(match[1])) for rule, form in forms.items() if (match := re.fullmatch(rule, line))
        ]
        parts.append(found[0] if found else f"<p>{html.escape(line)}</p>")
    return re.sub(r"(?:<li>.*?</li>)+", r"<ul>\g<0></ul>", "".join(parts))

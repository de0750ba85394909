"""What belongs in one curve: the values of a tag that were measured in one way, of all runs that have them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Lines = list[dict[str, Any]]


class Run(NamedTuple):
    """What a folder of a run holds.

    Attributes:
        name: the folder's, with as much of its path as tells it from the others.
        values: lines by tag (`read_run_log`).
        about: what the values of a tag are, and from which step on.
        pictures: `(step, PNG)` by tag.
        settings: text of the run's settings; "" where it has none.
        best: what each `best.json` below the folder says.
        alarms: `{"step", "key", "message"}`, or what else a line of `alarms.jsonl` says.
    """

    name: str
    values: dict[str, Lines]
    about: dict[str, list[tuple[int, str]]]
    pictures: dict[str, list[tuple[int, bytes]]]
    settings: str
    best: list[dict[str, Any]]
    alarms: list[dict[str, Any]]


class Series(NamedTuple):
    """The values of one row and of one chart.

    Attributes:
        tag: of the values.
        about: what they are; "" where no run says so.
        spec: how they were made, where the values of this tag were made in more than one way; else "".
        doubt: what is to be said beside values in untrained features; "" for others.
        runs: lines by the name of the run.
    """

    tag: str
    about: str
    spec: str
    doubt: str
    runs: dict[str, Lines]

    @property
    def better(self) -> str:
        """ "higher" or "lower", where it is known which is better."""
        found = re.search(r"\b(higher|lower) is better", self.about)
        return found[1] if found else ""

    @property
    def is_change(self) -> bool:
        """Whether a value compares a measurement with the one before it; such values have no best."""
        return re.search(r"\bsince the last (measurement|panel)\b", self.about) is not None


def spec_of(about: str) -> str:
    """How a value was made, as far as the words about it say so; "" where they do not.

    Example:
        >>> spec_of("fd_random[random, 3e1f, ref=ab12, n=64]; 95 % interval on a page; lower is better")
        'fd_random[random, 3e1f, ref=ab12, n=64]'
        >>> spec_of("giqa_knn[ab12] in features of random: mean score; higher is better")
        'giqa_knn[ab12] in features of random'
        >>> spec_of("niqe: mean score; lower is better")
        ''
    """
    found = re.match(r"[^;\[]+\[.*?\][^;]*?(?=;|: |$)", about)
    return found[0] if found else ""


def series_of(runs: Sequence[Run], tag: str) -> list[Series]:
    """The values of a tag: one series, or one for each way in which they were made, where there are several.

    What is said of a value holds for the values beside it (of `niqe/mean`, for `niqe/std`). Values of which it is not
    known how they were made stand with the others, where these were all made in one way.
    """
    parts: dict[str, dict[str, Lines]] = {}
    own: dict[str, str] = {}  # the words about each, of the tag itself
    doubt: dict[str, str] = {}
    for run in runs:
        said = run.about.get(tag) or _beside(run.about, tag)
        for line in run.values.get(tag, []):
            about = next((text for step, text in reversed(said) if step <= line["step"]), "")
            spec = spec_of(about)
            parts.setdefault(spec, {}).setdefault(run.name, []).append(line)
            doubt[spec] = _doubt(about)
            if about and tag in run.about:
                own.setdefault(spec, about)
    if len([spec for spec in parts if spec]) > 1:
        return [
            Series(tag, own.get(spec, ""), spec or "not known how", doubt[spec], parts[spec]) for spec in sorted(parts)
        ]
    last = max(parts, default="")  # the way that is known, if one is
    joined = {run.name: run.values[tag] for run in runs if run.values.get(tag)}
    return [Series(tag, own.get(last, own.get("", "")), "", doubt.get(last, ""), joined)] if joined else []


def _doubt(about: str) -> str:
    found = re.search(r"the features of [^;]* are untrained and see [^;]*", about)
    return found[0] if found else ""


def _beside(about: Mapping[str, list[tuple[int, str]]], tag: str) -> list[tuple[int, str]]:
    base = tag.rpartition("/")[0]
    return next((said for other, said in about.items() if other.rpartition("/")[0] == base), [])

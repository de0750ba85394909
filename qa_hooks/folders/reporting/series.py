"""What belongs in one curve: the values of a tag that were measured in one way, of all runs that have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from qa_hooks.writers import Meaning

Lines = list[dict[str, Any]]
NOTHING = Meaning("")  # of a value of which nothing is said


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
    about: dict[str, list[tuple[int, Meaning]]]
    pictures: dict[str, list[tuple[int, bytes]]]
    settings: str
    best: list[dict[str, Any]]
    alarms: list[dict[str, Any]]


class Series(NamedTuple):
    """The values of one row and of one chart.

    Attributes:
        tag: of the values.
        about: what they are; without words where no run says so.
        spec: how they were made, where the values of this tag were made in more than one way; else "".
        runs: lines by the name of the run.
    """

    tag: str
    about: Meaning
    spec: str
    runs: dict[str, Lines]


def series_of(runs: Sequence[Run], tag: str) -> list[Series]:
    """The values of a tag: one series, or one for each way in which they were made, where there are several.

    What is said of a value holds for the values beside it (of `niqe/mean`, for `niqe/std`). Values of which it is not
    known how they were made stand with the others, where these were all made in one way.
    """
    parts: dict[str, dict[str, Lines]] = {}
    meanings: dict[str, Meaning] = {}
    for run in runs:
        said = run.about.get(tag) or [(step, beside(about)) for step, about in _neighbour(run.about, tag)]
        for line in run.values.get(tag, []):
            about = next((about for step, about in reversed(said) if step <= line["step"]), NOTHING)
            parts.setdefault(about.spec, {}).setdefault(run.name, []).append(line)
            if about.words or about.spec not in meanings:
                meanings[about.spec] = about
    if len([spec for spec in parts if spec]) > 1:
        return [Series(tag, meanings[spec], spec or "not known how", parts[spec]) for spec in sorted(parts)]
    joined = {run.name: run.values[tag] for run in runs if run.values.get(tag)}
    return [Series(tag, meanings[max(parts)], "", joined)] if joined else []  # the way that is known, if one is


def beside(about: Meaning) -> Meaning:
    """What is known of a value whose neighbour is this: how it was made, but not which way is better."""
    return Meaning("", about.spec, doubt=about.doubt)


def _neighbour(about: Mapping[str, list[tuple[int, Meaning]]], tag: str) -> list[tuple[int, Meaning]]:
    base = tag.rpartition("/")[0]
    return next((said for other, said in about.items() if other.rpartition("/")[0] == base), [])

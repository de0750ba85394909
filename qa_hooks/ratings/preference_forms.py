"""The published sets of preferences: which of several images of one prompt or content people find better.

Every form becomes pairs. Ranks are the sets' own: in ImageReward and HPD v2 a lower rank is better, and ties and gaps
occur; in HPD v1 a number names the preferred image.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from qa_hooks._base.headers import read_json
from qa_hooks._base.text import plural
from qa_hooks.ratings.parquet import parquet_rows
from qa_hooks.ratings.rating_forms import numbers
from qa_hooks.ratings.rows import is_image, is_number, read_table
from qa_hooks.ratings.tables import Preference, Preferences

LOG = logging.getLogger("qa_hooks")
Entry = dict[str, Any]
GROUPS = {"positive": 1.0, "similar": 0.0, "negative": -1.0}


def ranked(names: Sequence[str], ranks: Sequence[float], content: str, rater: str = "") -> list[Preference]:
    """All pairs of a ranked group; a lower rank is better, equal ranks are a tie."""
    if len(names) != len(ranks):
        raise ValueError(f"{len(names)} images and {len(ranks)} ranks for {content!r}")
    if wrong := [rank for rank in ranks if not _is_rank(rank)]:
        raise ValueError(f"the rank {wrong[0]!r} for {content!r} is no finite number")
    if odd := [text for text in (*names, content) if not isinstance(text, str)]:
        raise ValueError(f"{odd[0]!r} for {content!r} is no text: images and prompts have names")
    return [
        Preference(names[a], names[b], float((ranks[b] > ranks[a]) - (ranks[b] < ranks[a])), content, rater)
        for a in range(len(names))
        for b in range(a + 1, len(names))
    ]


def _is_rank(value: object) -> bool:
    """Whether this is a finite number; text, null and NaN order nothing."""
    return isinstance(value, int | float) and math.isfinite(value)


def _image_reward(entry: Entry) -> list[Preference]:
    return ranked(entry["generations"], entry["ranking"], entry["prompt"])


def _hpd(entry: Entry) -> list[Preference]:
    names = entry["file_path"] if "file_path" in entry else entry["image_path"]
    if "raw_annotations" in entry:  # v2, test: each rater's ranking
        raters = entry["raw_annotations"]
        return [p for r in raters for p in ranked(names, r["rank"], entry["prompt"], str(r.get("user_hash", "")))]
    if "rank" in entry:
        return ranked(names, entry["rank"], entry["prompt"])
    preferred = entry["human_preference"]
    if isinstance(preferred, list):  # v2, train: [1, 0]
        if wrong := [value for value in preferred if not _is_rank(value)]:
            raise ValueError(f"human_preference has {wrong[0]!r}, which is no finite number")
        return ranked(names, [1 - value for value in preferred], entry["prompt"])
    if not _is_rank(preferred) or isinstance(preferred, bool) or int(preferred) != preferred:
        raise ValueError(f"human_preference={preferred!r} is no index of an image")
    best = int(preferred)  # v1: the index of the preferred image; nothing is said of the others
    if not 0 <= best < len(names):
        raise ValueError(f"human_preference={preferred} of {plural(len(names), 'image')}")
    return [Preference(names[best], name, 1.0, entry["prompt"]) for i, name in enumerate(names) if i != best]


def _diff_iqa(entry: Entry) -> list[Preference]:
    """One group of raters: each version against the original, "Positive" where the version is better."""
    known = {key.lower(): value for key, value in entry.items()}
    original = str(known["picture_original"]["Name"])
    found = []
    for key, value in known.items():
        if key != "picture_original" and isinstance(value, dict) and "Label" in value:
            label = GROUPS.get(str(value["Label"]).lower())
            if label is None:
                raise ValueError(f"the label {value['Label']!r} is none of Positive, Similar, Negative")
            found.append(Preference(str(value["Name"]), original, label, original))
    return found


def _has_one(entry: Entry, *names: str) -> bool:
    return any(name in entry for name in names)


JSON_FORMS: dict[str, tuple[Callable[[Entry], bool], Callable[[Entry], list[Preference]]]] = {
    "imagereward": (lambda e: {"prompt", "generations", "ranking"} <= set(e), _image_reward),
    "hpd": (
        lambda e: "prompt" in e and _has_one(e, "file_path", "image_path") and _has_one(e, "rank", "human_preference"),
        _hpd,
    ),
    "diffiqa": (lambda e: "picture_original" in {key.lower() for key in e}, _diff_iqa),
}  # fmt: skip


def from_json(path: Path, format: str) -> Preferences:
    """One JSON file: a list of entries, or one entry."""
    content = read_json(path)
    entries = content if isinstance(content, list) else [content]
    if not entries or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{path} holds no entries of preferences")
    fitting = [name for name, (matches, _) in JSON_FORMS.items() if matches(entries[0])]
    if format != "auto" and format not in fitting:
        raise ValueError(f"{path} is no {format}: its first entry has {', '.join(entries[0])}")
    if len(fitting) != 1:
        raise ValueError(f"{path} has none of the known forms; its first entry has {', '.join(entries[0])}")
    pairs: list[Preference] = []
    for number, entry in enumerate(entries):
        try:
            pairs += JSON_FORMS[fitting[0]][1](entry)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}, entry {number}: {type(error).__name__}: {error}") from error
    return Preferences(pairs, fitting[0])


def from_text(path: Path, format: str) -> Preferences:
    """A table: `image_a,image_b,label`, or DiffIQA's triplets `x1,x2,reference,(x1 > x2),(x1 > ref),(x2 > ref)`."""
    table = read_table(path)
    if not table.header and len(table.rows[0]) == 6 and all(is_image(field) for field in table.rows[0][:3]):
        check_format(path, format, "diffiqa triplets", "diffiqa")
        return Preferences(list(_triplets(path, table.rows)), "diffiqa triplets")
    if table.has("image_a", "image_b", "label"):
        check_format(path, format, "pairs")
        raters = table.column("rater") if table.has("rater") else [""] * len(table.rows)
        contents = table.column("content") if table.has("content") else [""] * len(table.rows)
        labels = numbers(table.column("label"), table).tolist()
        _check_labels(path, labels)
        rows = list(zip(table.column("image_a"), table.column("image_b"), labels, contents, raters, strict=True))
        if own := [a for a, b, *_ in rows if a == b]:
            raise ValueError(f"{path}: {own[0]} is compared with itself: leave such pairs out")
        return Preferences(
            [Preference(a, b, float((y > 0) - (y < 0)), content, rater) for a, b, y, content, rater in rows], "pairs"
        )
    shown = ", ".join(table.header) if table.header else str(table.rows[0])
    raise ValueError(
        f"{path} is no table of pairs (image_a, image_b, label) and no triplets; its first line is {shown}"
    )


def _check_labels(path: Path, labels: Sequence[float]) -> None:
    """Labels of another meaning: `ValueError` where the numbers show it, a warning where they may have it."""
    known, meaning = set(labels), "positive where a is better, negative where b is, 0 for a tie"
    if known <= {0.0, 0.5, 1.0} and 0.5 in known:
        raise ValueError(
            f"{path}: the labels are 0, .5 and 1, as shares are; they must be {meaning}: write 2 label - 1"
        )
    if len(known) > 1 and min(known) >= 0:
        shown = ", ".join(f"{label:g}" for label in sorted(known)[:5])
        LOG.warning("%s: the labels are %s, so b is never better; they are read as %s", path, shown, meaning)


def _triplets(path: Path, rows: Iterable[Sequence[str]]) -> Iterable[Preference]:
    for first, second, reference, *said in rows:
        for a, b, value in ((first, second, said[0]), (first, reference, said[1]), (second, reference, said[2])):
            if not is_number(value) or float(value) not in (0.0, 0.5, 1.0):
                raise ValueError(f"{path}: {value!r} for {first} is none of 0, .5, 1")
            yield Preference(a, b, 2 * float(value) - 1, reference)


def check_format(path: Path, format: str, *names: str) -> None:
    """`ValueError` where a form was asked for that the file does not have."""
    if format not in ("auto", *names):
        raise ValueError(f"{path} is no {format}: it is read as {names[0]}")


def from_parquet(path: Path, format: str = "auto") -> Preferences:
    """Pick-a-Pic: two images of a prompt, labels of 0, .5 and 1; some rows outside its training part have none."""
    check_format(path, format, "pick-a-pic")
    columns = ("caption", "image_0_uid", "image_1_uid", "label_0")
    pairs = []
    for number, row in enumerate(parquet_rows(path, "Pick-a-Pic", columns, ("has_label",))):
        if not row.get("has_label", True):
            continue
        a, b, label, caption = row["image_0_uid"], row["image_1_uid"], row["label_0"], row["caption"]
        if not _is_rank(label) or label not in (0, 0.5, 1):
            raise ValueError(f"{path}, entry {number}: the label {label!r} is none of 0, .5, 1")
        if not all(isinstance(text, str) for text in (a, b, caption)):
            raise ValueError(f"{path}, entry {number}: {a!r}, {b!r} and {caption!r} must be texts")
        pairs.append(Preference(a, b, 2 * float(label) - 1, caption))
    return Preferences(pairs, "pick-a-pic")

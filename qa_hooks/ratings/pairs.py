"""Pairs of images that people have judged, from a CSV: for `pairwise_accuracy`.

image_a,image_b,label          label > 0: a is better; < 0: b is better; further columns are ignored
fake/001.png,fake/002.png,1    paths are relative to the CSV and stay below its folder
"""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from qa_hooks._base.files import inside_folder

COLUMNS = ("image_a", "image_b", "label")
SHOWN = 5


class Pairs(NamedTuple):
    """Files and labels of n pairs: two lists of n paths, and `(n,)` float32."""

    images_a: list[Path]
    images_b: list[Path]
    labels: Tensor


def read_pairs(path: str | Path) -> Pairs:
    """Read judged pairs.

    Raises:
        ValueError: no such file, a header without the three columns, no pairs, or broken lines, which are named by
            number: a missing field, a label that is no number or 0 (an undecided pair), a file that is missing or
            outside the CSV's folder.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    pairs, broken = Pairs([], [], torch.empty(0, device="cpu", dtype=torch.float32)), []
    labels: list[float] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets write a byte-order mark
            reader = csv.DictReader(file, strict=True, skipinitialspace=True)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise ValueError(f"its header lacks {', '.join(missing)}: it is {','.join(reader.fieldnames or ())!r}")
            for row in reader:
                try:
                    image_a, image_b, label = _read_row(row, path.parent)
                except ValueError as error:
                    broken.append(f"line {reader.line_num}: {error}")
                    continue
                pairs.images_a.append(image_a)
                pairs.images_b.append(image_b)
                labels.append(label)
    except (csv.Error, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{path} is not a table of pairs: {error}") from error
    if broken:
        more = f"; and {len(broken) - SHOWN} more" if len(broken) > SHOWN else ""
        raise ValueError(f"{path} has {len(broken)} broken lines: {'; '.join(broken[:SHOWN])}{more}")
    if not labels:
        raise ValueError(f"{path} holds no pairs")
    return pairs._replace(labels=torch.tensor(labels, device="cpu", dtype=torch.float32))


def _read_row(row: dict[str, str | None], folder: Path) -> tuple[Path, Path, float]:
    fields = [(row[name] or "").strip() for name in COLUMNS]
    for name, field in zip(COLUMNS, fields, strict=True):
        if not field:
            raise ValueError(f"no {name}")
    try:
        label = float(fields[2])
    except ValueError:
        raise ValueError(f"label {fields[2]!r} is no number") from None
    if label == 0 or not math.isfinite(label):
        raise ValueError(f"label {fields[2]}: a better is 1, b better -1, undecided pairs are left out")
    return inside_folder(fields[0], folder), inside_folder(fields[1], folder), label

"""The picture of a comparison of folders: histograms of the scores, the best and the worst images of each folder."""

from __future__ import annotations

import itertools
import math
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qa_hooks._base.files import check_writable
from qa_hooks.drawing.chart import Line, chart
from qa_hooks.drawing.contact_sheet import contact_sheet
from qa_hooks.evaluation.verdicts import REAL
from qa_hooks.folders.comparing.compare_folders import FolderComparison
from qa_hooks.folders.comparing.image_sets import ImageSet
from qa_hooks.functional.neighbours import nearest_neighbours
from qa_hooks.images import load_image, save_image

SHOWN = 12  # images from each end
COLUMNS = 180  # letters of a line of the tables
CLIPPED = 0.5  # per cent of the scores at each end of a histogram that its axis leaves out
BINS = (10, 40)  # fewest and most
NEAREST = "distance to the nearest real image"
# Okabe and Ito's colours, which the colour-blind can tell apart; real images are black.
WIDTH = 760
BLACK = (0, 0, 0)
COLOURS = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233))


def write_report(comparison: FolderComparison, path: str | Path) -> None:
    """Draw a comparison as one PNG.

    Images are ordered by the first scorer, by the quality score, or without either by their distance to the nearest
    real image in the comparison's features.

    Raises:
        ValueError: a path that cannot be written or is no PNG.
    """
    path = check_report(path)
    scores, directions = _scores(comparison)
    parts: list[Tensor | None] = [_text(str(comparison))]
    drawn = [_histogram(name, sets, higher=directions[name]) for name, sets in scores.items()]
    parts += [part for part in drawn if part is not None]  # charts need matplotlib
    by = next(iter(scores))
    parts += [_ends(part, by, scores[by][part.label], higher=directions[by]) for part in comparison.folders]
    picture = _stacked([part for part in parts if part is not None])
    save_image(picture, path)


def check_report(path: str | Path) -> Path:
    """Before the long work: whether a report can be written there."""
    path = Path(path)
    if path.suffix.lower() != ".png" or path.is_dir():
        raise ValueError(f"the report is a PNG file, got {str(path)!r}")
    check_writable(path.parent, name="report")
    return path


def _scores(comparison: FolderComparison) -> tuple[dict[str, dict[str, Tensor]], dict[str, bool]]:
    """By score, then by label of the set."""
    everything = [comparison.real, *comparison.folders]
    names = list(dict.fromkeys(name for part in comparison.folders for name in part.scores))
    found = {name: {p.label: p.scores[name] for p in everything if name in p.scores} for name in names}
    directions = {name: comparison.higher_is_better[name] for name in names}
    real = comparison.real.features
    if len(real) and not comparison.real.scores:  # no scorer has seen the real images
        count = min(len(comparison.folders[0].paths), len(real))
        distances = {comparison.real.label: nearest_neighbours(real[:count], real, 2).distances[:, 1].double()}
        for part in comparison.folders:
            distances[part.label] = nearest_neighbours(part.features, real, 1).distances[:, 0].double()
        found = {NEAREST: distances, **found}
        directions[NEAREST] = False
    return found, directions


def _ends(part: ImageSet, name: str, scores: Tensor, *, higher: bool) -> Tensor:
    """The best and the worst images of a folder."""
    known = scores.isfinite().nonzero().flatten()
    order = known[(scores[known] if higher else -scores[known]).argsort(descending=True, stable=True)].tolist()
    shown = min(SHOWN, len(order))
    images: list[Tensor | None] = []
    labels: list[str] = []
    for title, rows in (("best", order[:shown]), ("worst", order[len(order) - shown :][::-1])):
        images.append(None)
        labels.append(f"{part.label}: the {title} of {len(order)} by {name}")
        for row in rows:
            images.append(load_image(part.paths[row]))
            labels.append(f"{float(scores[row]):.4g}")
    longest = max(max(image.shape[1:]) for image in images if image is not None)
    return contact_sheet(images, labels, columns=SHOWN, scale=max(1, 64 // longest), max_side=112)


def _text(text: str) -> Tensor:
    """The tables of the comparison in letters of one width; uint8 `(3, h, w)`."""
    from PIL import Image, ImageDraw, ImageFont

    lines = [part for line in _plain(text).split("\n") for part in textwrap.wrap(line, COLUMNS) or [""]]
    sheet = Image.new("RGB", (7 * max(map(len, lines)) + 24, 14 * len(lines) + 20), (255,) * 3)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default_imagefont()
    for row, line in enumerate(lines):
        for column, letter in enumerate(line):
            draw.text((12 + 7 * column, 10 + 14 * row), letter, font=font, fill=(0, 0, 0))
    return torch.from_numpy(np.asarray(sheet).transpose(2, 0, 1).copy())


def _histogram(name: str, sets: dict[str, Tensor], *, higher: bool) -> Tensor | None:
    """Shares of each set's images over one axis, as lines; uint8 `(3, h, w)`, None without matplotlib."""
    known = {label: values[values.isfinite()].double().numpy() for label, values in sets.items()}
    low, high = np.percentile(np.concatenate(list(known.values())), [CLIPPED, 100 - CLIPPED])
    if not high > low:
        low, high = low - 0.5, high + 0.5
    bins = int(np.clip(math.sqrt(min(map(len, known.values()))), *BINS))
    colors = itertools.chain([BLACK] if REAL in known else [], itertools.cycle(COLOURS))
    lines = []
    for (label, values), color in zip(known.items(), colors, strict=False):
        counts, edges = np.histogram(values.clip(low, high), bins, (low, high))
        heights = np.concatenate([[0], counts.repeat(2) / max(1, len(values)), [0]])
        corners = torch.from_numpy(np.stack([edges.repeat(2), heights], 1))
        mean = float(values.mean()) if len(values) else math.nan
        lines.append(Line(corners, color, _plain(f"{label[-16:]}: mean {mean:.4g}")))
    direction = "higher" if higher else "lower"
    axis = f"{_plain(name)} ({direction} is better; the outer bins hold what lies beyond, {CLIPPED:g} % at each end)"
    width = max(WIDTH, 210 * len(lines))
    return chart(lines, x_label=axis, y_label="share of images", from_zero=True, width=width, height=320)


def _plain(text: str) -> str:
    return text.encode("ascii", "replace").decode()


def _stacked(parts: list[Tensor]) -> Tensor:
    width = max(part.shape[2] for part in parts)
    rows: list[Any] = []
    for part in parts:
        row = torch.full((3, part.shape[1], width), 245, dtype=torch.uint8, device="cpu")
        row[:, :, : part.shape[2]] = part
        rows.append(row)
    return torch.cat(rows, 1)

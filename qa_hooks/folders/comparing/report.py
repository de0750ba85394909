"""The picture of a comparison of folders: histograms of the scores, the best and the worst images of each folder."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qa_hooks._base.files import check_writable
from qa_hooks._base.text import printable
from qa_hooks.drawing.chart import DPI, Line, chart
from qa_hooks.drawing.contact_sheet import contact_sheet
from qa_hooks.drawing.font import LETTERS
from qa_hooks.drawing.page import MARGIN, Table, page
from qa_hooks.evaluation.verdicts import REAL
from qa_hooks.folders.comparing.compare_folders import FolderComparison
from qa_hooks.folders.comparing.image_sets import ImageSet
from qa_hooks.functional.neighbours import nearest_neighbours
from qa_hooks.images import load_image, save_image

SHOWN = 8  # images from each end, in one row
SIDE = 130  # pixels of each
CLIPPED = 0.5  # per cent of the scores at each end of a histogram that its axis leaves out
BINS = (10, 40)  # fewest and most
WIDTH = 1110  # of the picture
NEAREST = "distance to the nearest real image"
# Okabe and Ito's colours, which the colour-blind can tell apart; real images are black.
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
    parts: list[str | Table | Tensor] = list(comparison.parts())
    drawn = [_histogram(name, sets, higher=directions[name]) for name, sets in scores.items()]
    parts += [part for part in drawn if part is not None]  # charts need matplotlib
    by = next(iter(scores))
    parts += [_ends(part, by, scores[by][part.label], higher=directions[by]) for part in comparison.folders]
    save_image(page(parts, width=WIDTH), path)


def check_report(path: str | Path) -> Path:
    """Before the long work: whether a report can be written there."""
    path = Path(path)
    if path.suffix.lower() != ".png" or path.is_dir():
        raise ValueError(f"report must be a PNG file, got {str(path)!r}")
    check_writable(path.parent, name="report")
    return path


def _scores(comparison: FolderComparison) -> tuple[dict[str, dict[str, Tensor]], dict[str, bool]]:
    """The scores of each set by name and label, and whether higher is better, by name."""
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
    direction = "higher" if higher else "lower"
    for title, rows in (("best", order[:shown]), ("worst", order[len(order) - shown :][::-1])):
        images.append(None)
        labels.append(f"{part.label}: the {title} of {len(order)} by {name} ({direction} is better)")
        for row in rows:
            images.append(load_image(part.paths[row]))
            labels.append(f"{printable(part.name(part.paths[row]), one_line=True)}\n{float(scores[row]):.4g}")
    longest = max(max(image.shape[1:]) for image in images if image is not None)
    scale = max(1, SIDE // longest)
    return contact_sheet(images, labels, columns=SHOWN, scale=scale, max_side=SIDE, detail=SIDE)


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
        lines.append(Line(corners, color, f"{label[-40:]}: mean {mean:.4g}"))
    direction = "higher" if higher else "lower"
    axis = f"{name} ({direction} is better; the outer bins hold what lies beyond, {CLIPPED:g} % at each end)"
    size: dict[str, Any] = {"width": WIDTH - 2 * MARGIN, "height": 300, "letters": 72 / DPI * LETTERS}
    return chart(lines, x_label=axis, y_label="share of images", from_zero=True, **size)

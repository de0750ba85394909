"""Measure a pipeline at several guidance scales: quality and agreement with the prompt, and diversity.

Classifier-free guidance (Ho and Salimans 2022) makes images that fit their prompt better and resemble each other more.
The sweep samples the same noise and prompts at each scale and measures

    quality, agreement    the mean of each scorer, +- its standard error; agreement where the scorer reads the prompt
    diversity             mean over prompts of mean_{i < j} |f(x_i) - f(x_j)|, f the features of the prompt's images
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qa_hooks._base.checks import check_count
from qa_hooks._base.files import check_writable
from qa_hooks._base.isolation import isolated
from qa_hooks.drawing.chart import GREY, Line, chart
from qa_hooks.drawing.contact_sheet import contact_sheet
from qa_hooks.features import FeatureExtractor, create_extractor
from qa_hooks.images import save_image, to_uint8, to_unit
from qa_hooks.integrations.diffusers import PipelineSampler
from qa_hooks.scorers.scorer import Scorer, check_is_scorer

SHOWN = 8  # images of each scale on the picture


@dataclass(frozen=True)
class Measured:
    """One column of the table: `values` and standard errors `errors`, one for each scale; `kind` says what it is."""

    name: str
    kind: str
    values: tuple[float, ...]
    errors: tuple[float, ...]
    higher_is_better: bool


@dataclass(frozen=True, eq=False)
class GuidanceTable:
    """The result of `sweep_guidance`; `str()` gives a Markdown table.

    Attributes:
        scales: the guidance scales.
        columns: quality and agreement in the order of the scorers, diversity last.
        n: images per scale.
        prompts: how many different ones.
        picture: uint8 `(3, h, w)`: images with the same noise at each scale, and each column against the scale.
    """

    scales: tuple[float, ...]
    columns: tuple[Measured, ...]
    n: int
    prompts: int
    picture: Tensor

    def __str__(self) -> str:
        heads = [f"{c.kind}: {c.name}{' (lower is better)' if not c.higher_is_better else ''}" for c in self.columns]
        lines = [f"| guidance scale (n={self.n}, {self.prompts} prompts) | {' | '.join(heads)} |"]
        lines.append("|---" * (1 + len(heads)) + "|")
        for row, scale in enumerate(self.scales):
            cells = [f"{c.values[row]:.4g} +- {c.errors[row]:.2g}" for c in self.columns]
            lines.append(f"| {scale:g} | {' | '.join(cells)} |")
        return "\n".join(lines)


def sweep_guidance(
    pipeline: Any,
    scales: Sequence[float],
    scorers: Sequence[Scorer],
    *,
    prompts: Sequence[str] | Sequence[int],
    n: int,
    seed: int = 0,
    extractor: FeatureExtractor | str | None = None,
    out: str | Path | None = None,
    batch_size: int = 8,
    **call_options: Any,
) -> GuidanceTable:
    """Quality, agreement and diversity against the guidance scale, with the same noise and prompts at each.

    Args:
        pipeline: a Diffusers pipeline with `guidance_scale`; left as it is.
        scales: for example (1, 2, 4, 7.5, 12).
        scorers: what to measure; those whose `inputs` name "prompt" measure agreement. Their range is [0, 1].
        prompts: cycled over the n images.
        n: images per scale, at least two for each prompt.
        seed: of the noise.
        extractor: of the features for the diversity; a random network by default, which needs no download and sees
            colours and textures; "dinov2_vits14" sees what is on the picture.
        out: a PNG to write the picture to.
        batch_size: images at a time.
        call_options: of the pipeline's call, for example `num_inference_steps=25`.

    Raises:
        TypeError: something that is no scorer.
        ValueError: too few images, a scorer that needs a reference or another range, a pipeline without guidance, a
            file that cannot be written.
    """
    n, values = check_count("n", n), tuple(float(scale) for scale in scales)
    if not values:
        raise ValueError("scales is empty")
    if n < 2 * len(prompts):
        raise ValueError(f"diversity needs two images of each prompt: n must be at least {2 * len(prompts)}, got {n}")
    for scorer in scorers:
        check_is_scorer(scorer, "each of scorers")
        if "reference" in scorer.inputs or scorer.value_range != (0.0, 1.0):
            raise ValueError(f"{scorer.name} must score images in [0, 1] without a reference")
    if out is not None:
        check_writable(Path(out).parent, name="out")
    features = create_extractor(extractor if extractor is not None else "random")

    scores: dict[str, list[Tensor]] = {scorer.name: [] for scorer in scorers}
    if len(scores) < len(scorers):
        raise ValueError(f"two scorers have one name: {sorted(scorer.name for scorer in scorers)}")
    diversities, sheets = [], list[Tensor]()
    for scale in values:
        sample = PipelineSampler(
            pipeline, prompts, seed=seed, batch_size=batch_size, guidance_scale=scale, **call_options
        )
        images, shown = sample.with_prompts(n)
        with isolated():
            for scorer in scorers:
                scores[scorer.name].append(_scores(scorer, images, shown, batch_size))
            rows = torch.cat([features(to_unit(part, (0.0, 1.0))) for part in images.split(batch_size)]).cpu()
        diversities.append(diversity_within(rows, shown))
        sheets.append(to_uint8(images[:SHOWN]).cpu())

    columns = []
    for scorer in scorers:
        kind = "agreement" if "prompt" in scorer.inputs else "quality"
        means = tuple(float(part.mean()) for part in scores[scorer.name])
        errors = tuple(float(part.std()) / math.sqrt(n) for part in scores[scorer.name])
        columns.append(Measured(scorer.name, kind, means, errors, scorer.higher_is_better))
    means, errors = tuple(value for value, _ in diversities), tuple(error for _, error in diversities)
    columns.append(Measured(features.name, "diversity", means, errors, True))
    table = GuidanceTable(values, tuple(columns), n, len(set(prompts)), _picture(values, columns, sheets))
    if out is not None:
        save_image(table.picture, out)
    return table


def diversity_within(features: Tensor, prompts: Sequence[Any]) -> tuple[float, float]:
    """The mean distance of two images of one prompt, averaged over prompts, and its standard error (0 for one prompt).

    Args:
        features: `(n, dim)`.
        prompts: n of them.

    Example:
        >>> diversity_within(torch.tensor([[0.0], [2.0], [5.0], [5.0]]), ["a", "a", "b", "b"])
        (1.0, 1.0)
    """
    distances = []
    for prompt in dict.fromkeys(prompts):
        rows = features[[index for index, other in enumerate(prompts) if other == prompt]].double()
        if len(rows) > 1:
            distances.append(torch.nn.functional.pdist(rows).mean())
    if not distances:
        raise ValueError("no prompt has two images")
    means = torch.stack(distances)
    return float(means.mean()), float(means.std()) / math.sqrt(len(means)) if len(means) > 1 else 0.0


def _scores(scorer: Scorer, images: Tensor, prompts: list[Any], batch_size: int) -> Tensor:
    parts = []
    for start in range(0, len(images), batch_size):
        rows = slice(start, start + batch_size)
        inputs = {"prompt": prompts[rows]} if "prompt" in scorer.inputs else {}
        parts.append(scorer(images[rows], **inputs).cpu())
    return torch.cat(parts)


def _picture(scales: Sequence[float], columns: Sequence[Measured], sheets: Sequence[Tensor]) -> Tensor:
    """The images of each scale in a row; under them a small chart for each column, with its standard error in grey."""
    pictures: list[Tensor | None] = []
    labels: list[str] = []
    for scale, images in zip(scales, sheets, strict=True):
        pictures += [None, *images]
        labels += [f"guidance scale {scale:g}", *[""] * len(images)]
    enlarged = max(1, 96 // sheets[0].shape[-1])
    x, charts = torch.tensor(scales, device="cpu", dtype=torch.float32), []
    for column in columns:
        values, errors = torch.tensor([column.values, column.errors], device="cpu", dtype=torch.float32)
        lines = [Line(torch.stack([x, values + sign * errors], 1), GREY) for sign in (-1, 1)]
        lines.append(Line(torch.stack([x, values], 1), dots=True))
        title = f"{column.kind}: {column.name} +- standard error"
        drawn = chart(lines, title=title, x_label="guidance scale", width=480, height=360)
        charts += [] if drawn is None else [drawn]
    parts = [contact_sheet(pictures, labels, columns=SHOWN, scale=enlarged, max_side=128)]
    parts += [torch.cat(charts[start : start + 2], dim=2) for start in range(0, len(charts), 2)]
    width = max(part.shape[2] for part in parts)
    padded = [torch.nn.functional.pad(part, (0, width - part.shape[2]), value=255) for part in parts]
    return torch.cat(padded, dim=1)

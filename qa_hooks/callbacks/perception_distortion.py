"""Perception against distortion: the two axes of a restoration run, and its path between them."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qa_hooks._base.processes import gather_rows
from qa_hooks._base.text import plural
from qa_hooks.callbacks.callback import Context
from qa_hooks.callbacks.pictures import (
    axis_label,
    check_scorer,
    meaning_of,
    picture_folder,
    scorer_spec,
    write_picture,
)
from qa_hooks.callbacks.sampling import SamplingMonitor
from qa_hooks.drawing.chart import Line, chart
from qa_hooks.scorers.score_source import first_refusal, score_each
from qa_hooks.scorers.scorer import Scorer
from qa_hooks.sources.samples import Sample


class PerceptionDistortion(SamplingMonitor):
    """The two axes of a restoration run, and the path that it takes between them.

    Distortion (PSNR, SSIM, LPIPS to the ground truth) and perception (NIQE, MUSIQ, without one) pull against each other
    beyond some point (Blau and Michaeli, "The Perception-Distortion Tradeoff", CVPR 2018). Writes the picture
    `qa_images/{name}/path`, older points paler, and for each scorer `qa_eval/{name}_{scorer}/mean`,
    with `/low` and `/high`, the ends of its 95 % interval over the images.

    Args:
        perception: a `Scorer` that needs no reference.
        distortion: a `Scorer` that needs one.
        images: the name under which the loop hands images over (`hooks.step(pred=pred)`), from all processes; or a
            function `images(n, generator) -> (n, C, H, W)` that restores a validation set, all n images in one call
            on the first process; a list where sizes differ.
        reference: likewise the name of the ground truth; or with a function the ground truths, `(n, C, H, W)` or a
            list of images of several sizes. Fixed validation images make points that can be compared; a training
            batch adds its own noise.
        every: steps between two points.
        batch_size: images to score at a time.
        seed: of the function's generator.
        name: in the tags.
        folder: also write `path_{step:08d}.png` there.

    Attributes:
        last: `{"step", "perception", "distortion", "n"}`: mean scores, each in its scorer's direction, with the ends of
            their intervals under "perception_low", "perception_high" and likewise.

    Example:
        >>> from qa_hooks.scorers import create_scorer
        >>> axes = create_scorer("niqe_bsd100"), create_scorer("psnr")
        >>> monitor = PerceptionDistortion(*axes, images="pred", reference="target", every=500)
    """

    measures = ("perception", "distortion")
    shared_out = False

    def __init__(
        self,
        perception: Scorer,
        distortion: Scorer,
        *,
        images: str | Sample,
        reference: Any,
        every: int = 1000,
        batch_size: int = 16,
        seed: int = 0,
        name: str = "perception_distortion",
        folder: str | Path | None = None,
    ) -> None:
        check_scorer(perception, "perception")
        check_scorer(distortion, "distortion")
        if perception.inputs:
            raise ValueError(f"perception is judged without a reference; {perception.name} needs one")
        if "reference" not in distortion.inputs:
            raise ValueError(f"distortion is measured against a reference; {distortion.name} takes none")
        if perception.name == distortion.name:
            raise ValueError(f"both axes are called {perception.name!r}, and their curves would be one: name one anew")
        if perception.value_range != distortion.value_range:
            raise ValueError(
                f"both scorers see the same images, but {perception.name} has value_range {perception.value_range} and "
                f"{distortion.name} {distortion.value_range}"
            )
        if isinstance(images, str) != isinstance(reference, str):
            raise ValueError(
                "images and reference are two names that the loop hands over, or a function and images, got "
                f"{type(images).__name__} and {type(reference).__name__}"
            )
        sample, truths = (None, None) if isinstance(images, str) else (images, reference)
        options: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "value_range": perception.value_range}
        super().__init__(sample, name, n=None, every=every, optional=True, truths=truths, **options)
        self.perception, self.distortion = perception, distortion
        if isinstance(images, str):
            self.images, self.reference = images, reference
        self.folder = picture_folder(folder)
        self.last: dict[str, float] = {}
        self.path = torch.zeros(0, 3, dtype=torch.float64, device="cpu")  # step, distortion, perception

    def higher_is_better(self, key: str) -> bool | None:
        return (self.perception if key == "perception" else self.distortion).higher_is_better

    @cached_property
    def spec(self) -> dict[str, str]:
        """Which measure each axis is."""
        return {
            "perception": scorer_spec(self.perception, self.known_truths),
            "distortion": scorer_spec(self.distortion, self.known_truths),
        }

    def local(self, ctx: Context) -> tuple[Tensor, str]:
        rows, refusal = [torch.zeros(0, 2, dtype=torch.float64, device="cpu")], ""
        for _, images, truth in self.pairs(ctx):
            scores = score_each(self.distortion, images, **truth), score_each(self.perception, images)
            rows.append(torch.stack([part for part, _ in scores], 1))
            refusal = refusal or first_refusal(scores[0][1] | scores[1][1])
        return torch.cat(rows), refusal

    def reduce(self, ctx: Context, part: tuple[Tensor, str]) -> None:
        finite = self.finite(gather_rows(part[0]), part[1], "pair of scores")
        self.last = {"step": ctx.step, "n": len(finite)}
        for column, (axis, scorer) in enumerate((("distortion", self.distortion), ("perception", self.perception))):
            name = f"{self.name}_{scorer.name}"
            meaning = meaning_of(scorer, self.spec[axis], f"mean score, the axis of {axis}")
            self.last |= self.write_mean(ctx, name, axis, finite[:, column].contiguous(), meaning)
        point = [[ctx.step, self.last["distortion"], self.last["perception"]]]
        self.path = self.path[self.path[:, 0] < ctx.step]
        self.path = torch.cat([self.path, torch.tensor(point, dtype=torch.float64, device="cpu")])
        picture = self._picture() if ctx.rank == 0 else None
        if picture is not None:
            write_picture(ctx, self.folder, self.name, "path", picture)

    def state_dict(self) -> dict[str, Any]:
        return {"last": dict(self.last), "path": self.path.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.last, self.path = dict(state["last"]), state["path"].clone()

    def _picture(self) -> Tensor | None:
        ends = [self.path[0], self.path[-1]] if len(self.path) > 1 else [self.path[0]]
        return chart(
            [Line(self.path[:, 1:], dots=True, fading=True)],
            title=f"{plural(len(self.path), 'point')}; the numbers are steps",
            x_label=axis_label(self.distortion),
            y_label=axis_label(self.perception),
            notes=[(float(end[1]), float(end[2]), str(int(end[0]))) for end in ends],
        )

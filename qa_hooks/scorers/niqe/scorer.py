"""NIQE: how far an image's local contrast lies from the contrast of natural photographs; no reference needed.

    score = sqrt( (mu - mu_p)^T ((Sigma_p + Sigma) / 2)^-1 (mu - mu_p) )

mu, Sigma over the features of all 96 x 96 blocks of the image, mu_p, Sigma_p from sharp blocks of photographs. Lower is
better: 2 to 4 for clean photographs, above 6 poor, unbounded. With fewer than 192 pixels a side there is one block and
no covariance: values are then finite, but comparable only with each other.

As a loss it is easily gamed (it rewards noise-like texture): watch it first, and give it a small weight second.

Source: Mittal, Soundararajan, Bovik, "Making a Completely Blind Image Quality Analyzer", 2013, and its MATLAB release.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qa_hooks._base.checks import check_channels
from qa_hooks.functional.naturalness import image_naturalness
from qa_hooks.functional.niqe import FeatureConfig, niqe_features, release_features
from qa_hooks.images import Range, load_image, to_grey, to_unit
from qa_hooks.scorers.niqe.model import RELEASE, NaturalnessModel
from qa_hooks.scorers.niqe.original import ORIGINAL, load_original
from qa_hooks.scorers.scorer import Scorer
from qa_hooks.sources.batches import warn_left_out
from qa_hooks.sources.grids import find_images

__all__ = ["NIQE", "NaturalnessModel", "fit_naturalness", "to_luma"]

_BSD100 = Path(__file__).with_name("niqe_bsd100.safetensors")
# Rows of the (R, G, B) weights and the offset, for images in [0, 1] and luma in [0, 255].
_LUMA = {
    "y_ycbcr": ((65.481, 128.553, 24.966), 16.0),
    "y_yiq": ((0.299 * 255, 0.587 * 255, 0.114 * 255), 0.0),
}
COLORS = ("gray", *_LUMA)


class NIQE(Scorer):
    """Natural Image Quality Evaluator, differentiable with its true gradient.

    SRCC .75 with people's ratings of five distortions together, with either set of parameters: docs/judges.md.

    Args:
        pristine: "bsd100", fitted on photographs of the Berkeley data set, part of this package; "original", the
            authors' parameters, which are looked for and downloaded (`qa_hooks.scorers.niqe.original`); the path of a
            file that `NaturalnessModel.load` reads; or a model.
        color: how RGB becomes grey on [0, 255]: "gray", MATLAB's rgb2gray; "y_ycbcr", the rounded Y in 16..235 of
            BasicSR; "y_yiq", the rounded Y of YIQ of pyiqa. The choice moves scores by several tenths.
        value_range: what the numbers of the images mean.

    Published parameters ("original", and files in the release's format) are used as the MATLAB release uses them: grey
    is rounded to 8 bits, and flat blocks count as they do there. Our own models leave flat blocks out and do not round,
    which is smoother and sees the same in a picture with and without black bars. Rounding passes gradients straight
    through. An image of which the release has no number, because it is flat, gets the one of our own handling.

    Attributes:
        name: "niqe" with the original parameters only, otherwise "niqe_" and the model's name; then the colour, where
            the model leaves the choice and it is not "gray".

    Raises:
        ValueError: unknown options, a broken file, a model of something else than photographs; when called: images
            smaller than one block (96 pixels unless the model says otherwise).

    Example:
        >>> import torch
        >>> scorer = NIQE()
        >>> scorer.name, scorer(torch.rand(2, 3, 96, 128)).shape
        ('niqe_bsd100', torch.Size([2]))
    """

    higher_is_better = False
    score_range = None
    keeps_float64 = True
    mean: Tensor
    covariance: Tensor

    def __init__(
        self,
        pristine: str | Path | NaturalnessModel = "bsd100",
        *,
        color: str = "gray",
        value_range: Range = (0.0, 1.0),
    ) -> None:
        super().__init__(value_range=value_range)
        if color not in COLORS:
            raise ValueError(f"color must be one of {COLORS}, got {color!r}")
        model = _load(pristine)
        if model.config.block is None:
            raise ValueError(
                "a model without blocks describes gradient maps, not photographs; refit it with a block size"
            )
        fitted = model.provenance.get("color", color)
        if fitted != color:
            raise ValueError(f"the model was fitted with color={fitted!r}, color={color!r} was asked for")
        self.model, self.color = model, color
        original = model.fingerprint == ORIGINAL
        chosen = f"_{color}" if color != "gray" and "color" not in model.provenance else ""
        self.name = ("niqe" if original else f"niqe_{model.name}") + chosen
        self.as_released = original or model.provenance.get("handling") == RELEASE
        self.register_buffer("mean", model.mean, persistent=False)
        self.register_buffer("covariance", model.covariance, persistent=False)

    def score(self, images: Tensor, **inputs: Any) -> Tensor:
        luma = to_luma(images, self.color)
        if not self.as_released:
            return self._robust(luma)
        luma = luma + (luma.round() - luma).detach()
        features, present = release_features(luma, self.model.config)
        scores = image_naturalness(features, self.mean, self.covariance, present=present).to(images.device)
        known = present.any(1).all(1)
        return scores if bool(known.all()) else torch.where(known, scores, self._robust(luma))

    def _robust(self, luma: Tensor) -> Tensor:
        features = niqe_features(luma, self.model.config)
        return image_naturalness(features, self.mean, self.covariance).to(luma.device)

    def options(self) -> dict[str, Any]:
        state = self.model.to_dict()
        return {"color": self.color, "model": {key: state[key] for key in ("config", "count", "provenance")}}

    @classmethod
    def from_saved(cls, options: dict[str, Any], tensors: dict[str, Tensor], value_range: Range) -> NIQE:
        model = NaturalnessModel.from_dict({**options["model"], **tensors})
        return cls(model, color=options["color"], value_range=value_range)


def to_luma(images: Tensor, color: str) -> Tensor:
    """`(N, 1 or 3, H, W)` in [0, 1] -> `(N, 1, H, W)` on [0, 255], as `NIQE` describes; a grey image is R = G = B.

    Example:
        >>> import torch
        >>> to_luma(torch.ones(1, 3, 1, 1), "y_ycbcr").item()
        235.0
    """
    if color == "gray":
        return 255 * to_grey(images)
    check_channels("a grey conversion", images)
    (red, green, blue), offset = _LUMA[color]
    if images.shape[1] == 1:
        luma = (red + green + blue) * images + offset
    else:
        luma = red * images[:, 0:1] + green * images[:, 1:2] + blue * images[:, 2:3] + offset
    return luma + (luma.round() - luma).detach()


def fit_naturalness(
    folder: str | Path,
    output: str | Path,
    *,
    block: int = 96,
    color: str = "gray",
    sharpness: float = 0.3,
    shrink: float = 0.03,
    limit: int | None = None,
    name: str | None = None,
    grid: str | None = None,
    progress: bool = True,
) -> NaturalnessModel:
    """Fit a NIQE model on a folder of photographs and save it: `NIQE("output.safetensors")` uses it.

    Args:
        folder: image files, sub-folders included; images smaller than a block are left out, and broken ones
            with a warning.
        output: the `.safetensors` file to write.
        block: side of the blocks; images to be scored must not be smaller.
        color: see `NIQE`.
        sharpness: keep blocks above this share of the image's sharpest; the paper's 0.75 leaves too few of a small set.
        shrink: share by which the covariance moves to its diagonal, none in the paper. Both defaults are what
            cross-validation chose on BSD100 (docs/niqe.md).
        limit: use the first so many files, by path.
        grid: cut each picture into the images that it is a grid of, as in `qa_hooks.sources.grids.find_images`.
        name: the scorer's name will be `niqe_{name}`; by default the folder's name.
        progress: show a bar when stderr is a terminal.

    Returns:
        The model.

    Raises:
        ValueError: no images, unknown options, too few sharp blocks.
    """
    if color not in COLORS:
        raise ValueError(f"color must be one of {COLORS}, got {color!r}")
    if Path(output).suffix != ".safetensors" or Path(output).is_dir():
        raise ValueError(f"output must be a file ending in .safetensors, got {str(output)!r}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    # Alpha is searched on a grid in the original only; a new model has no reason to.
    config = replace(FeatureConfig.niqe(block), alpha_step=0.0)
    name = name or Path(folder).resolve().name
    used: list[str] = []
    skipped: list[str] = []
    broken: list[str] = []

    def photographs() -> Any:
        for path in find_images(folder, grid)[:limit]:
            try:
                image = load_image(path)
            except ValueError as error:
                broken.append(str(error))
                continue
            if min(image.shape[1:]) < block:
                skipped.append(path.name)
                continue
            used.append(path.name)
            yield to_luma(to_unit(image[None], (0.0, 1.0)).double(), color)

    model = NaturalnessModel.fit(photographs(), config, sharpness=sharpness, shrink=shrink, progress=progress)
    warn_left_out(dict(enumerate(broken)), "file")
    arguments = f"{block=}, {color=}, {sharpness=}, {shrink=}, {limit=}, {name=}"
    provenance = {
        "name": name,
        "color": color,
        "images": len(used),
        "first": used[0],
        "last": used[-1],
        "skipped": len(skipped),
        "blocks": model.count,
        "command": f"fit_naturalness({Path(folder).name!r}, {Path(output).name!r}, {arguments})",
    }
    model = replace(model, provenance=provenance)
    model.save(output)
    return model


def _load(pristine: str | Path | NaturalnessModel) -> NaturalnessModel:
    if isinstance(pristine, NaturalnessModel):
        return pristine
    if not isinstance(pristine, str | Path):
        raise TypeError(f"pristine must be a name, a path or a NaturalnessModel, got {type(pristine).__name__}")
    if pristine == "bsd100":
        return NaturalnessModel.load(_BSD100)
    if pristine == "original":
        return load_original()
    return NaturalnessModel.load(pristine)

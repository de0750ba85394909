"""Shared by monitors of scorers: the check of a scorer, labels, where a picture goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from qa_hooks._base.files import check_writable
from qa_hooks.callbacks.callback import Context
from qa_hooks.features import FeatureExtractor
from qa_hooks.images import save_image
from qa_hooks.scorers.scorer import Scorer, check_is_scorer, uncalibrated
from qa_hooks.writers import make_tag


def check_scorer(scorer: Any, name: str = "scorer") -> None:
    """`TypeError` unless it is a `Scorer`; `ValueError` when it wants prompts, which monitors do not have."""
    check_is_scorer(scorer, name)
    if "prompt" in scorer.inputs:
        raise ValueError(f"{name}: {scorer.name} needs prompts, which this monitor does not have")


def axis_label(scorer: Scorer) -> str:
    """The name and the direction of a scorer."""
    return f"{scorer.name} ({'higher' if scorer.higher_is_better else 'lower'} is better)"


def scorer_spec(scorer: Scorer) -> str:
    """Which measure a value is, in one line for `best.json`: the scorer's name and the head of its fingerprint."""
    return f"{scorer.name}[{scorer.fingerprint[:4]}]"


def value_words(scorer: Scorer, spec: str, what: str, truths: str = "") -> str:
    """What a value of a scorer is, for the log: by which measure, in which features, and `what` of the scores.

    Args:
        scorer: whose scores they are.
        spec: of the scorer.
        what: "mean score", ...
        truths: the fingerprint of a validation set; scores on another one are others.
    """
    extractor = getattr(uncalibrated(scorer), "extractor", None)
    known = extractor if isinstance(extractor, FeatureExtractor) else None
    measure = spec if known is None else f"{spec} in features of {known.name}"
    measure += f" on the ground truths {truths[:4]}" if truths else ""
    return f"{measure}: {what}" + (f"; {known.doubt}" if known is not None and known.doubt else "")


def picture_folder(folder: str | Path | None) -> Path | None:
    """A folder for pictures, made when it is missing; `ValueError` when it cannot be written."""
    if folder is not None:
        check_writable(folder, name="folder")
    return Path(folder) if folder is not None else None


def write_picture(ctx: Context, folder: Path | None, name: str, what: str, picture: Tensor) -> None:
    """Write `qa_images/{name}/{what}`, and `{what}_{step:08d}.png` where there is a folder."""
    ctx.writer.image(make_tag("images", name, what), picture, ctx.step)
    if folder is not None:
        save_image(picture, folder / f"{what}_{ctx.step:08d}.png")

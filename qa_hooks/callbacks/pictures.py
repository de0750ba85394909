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
from qa_hooks.writers import Meaning, make_tag


def check_scorer(scorer: Any, name: str = "scorer") -> None:
    """`TypeError` unless it is a `Scorer`; `ValueError` when it wants prompts, which monitors do not have."""
    check_is_scorer(scorer, name)
    if "prompt" in scorer.inputs:
        raise ValueError(f"{name}: {scorer.name} needs prompts, which this monitor does not have")


def axis_label(scorer: Scorer) -> str:
    """The name and the direction of a scorer."""
    return f"{scorer.name} ({'higher' if scorer.higher_is_better else 'lower'} is better)"


def scorer_spec(scorer: Scorer, truths: str = "") -> str:
    """Which measure a value is, in one line for `best.json`: the scorer's name and the head of its fingerprint.

    Args:
        scorer: whose values they are.
        truths: the fingerprint of a validation set, on which scores with a reference are others than elsewhere.
    """
    own = f"{scorer.name}[{scorer.fingerprint[:4]}]"
    return f"{own} on the ground truths {truths[:4]}" if truths and "reference" in scorer.inputs else own


def meaning_of(scorer: Scorer, spec: str, words: str, *, change: bool = False) -> Meaning:
    """What a value of a scorer is, for the log.

    Args:
        scorer: whose scores they are.
        spec: of the scorer (`scorer_spec`); the features are added to it.
        words: "mean score", ...
        change: whether it is the difference from the value before.
    """
    extractor = getattr(uncalibrated(scorer), "extractor", None)
    if not isinstance(extractor, FeatureExtractor):
        return Meaning(words, spec, change=change)
    return Meaning(words, f"{spec} in features of {extractor.name}", change=change, doubt=extractor.doubt)


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

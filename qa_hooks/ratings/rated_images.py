"""Ratings as a fit wants them: one row for each image that is there, with the spread where it can be used."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch

from qa_hooks._base.text import plural
from qa_hooks.ratings.tables import Ratings
from qa_hooks.scorers.opinions.scorer import ABOUT, ALIGNMENT, IMAGE

LOG = logging.getLogger("qa_hooks")
OF_THE_PROMPT = ("align", "correspond")  # in the scale of ratings that are about more than the image
OWN_UNITS = ("", "the rating's own")
FEWEST_RATERS = 3  # whose deviation is taken for the spread of opinions


def what_about(ratings: Ratings, about: str | None) -> str:
    """ "image", or "alignment": how well images fit their prompts. None asks the ratings' own scale.

    Raises:
        ValueError: another word; ratings of alignment that are taken for ratings of images; alignment without a prompt
            for each image.
    """
    if about is not None and about not in ABOUT:
        raise ValueError(f"about must be one of {', '.join(ABOUT)}, got {about!r}")
    aligned = any(word in ratings.scale.lower() for word in OF_THE_PROMPT)
    if aligned and about == IMAGE:
        raise ValueError(
            f"these ratings ({ratings.scale}) are about images together with their prompts, so about='image' would "
            "learn something else than people were asked: take the ratings of quality, or about='alignment'"
        )
    found = about or (ALIGNMENT if aligned else IMAGE)
    if found == ALIGNMENT:
        prompts = ratings.prompt or [""] * len(ratings)
        blank = [name for name, prompt in zip(ratings.names, prompts, strict=True) if not prompt.strip()]
        if blank:
            raise ValueError(
                f"alignment is about an image and its prompt, and {len(blank)} of {plural(len(ratings), 'image')} have "
                f"none; the first is {blank[0]}. In a table of your own name the column: columns={{'prompt': ...}}"
            )
        known: dict[str, str] = {}
        for name, prompt in zip(ratings.names, prompts, strict=True):
            if known.setdefault(name, prompt) != prompt:
                raise ValueError(
                    f"{name} is rated with two prompts, {known[name]!r} and {prompt!r}: alignment needs one prompt for "
                    "each image; give the file once for each, under two names"
                )
    return found


def one_row_an_image(ratings: Ratings) -> Ratings:
    """Rows whose image was found, several raters' ratings of one image as their mean and deviation.

    Raises:
        ValueError: no images, spreads that are negative.
    """
    if not ratings.images:
        raise ValueError("the ratings have no images: read_ratings(path, images=FOLDER)")
    there = [row for row, path in enumerate(ratings.images) if path is not None]
    if len(there) < len(ratings):
        LOG.warning("%d of %d rated images are missing and left out", len(ratings) - len(there), len(ratings))
    ratings = ratings.select(there)
    if ratings.spread is not None and ratings.spread_scale not in OWN_UNITS:
        LOG.warning("the spreads are in other units (%s) than the ratings, and are not used", ratings.spread_scale)
        ratings = replace(ratings, spread=None)
    if ratings.rater:
        ratings = _mean_of_raters(ratings)
    if ratings.spread is not None and not bool((ratings.spread >= 0).all()):
        bad = [ratings.names[row] for row in (~(ratings.spread >= 0)).nonzero().flatten()]
        raise ValueError(f"{len(bad)} spreads are negative or not numbers; the first is of {bad[0]}")
    return ratings


def _mean_of_raters(ratings: Ratings) -> Ratings:
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(ratings.names):
        rows.setdefault(name, []).append(row)
    first = ratings.select([own[0] for own in rows.values()])
    each = [ratings.rating[own] for own in rows.values()]
    spread = None
    if min(len(said) for said in each) >= FEWEST_RATERS:
        spread = torch.stack([said.std(correction=1) for said in each])
    return replace(first, rating=torch.stack([said.mean() for said in each]), spread=spread, rater=[])

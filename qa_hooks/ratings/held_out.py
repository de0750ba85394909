"""Contents that a fit does not see, and how well a scorer of opinions agrees with people on them."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from qa_hooks._base.checks import check_share
from qa_hooks._base.random import permutation
from qa_hooks.functional.clusters import FEWEST_CLUSTERS, Measured, as_labels
from qa_hooks.ratings.agreeing import Agreement
from qa_hooks.ratings.tables import Preferences


def held_out_contents(contents: Sequence[int], share: float, seed: int) -> Tensor:
    """A mask `(n,)` of the rows of contents that are held out: at least five contents, and as many are left.

    Raises:
        ValueError: fewer than ten contents, or a share that is none.

    Example:
        >>> int(held_out_contents([row // 3 for row in range(60)], 0.25, 0).sum())
        15
    """
    share = check_share("held_out", share)
    places = torch.tensor(list(contents), dtype=torch.int64, device="cpu")
    names = places.unique()
    if len(names) < 2 * FEWEST_CLUSTERS:
        raise ValueError(
            f"images of {2 * FEWEST_CLUSTERS} different contents are the least, {FEWEST_CLUSTERS} of them held out; "
            f"got {len(names)}: a number without an interval would say nothing"
        )
    count = min(max(round(share * len(names)), FEWEST_CLUSTERS), len(names) - FEWEST_CLUSTERS)
    order = permutation(len(names), int(seed))
    return torch.isin(places, names[order[:count]])


def numbered(names: Iterable[Hashable]) -> list[int]:
    """Names as whole numbers, in the order in which they appear.

    Example:
        >>> numbered(["b", "a", "b"])
        [0, 1, 0]
    """
    known: dict[Hashable, int] = {}
    return [known.setdefault(name, len(known)) for name in as_labels(names)]


def contents_of_pairs(preferences: Preferences) -> dict[str, int]:
    """The content of each image of pairs, as a number.

    Images of pairs of one content share it, and what an image has in common with two contents makes them one. A pair
    without a content says nothing of it: its images are contents of their own.
    """
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        parent.setdefault(name, name)
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for pair in preferences:
        for image in (pair.a, pair.b):
            own = root(f"image {image}")
            if pair.content.strip():
                parent[own] = root(f"content {pair.content}")
    images = preferences.names
    return dict(zip(images, numbered(root(f"image {image}") for image in images), strict=True))


def prompts_of_pairs(preferences: Preferences, images: Sequence[str]) -> list[str]:
    """The prompt of each of these images: the content of its pairs.

    Raises:
        ValueError: an image whose pairs have no content, or different ones.
    """
    found: dict[str, str] = {}
    for pair in preferences:
        for image in (pair.a, pair.b):
            if not pair.content.strip():
                raise ValueError(
                    f"alignment is about images and prompts, and the pair {pair.a}, {pair.b} has no prompt"
                )
            if found.setdefault(image, pair.content) != pair.content:
                raise ValueError(
                    f"{image} was judged with two prompts, {found[image]!r} and {pair.content!r}: alignment needs one "
                    "prompt for each image; give the file once for each, under two names"
                )
    return [found[image] for image in images]


def pair_agreement(
    difference: Tensor, labels: Tensor, contents_a: Sequence[int], contents_b: Sequence[int]
) -> Agreement:
    """The share of pairs that scores put in people's order, with a 95 % interval over whole contents.

    A content that is left out takes all its pairs with it, also those with images of another content. Where all pairs
    are right, or none, the interval is Wilson's for as many independent pairs as there are contents.

    Args:
        difference: `(n,)`, goodness of a minus goodness of b; 0 counts one half.
        labels: `(n,)`, positive where people find a better, negative where b; 0, a tie, is left out.
        contents_a, contents_b: `(n,)`, of the two images.

    Raises:
        ValueError: no decided pair, fewer than five contents, numbers that are not finite.

    Example:
        >>> labels = torch.tensor([1.0, -1.0] * 20)
        >>> pair_agreement(labels * 2, labels, range(40), range(40)).value
        1.0
    """
    gaps, said = (np.asarray(values.detach().cpu(), dtype=np.float64) for values in (difference, labels))
    if not np.isfinite(gaps).all():
        raise ValueError(f"{int((~np.isfinite(gaps)).sum())} of the scores are not finite")
    decided = said != 0
    if not decided.any():
        raise ValueError("people decided none of these pairs")
    correct = (0.5 + 0.5 * np.sign(gaps) * np.sign(said))[decided]
    places = torch.tensor([list(contents_a), list(contents_b)], dtype=torch.int64, device="cpu").numpy()[:, decided]
    names, places = np.unique(places, return_inverse=True)
    a, b = places.reshape(2, -1)
    if len(names) < FEWEST_CLUSTERS:
        raise ValueError(f"an interval needs at least {FEWEST_CLUSTERS} contents, got {len(names)}")
    value = float(correct.mean())
    kept = [correct[(a != content) & (b != content)] for content in range(len(names))]
    without = np.array([part.mean() if len(part) else value for part in kept])
    _, low, high = Measured(value, without, len(names), pairs=float(len(correct))).interval()
    return Agreement(value, low, high, int(decided.sum()), len(names))

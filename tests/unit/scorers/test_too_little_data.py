"""Fitting on too little is refused, or warned of with the number that is needed."""

from __future__ import annotations

import warnings

import pytest
import torch

from qa_hooks.scorers import GMMScorer, KNNScorer, MBCScorer, RankScorer

IMAGES = torch.rand(200, 3, 32, 32, generator=torch.Generator().manual_seed(0))
QUICK = {"steps": 1, "progress": False}
PLAIN = {"calibration": None, "progress": False}


def rank(count):
    return RankScorer().fit(IMAGES[:count], crop=16, crops=2, warn_below=0, calibration=None, **QUICK)


WARNED = {
    "knn": (lambda n: KNNScorer("random").fit(IMAGES[:n], **PLAIN), 39, 40, "has 39 real images .* at least 40"),
    "knn of many": (lambda n: KNNScorer("random", 30).fit(IMAGES[:n], **PLAIN), 59, 60, "has 59 real .* at least 60"),
    "gmm": (lambda n: GMMScorer("random", 1, pca=20).fit(IMAGES[:n], **PLAIN), 20, 21, "about 20 images .* needs 21"),
    "diagonal": (
        lambda n: GMMScorer("random", 1, pca=2, covariance="diag").fit(IMAGES[:n], **PLAIN),
        9, 10, "about 9 images .* needs 10",
    ),
    "rank": (rank, 19, 20, "has 19 images to learn from, and wants at least 20"),
}  # fmt: skip


@pytest.mark.parametrize("name", WARNED)
def test_it_is_warned_of(name):
    fit, few, enough, message = WARNED[name]
    with pytest.warns(UserWarning, match=message):
        fit(few)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fit(enough)


def test_it_is_refused():
    with pytest.raises(ValueError, match="at least 20 snapshots, got 19"):
        MBCScorer(2).fit_snapshots((IMAGES[:19], list(range(19))), IMAGES, **QUICK)
    with pytest.raises(ValueError, match="at least 20 real images, got 19"):
        MBCScorer(2).fit_snapshots((IMAGES[:30], list(range(30))), IMAGES[:19], **QUICK)
    with pytest.raises(ValueError, match=r"at least 10 held-out images, and a share of 0\.2 of 40 images is 8"):
        KNNScorer("random").fit(IMAGES[:40], progress=False)

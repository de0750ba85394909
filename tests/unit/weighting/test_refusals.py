"""What weighters, the picker and the choice of instances refuse, and what they say."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from qa_hooks.features import Features, create_extractor
from qa_hooks.weighting import OHEM, ohem_weights, pick, select_instances
from toy_scorers import brightness


def images(count: int = 6) -> torch.Tensor:
    return torch.rand(count, 3, 8, 8)


def rule(**options):
    return ohem_weights(**{"scores": torch.zeros(2), "threshold": 0.2, "weight": 2.0, **options})


def picked(**options):
    return pick(images(), progress=False, **{"scores": torch.arange(6.0), **options})


def features(rows: int) -> Features:
    return Features(torch.zeros(rows, 448), "0" * 16, torch.arange(rows))


REFUSED = {
    # call, error, message
    "a weight of 0": (lambda: rule(weight=0), ValueError, "more than 0"),
    "a weight without end": (lambda: rule(weight=torch.inf), ValueError, "finite"),
    "scores in a matrix": (lambda: rule(scores=torch.zeros(2, 1)), ValueError, r"\(2, 1\)"),
    "a map": (lambda: OHEM(lambda x: x)(images()), ValueError, r"one score per image, .* got \(6, 3, 8, 8\); average"),
    "one score": (lambda: OHEM(lambda x: x.mean())(images()), ValueError, "one score per image"),
    "a tuple": (lambda: OHEM(lambda x: (x.mean((1, 2, 3)), x))(images()), TypeError, "tuple"),
    "too few scores": (lambda: OHEM(lambda x: x.mean((1, 2, 3))[:5])(images()), ValueError, r"got \(5,\)"),
    "no worst": (lambda: OHEM(worst=0), ValueError, "worst"),
    "worse than all": (lambda: OHEM(worst=1.5), ValueError, "worst"),
    "a heavier weight of 0": (lambda: OHEM(weight=0), ValueError, "weight"),
    "a negative weight": (lambda: OHEM(weight=-1), ValueError, "weight"),
    "never": (lambda: OHEM(every=0), ValueError, "every"),
    "a threshold above 1": (lambda: OHEM(threshold=2), ValueError, "threshold"),
    "an unknown mode": (lambda: OHEM(threshold_mode="relative"), ValueError, "quantile"),
    "a name": (lambda: OHEM("niqe"), TypeError, "create_scorer"),
    "a scorer with a reference": (
        lambda: OHEM(brightness(inputs=["reference"])), ValueError, "needs reference besides the images",
    ),
    "no scorer and no scores": (lambda: OHEM()(images()), ValueError, "without a scorer"),
    "no images": (lambda: OHEM()(torch.zeros(3, 4), scores=torch.zeros(3)), ValueError, "images must have the shape"),
    "another state": (lambda: OHEM().load_run_state({"draws": 1}), ValueError, "not the state of a OHEM"),
    "absolute, not calibrated": (
        lambda: OHEM(brightness(), threshold_mode="absolute"), ValueError,
        r"brightness does not give: use scorer.calibrated\(\)",
    ),
    "absolute, lower better": (
        lambda: OHEM(threshold_mode="absolute", higher_is_better=False), ValueError, "higher better",
    ),
    "absolute, out of range": (
        lambda: OHEM(threshold_mode="absolute")(images(2), scores=torch.tensor([-3.0, 0.5])), ValueError,
        r"\[-3, 0\.5\]",
    ),
    "none kept": (lambda: picked(keep=0), ValueError, "keep must be a share"),
    "per cent": (lambda: picked(keep=90), ValueError, "keep must be a share"),
    "nothing to pick by": (lambda: picked(scores=None), ValueError, "give a scorer, or scores="),
    "scores of other images": (lambda: picked(scores=[1.0]), ValueError, r"scores must be \(6,\)"),
    "no score at all": (lambda: picked(scores=[torch.nan] * 6), ValueError, "none of 6 images has a score"),
    "too few features": (
        lambda: picked(features=torch.zeros(5, 3)), ValueError, r"one row for each of 6 scored images, got \(5, 3\)",
    ),
    "too many features": (
        lambda: picked(features=torch.zeros(7, 3)), ValueError, r"one row for each of 6 scored images, got \(7, 3\)",
    ),
    "real images alone": (lambda: picked(real=images()), ValueError, "precision and recall need features"),
    "real images without an extractor": (
        lambda: picked(features=torch.zeros(6, 3), real=images()), ValueError, "real images need an extractor",
    ),
    "an iterator": (
        lambda: pick(iter([images()]), brightness(), extractor=create_extractor("random"), progress=False), ValueError,
        "one-time iterator",
    ),
    "features of another network": (
        lambda: pick(
            images(), brightness(), extractor=create_extractor("random"), real=features(9), progress=False
        ), ValueError, "different extractors",
    ),
    "a loader": (
        lambda: select_instances(DataLoader(TensorDataset(images())), brightness()), TypeError,
        r"of a DataLoader pass its \.dataset",
    ),
    "no instance": (
        lambda: select_instances(TensorDataset(images()), brightness(), keep=0), ValueError, "keep must be a share",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    call, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        call()


def test_a_calibrated_scorer_may_be_absolute():
    scorer = brightness().fit_calibration(torch.linspace(0, 1, 100))
    OHEM(scorer.calibrated(), threshold_mode="absolute")(images())

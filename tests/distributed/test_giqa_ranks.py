"""GIQA's scorers under two gloo processes: fitted once, equal everywhere, equal to one process."""

from __future__ import annotations

import torch
from ranks import two_ranks

from qa_hooks._base.processes import broadcast_tensors, is_distributed
from qa_hooks.demo import load_digits_images
from qa_hooks.features import create_extractor
from qa_hooks.scorers import GMMScorer, KNNScorer, Scorer, create_scorer
from qa_hooks.sources.fingerprint import data_fingerprint

RANGE = (-1.0, 1.0)


def make(name: str, perturbed: bool) -> Scorer:
    extractor = create_extractor("random", width=8)
    scorer = (
        GMMScorer(extractor, 3, pca=5, value_range=RANGE) if name == "gmm" else KNNScorer(extractor, value_range=RANGE)
    )
    if perturbed:  # as if this machine's arithmetic differed: what it fits itself must not be used
        fit = scorer.fit_tensors
        scorer.fit_tensors = lambda values, like: fit(values + 1, like)
    return scorer


def fit_and_score(rank: int) -> dict:
    images = load_digits_images().train[:331]
    result = {}
    for name in ("gmm", "knn"):
        scorer = make(name, perturbed=rank == 1).fit(images[:300], progress=False)
        result[name] = scorer(images[300:])
        result[f"{name} calibrated"] = scorer.calibrated()(images[300:])
        result[f"{name} refitted"] = scorer.refit(scorer.extractor((images[:100] + 1) / 2))(images[300:])
    return result


def from_loaders(rank: int) -> dict:
    """Each process brings its own part, of another size."""
    images = load_digits_images().train[:331]
    mine = images[:160] if rank == 0 else images[160:300]
    parts = list(mine.split(50)) if is_distributed() else [images[:300]]
    knn = make("knn", perturbed=False).fit(parts, calibration=None, progress=False)
    return {"knn": knn(images[300:]), "fingerprint": data_fingerprint(parts, RANGE)}


def failures(rank: int) -> dict:
    def message(function) -> str:
        try:
            function()
        except (ValueError, RuntimeError) as error:
            return str(error)
        return ""

    images = load_digits_images().train[:60]
    few = GMMScorer(create_extractor("random", width=8), 50, value_range=RANGE)
    return {
        "too few": message(lambda: few.fit(images[:40], calibration=None, progress=False)),
        "one rank's source": message(lambda: data_fingerprint([torch.zeros(3)] if rank == 1 else [images])),
        "tensors": broadcast_tensors({"a": torch.arange(3), "b": torch.ones(2, 2).double()} if rank == 0 else None),
    }


def cached(rank: int, folder: str) -> torch.Tensor:
    spec = {"type": "giqa-gmm", "components": 2, "pca": 4, "extractor": {"type": "random", "width": 8}, "cache": folder}
    images = load_digits_images().train[:210]
    return create_scorer(spec, RANGE, fit=images[:200])(images[200:])


class Cached:
    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __call__(self, rank: int) -> dict:
        return {"fitted": cached(rank, self.folder), "loaded": cached(rank, self.folder)}


def test_fitted_on_two_ranks(tmp_path):
    first, second = two_ranks(fit_and_score, tmp_path)
    alone = fit_and_score(0)
    for name, expected in alone.items():
        assert torch.equal(first[name], second[name]), name
        assert torch.allclose(first[name], expected, rtol=1e-4), name


def test_each_rank_brings_its_own_images(tmp_path):
    first, second = two_ranks(from_loaders, tmp_path)
    alone = from_loaders(0)
    assert torch.equal(first["knn"], second["knn"])
    assert torch.allclose(first["knn"], alone["knn"], rtol=1e-4)
    assert first["fingerprint"] == second["fingerprint"] == alone["fingerprint"]


def test_failures_are_shared(tmp_path):
    for result in two_ranks(failures, tmp_path):
        assert "50 components need as many images, got 40" in result["too few"]
        assert result["one rank's source"]
        assert result["tensors"]["a"].tolist() == [0, 1, 2]
        assert result["tensors"]["b"].dtype == torch.float64


def test_one_cache_for_all_ranks(tmp_path):
    (tmp_path / "cache").mkdir()
    first, second = two_ranks(Cached(str(tmp_path / "cache")), tmp_path)
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 1
    for result in (first, second):
        assert torch.equal(result["fitted"], result["loaded"])
        assert torch.equal(result["fitted"], first["fitted"])
        assert result["fitted"].isfinite().all()

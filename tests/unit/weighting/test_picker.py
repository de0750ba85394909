"""Keeping the best: against sorting by hand, with ties, unknown scores, broken files, and what it does to recall."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from qa_hooks.features import Features, create_extractor, extract_features
from qa_hooks.functional.precision_and_recall import precision_recall
from qa_hooks.images import save_image
from qa_hooks.scorers import NIQE, FunctionScorer
from qa_hooks.scorers.giqa.gmm import GMMScorer
from qa_hooks.weighting.picker import pick
from toy_scorers import brightness

QUIET = {"progress": False}
DIGITS = {"value_range": (-1, 1)}


def grey(values) -> torch.Tensor:
    return torch.as_tensor(values)[:, None, None, None].expand(len(values), 3, 8, 8)


@pytest.fixture(scope="module")
def extractor():
    return create_extractor("random")


@pytest.fixture(scope="module")
def scorer(extractor, digits):
    return GMMScorer(extractor, components=3, pca=20, **DIGITS).fit(digits[:500], **QUIET)


@pytest.mark.parametrize("count", [1, 7, 100])
@pytest.mark.parametrize("keep", [0.01, 0.5, 0.9, 1])
def test_the_best_are_kept_and_ties_go_to_the_earlier(count, keep):
    values = torch.randint(0, 5, (count,)) / 10
    values[torch.rand(count) < 0.2] = torch.nan
    values[0] = 0.2
    known = [i for i in range(count) if values[i] == values[i]]
    order = sorted(known, key=lambda i: (-float(values[i]), i))
    size = max(1, int(len(known) * keep + 0.5))
    picked = pick(None, scores=values, keep=keep)
    assert picked.order.tolist() == order
    assert picked.indices.tolist() == sorted(order[:size])
    assert len(picked) == size
    assert picked.threshold == pytest.approx(float(values[order[size - 1]]))
    assert picked.missing == count - len(known)
    assert picked.scores.nan_to_num(-1).tolist() == values.nan_to_num(-1).tolist()
    assert picked.before is picked.after is None


def test_lower_is_better_and_infinite_scores():
    images = grey([0.1, 0.9, 0.5, 0.3])
    assert pick(images, brightness(), keep=0.5, **QUIET).indices.tolist() == [1, 2]
    assert pick(images, brightness(higher_is_better=False), keep=0.5, **QUIET).indices.tolist() == [0, 3]
    scores = [0.1, torch.inf, -torch.inf, torch.nan]
    assert pick(None, scores=scores, keep=1).order.tolist() == [1, 0, 2]
    assert pick(None, brightness(higher_is_better=False), scores=scores, keep=1).order.tolist() == [2, 0, 1]


@pytest.mark.parametrize("kind", ["tensor", "dataset", "loader", "iterator", "list of batches"])
def test_all_sources_give_the_same(kind, digits, scorer):
    images = digits[500:600]
    loader = DataLoader(TensorDataset(images, torch.arange(100)), batch_size=32)
    sources = {"tensor": images, "dataset": TensorDataset(images), "loader": loader, "iterator": iter(loader)}
    sources["list of batches"] = list(images.split(30))
    picked, expected = pick(sources[kind], scorer, **QUIET), scorer.score_features(scorer.extractor((images + 1) / 2))
    assert torch.allclose(picked.scores, expected, rtol=1e-4)
    assert picked.indices.tolist() == sorted(expected.argsort(descending=True)[:90].tolist())


def test_noisy_photographs_go_first(photographs):
    noisy = (photographs + 0.15 * torch.randn_like(photographs)).clamp(0, 1)
    assert pick(torch.cat([noisy, photographs]), NIQE(), keep=0.5, **QUIET).indices.tolist() == [4, 5, 6, 7]


def test_broken_files_are_listed(tmp_path, photographs):
    for i in range(4):
        save_image((photographs[i] * 255).byte(), tmp_path / f"{i}.png")
    (tmp_path / "1b.png").write_bytes(b"no image")
    picked = pick(tmp_path, brightness(), keep=0.5, extractor=create_extractor("random", width=8), **QUIET)
    means = photographs.mul(255).byte().float().mean((1, 2, 3)) / 255
    best = means.argsort(descending=True)[:2]
    assert picked.indices.tolist() == sorted((best + (best >= 2)).tolist())
    assert picked.scores[[0, 1, 3, 4]].tolist() == pytest.approx(means.tolist(), abs=1e-6)
    assert list(picked.failures) == [2]
    assert picked.missing == 1


def test_what_it_does_to_precision_and_recall(digits, scorer):
    """A quarter of the generated digits is noisy: picking drops these, and of clean digits alone the rare ones."""
    noise = (digits[500:600] + torch.randn(100, 1, 16, 16)).clamp(-1, 1)
    generated, real = torch.cat([noise, digits[600:900]]), digits[900:1300]
    extract = lambda images: extract_features(scorer.extractor, images, generated=True, **DIGITS, **QUIET)  # noqa: E731
    fake, reference = extract(generated), extract(real)
    picked = pick(generated, scorer, keep=0.75, real=real, **QUIET)
    assert picked.after == precision_recall(reference.values, fake.values[picked.indices])
    assert int((picked.indices < 100).sum()) < 15  # chance leaves 75
    assert picked.before is not None
    assert picked.after.precision > picked.before.precision + 0.1
    assert pick(None, scorer, features=fake, keep=0.75, real=reference).after == picked.after
    assert (
        pick(None, scores=picked.scores, features=fake.values, keep=0.75, real=reference.values).after == picked.after
    )
    few = pick(digits[500:800], scorer, keep=0.3, **QUIET)  # without real images: of the whole set
    whole = extract(digits[500:800]).values
    assert few.after == precision_recall(whole, whole[few.indices])
    assert few.after.recall < few.before.recall
    everything = pick(digits[500:600], scorer, keep=1, **QUIET)
    assert everything.after.recall == everything.before.recall == 1
    assert pick(digits[500:503], scorer, keep=1, **QUIET).after is None  # too few for a third neighbour


def test_scores_run_nothing(digits, scorer):
    def fail(x):
        raise AssertionError

    never = FunctionScorer(fail, name="never", higher_is_better=True, **DIGITS)
    assert pick(digits[:10], never, scores=torch.arange(10.0), keep=0.2).indices.tolist() == [8, 9]
    assert pick(digits[:10], scorer, scores=torch.arange(10.0), keep=0.2).after is None


def test_features_without_all_images(extractor):
    features = Features(torch.rand(8, 448), extractor.fingerprint, torch.tensor([0, 1, 2, 3, 5, 6, 7, 9]))
    scores = torch.arange(10.0)
    scores[[4, 8]] = torch.nan
    assert pick(None, scores=scores, features=features).after is not None
    with pytest.raises(ValueError, match="one row for each of 10 scored images"):
        pick(None, scores=torch.arange(10.0), features=features)

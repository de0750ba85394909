"""Two processes weigh, score and pick as one does on the joint batch."""

from __future__ import annotations

import os

import pytest
import torch
from ranks import two_ranks
from torch.utils.data import DataLoader

from qa_hooks.evaluation.quality_diversity import diversity_score, quality_score
from qa_hooks.features import create_extractor
from qa_hooks.images import save_image
from qa_hooks.scorers import FunctionScorer
from qa_hooks.scorers.giqa.gmm import GMMScorer
from qa_hooks.scorers.score_source import score_source
from qa_hooks.weighting import OHEM, TopK
from qa_hooks.weighting.picker import pick
from toy_scorers import brightness

QUIET = {"progress": False}
PARTS = slice(0, 21), slice(21, 32)  # uneven


def images(count: int, seed: int = 0) -> torch.Tensor:
    """Of different brightness, in steps, so that there are ties."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(0, 12, (count, 1, 1, 1), generator=generator) / 11).expand(count, 3, 16, 16).contiguous()


def weighters() -> dict:
    return {
        "quantile": OHEM(brightness(), worst=0.3, weight=3.0),
        "absolute": OHEM(brightness(score_range=(0.0, 1.0)), threshold_mode="absolute", threshold=0.4),
        "topk": TopK(0.6, scorer=brightness()),
    }


def weigh(part: slice) -> dict:
    result = {}
    for name, weighter in weighters().items():
        weights = weighter(images(32)[part])
        result[name] = {"weights": weights, **weighter.terms}
    ohem = OHEM()
    scores = torch.arange(32.0)
    for call in range(4):
        if call == 3:
            scores[30] = torch.nan  # on rank 1
        weights = ohem(images(32)[part], scores=scores[part])
    result["nan"] = {"weights": weights, **ohem.terms}
    return result


def weigh_rank(rank: int) -> dict:
    result = weigh(PARTS[rank])
    try:  # the NaN is on rank 1, the error on both
        OHEM()(images(2), scores=torch.tensor([1.0, torch.nan if rank else 0.0]))
    except ValueError as error:
        result["error"] = str(error)
    return result


def test_weights_are_those_of_the_joint_batch(tmp_path):
    results, alone = two_ranks(weigh_rank, tmp_path), weigh(slice(None))
    for name, expected in alone.items():
        joint = torch.cat([result[name]["weights"] for result in results])
        assert torch.allclose(joint, expected["weights"], rtol=1e-6), name
        assert len(set(joint.tolist())) == 2
        for result in results:
            for term in ("weighted", "effective_sample_size", "threshold", "nonfinite"):
                assert float(result[name][term]) == pytest.approx(float(expected[term]), rel=1e-6), (name, term)
    assert {result["error"] for result in results} == {"1 of 4 scores of scores= are not finite"}


def loader(part: slice) -> DataLoader:
    return DataLoader(images(32)[part], batch_size=8)


def scorer() -> GMMScorer:
    images = torch.rand(120, 1, 16, 16, generator=torch.Generator().manual_seed(3)) ** 2
    return GMMScorer(create_extractor("random", width=8), components=2, pca=8).fit(images, **QUIET)


def generated(count: int = 60, seed: int = 5) -> torch.Tensor:
    return torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(seed)) ** 2


def picks(part: slice, folder: str | None) -> dict:
    model = scorer()
    of_loader = pick(loader(part), brightness(), keep=0.4, extractor=model.extractor, **QUIET)
    of_scores = pick(loader(part), scores=images(32)[part].mean((1, 2, 3)), keep=0.4)
    of_tensor = pick(generated(), model, keep=0.5, real=generated(60, 6), **QUIET)
    of_generated = pick(DataLoader(generated()[part], batch_size=8), model, keep=0.5, **QUIET)
    of_folder = pick(folder, brightness(), keep=0.5, **QUIET)
    quality = quality_score(model, generated(), **QUIET)
    return {
        "loader": of_loader.indices,
        "loader order": of_loader.order,
        "loader scores": of_loader.scores,
        "loader threshold": of_loader.threshold,
        "loader recall": [of_loader.before.recall, of_loader.after.recall],
        "scores": of_scores.indices,
        "tensor": of_tensor.indices,
        "tensor after": list(of_tensor.after),
        "generated": of_generated.indices,
        "generated recall": of_generated.after.recall,
        "folder": of_folder.indices,
        "folder scores": of_folder.scores,
        "folder missing": of_folder.missing,
        "folder failures": list(of_folder.failures),
        "quality": list(quality[:3]),
        "diversity": list(diversity_score(model, generated(), generated(60, 6), **QUIET)[:3]),
        "quality of parts": list(quality_score(model, DataLoader(generated()[part]), **QUIET)[:2]),
    }


def pick_rank(rank: int) -> dict:
    result = picks(PARTS[rank], os.environ["QA_HOOKS_TEST_FOLDER"])
    try:
        score_source(FunctionScorer(fails_on(rank), name="fails", higher_is_better=True), images(8), **QUIET)
    except (RuntimeError, KeyError) as error:
        result["error"] = str(error)
    return result


def fails_on(rank: int):
    def score(batch: torch.Tensor) -> torch.Tensor:
        if rank == 1:
            raise KeyError("no such thing")
        return batch.mean((1, 2, 3))

    return score


@pytest.mark.filterwarnings("ignore:a component has about")
def test_the_choice_is_made_among_all_images(tmp_path, monkeypatch):
    folder = tmp_path / "images"
    folder.mkdir()
    for i, image in enumerate((images(9, 7) * 255).byte()):
        save_image(image, folder / f"{i}.png")
    (folder / "3b.png").write_bytes(b"no image")
    monkeypatch.setenv("QA_HOOKS_TEST_FOLDER", str(folder))
    first, second = two_ranks(pick_rank, tmp_path)
    alone = picks(slice(0, 32), str(folder))
    for kind in ("loader", "scores", "generated"):  # each its own part; ties go to the lower rank
        joint = torch.cat([first[kind], second[kind] + PARTS[1].start])
        assert torch.equal(joint, alone[kind]), kind
    assert torch.equal(torch.cat([first["loader scores"], second["loader scores"]]), alone["loader scores"])
    in_order = [i for i in alone["loader order"].tolist() if i < PARTS[1].start]
    assert first["loader order"].tolist() == in_order
    for result in (first, second):  # what is shared: the same on both
        for kind in ("tensor", "folder", "folder scores"):
            assert torch.equal(result[kind].nan_to_num(-1), alone[kind].nan_to_num(-1)), kind
        for kind in ("loader threshold", "loader recall", "generated recall", "tensor after", "folder missing"):
            assert result[kind] == pytest.approx(alone[kind], rel=1e-6), kind
        for kind in ("quality", "diversity"):
            assert result[kind] == pytest.approx(alone[kind], rel=1e-5), kind
        assert result["quality of parts"] == pytest.approx(alone["quality of parts"], rel=1e-5)
        assert "no such thing" in result["error"]
    assert alone["folder failures"] == [4]
    assert first["folder failures"] + second["folder failures"] == [4]

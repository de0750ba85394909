"""The data set with several ground truths: what is cut together, what is drawn, and that it is drawn again."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from qa_hooks.data import Choice, GroundTruths, MultiGTDataset, select_ground_truth
from qa_hooks.data.low_resolution import (
    HGGTDegradation,
    bicubic_degradation,
    compress,
    filter_image,
    gaussian_kernel,
    sinc_kernel,
)
from qa_hooks.data.quality_table import QualityTable
from qa_hooks.images import load_image, save_image, to_uint8
from qa_hooks.losses.hggt import HGGTNegativeLoss
from qa_hooks.scorers import FunctionScorer
from toy_scorers import brightness

CANDIDATES = 4
ANNOTATIONS = {  # of candidates 1, 2, 3, 4 by A, B, C -> effective: P S N P, S S S S, N N S S
    "a": ["PPP PSN NNS PPS", [1, 2, 3, 1], [3, 1, 2, 2]],
    "b": ["SSS SSN PSN SSP", [2, 2, 2, 2], [3, 2, 1, 2]],
    "c": ["NNN NNP SSS SSN", [3, 3, 2, 2], [3, 2, 3, 2]],
}


def coordinates(height: int, width: int, number: int) -> torch.Tensor:
    """An image whose pixels say where they are and which candidate they belong to."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([y, x, torch.full_like(y, number)]).to(torch.uint8)


def write_folders(root: Path, sizes: list[tuple[int, int]], count: int = CANDIDATES, make=coordinates) -> Path:
    for number in range(count):
        folder = root / ("original" if number == 0 else f"enhanced_{number}")
        folder.mkdir(parents=True)
        for name, (height, width) in zip("abcdefgh", sizes, strict=False):
            save_image(make(height, width, number), folder / f"{name}.png")
    return root


@pytest.fixture
def root(tmp_path):
    return write_folders(tmp_path / "sets", [(40, 56), (48, 40), (64, 64)])


@pytest.fixture
def hggt(tmp_path):
    root = tmp_path / "hggt"
    for number, folder in enumerate(("original", "01", "02", "03", "04")):
        (root / "images/0-3" / folder).mkdir(parents=True)
        for name in ANNOTATIONS:
            file = f"{name}.png" if number == 0 else f"{name}_{folder}.png"
            save_image(coordinates(40, 40, number), root / "images/0-3" / folder / file)
    words = {"P": "Positive", "S": "Similar", "N": "Negative"}
    for who, annotator in enumerate("ABC"):
        folder = root / "labels/0-3" / annotator
        folder.mkdir(parents=True)
        for name, (given, *_) in ANNOTATIONS.items():
            letters = [votes[who] for votes in given.split()]
            picture = {f"Picture_{n + 2}": {"Label": words[letter]} for n, letter in enumerate(letters)}
            (folder / f"{name}.json").write_text(json.dumps(picture))
    return root


def numbers(images: torch.Tensor) -> torch.Tensor:
    """What `coordinates` wrote."""
    return (images * 255).round().long()


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(torch.as_tensor(a[key]), torch.as_tensor(b[key])) for key in a if key != "path"
    )


@pytest.mark.parametrize("rotations", [False, True])
def test_all_candidates_have_one_crop_and_the_low_resolution_image_is_of_the_same_place(root, rotations):
    # A degradation that takes the upper left pixel of each block: it says where it was, and of which candidate.
    def subsample(image, scale, generator):
        return image[:, ::scale, ::scale]

    options = {"scale": 4, "crop": 16, "rotations": rotations, "degradation": subsample, "candidates": True}
    data = MultiGTDataset(root, strategy="random", **options)
    places, flipped, turned = set(), 0, 0
    for epoch in range(30):
        data.set_epoch(epoch)
        for item in data:
            candidates, lq, gt = numbers(item["candidates"]), numbers(item["lq"]), numbers(item["gt"])
            assert candidates.shape == (CANDIDATES, 3, 16, 16)
            assert lq.shape == (3, 4, 4)
            for number in range(CANDIDATES):
                assert torch.equal(candidates[number, :2], candidates[0, :2])
                assert (candidates[number, 2] == number).all()
            assert torch.equal(gt, candidates[item["gt_index"]])
            assert (lq[2] == 0).all()  # of the original, whichever ground truth was drawn
            y, x = candidates[0, 0], candidates[0, 1]
            assert int(y.max() - y.min()) == int(x.max() - x.min()) == 15
            assert y.min() % 4 == x.min() % 4 == 0
            # Each low-resolution pixel is the corner of its own block of the ground truth.
            blocks = candidates[0, :2].reshape(2, 4, 4, 4, 4).amin((2, 4))
            assert torch.equal(lq[:2], blocks)
            places.add((item["index"], int(y.min()), int(x.min())))
            flipped += int((x[0, 0] > x[-1, -1]).item())
            turned += int((y[0, 0] != y[0, -1]).item())
    assert len(places) > 40
    assert 25 < flipped < 65
    assert (25 < turned < 65) if rotations else turned == 0


def test_every_place_of_the_image_can_come(tmp_path):
    root = write_folders(tmp_path / "sets", [(24, 16)], count=1)
    data = MultiGTDataset(root, scale=4, crop=8, repeat=300)
    places = Counter((int(numbers(item["gt"])[0].min()), int(numbers(item["gt"])[1].min())) for item in data)
    assert sorted(places) == [(y, x) for y in range(0, 17, 4) for x in range(0, 9, 4)]
    assert min(places.values()) > 5


def test_the_draws_have_the_probabilities_of_the_strategy(root):
    stats = pytest.importorskip("scipy.stats")
    table = _table(root, [0.1, 0.2, 0.15, 0.0])
    for strategy, expected in {
        "originals": [1, 0, 0, 0],
        "random": [0.25] * 4,
        "sma": np.exp(np.array([0.1, 0.2, 0.15, 0.0]) / 0.05) / np.exp(np.array([0.1, 0.2, 0.15, 0.0]) / 0.05).sum(),
        "upos": [0, 0.5, 0, 0.5],
    }.items():
        liked = {f"{name}.png": [1, 3] for name in "abc"} if strategy == "upos" else None
        data = MultiGTDataset(root, strategy=strategy, crop=8, table=table, positives=liked, repeat=150)
        counts = np.bincount([data[i]["gt_index"] for i in range(len(data))], minlength=4)
        expected = np.asarray(expected, dtype=float)
        assert counts[expected == 0].sum() == 0
        there = expected > 0
        assert stats.chisquare(counts[there], expected[there] * counts.sum()).pvalue > 1e-3 or there.sum() == 1


def _planted(scores: list[float]) -> FunctionScorer:
    """Knows the candidates by their pixels."""

    def score(images):
        return torch.tensor(scores)[(images[:, 2].mean((1, 2)) * 255).round().long().clamp_max(len(scores) - 1)]

    return FunctionScorer(score, name="planted", higher_is_better=True, score_range=(0, 1))


def _table(root: Path, scores: list[float]) -> QualityTable:
    return QualityTable.compute(root, _planted(scores), root.parent / "planted.csv", layout="folders", progress=False)


def test_crops_and_low_resolution_images_do_not_depend_on_the_strategy(root):
    table = _table(root, [0.1, 0.2, 0.15, 0.0])
    options = {"crop": 16, "degradation": HGGTDegradation(), "candidates": True, "table": table}
    runs = [MultiGTDataset(root, strategy=strategy, **options) for strategy in ("originals", "random", "sma", "amo")]
    for items in zip(*runs, strict=True):
        for item in items[1:]:
            assert torch.equal(item["lq"], items[0]["lq"])
            assert torch.equal(item["candidates"], items[0]["candidates"])
    assert "gt" not in runs[-1][0]


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("workers", [2, 4])
def test_workers_change_nothing(root, workers):
    data = MultiGTDataset(root, strategy="random", crop=16, degradation=HGGTDegradation(), repeat=3, candidates=True)
    data.set_epoch(4)
    before = torch.get_rng_state()
    alone = [data[i] for i in range(len(data))]
    assert torch.equal(before, torch.get_rng_state())
    batches = list(DataLoader(data, batch_size=3, num_workers=workers))
    together = {key: torch.cat([batch[key] for batch in batches]) for key in ("lq", "gt", "gt_index", "candidates")}
    for key, values in together.items():
        assert torch.equal(values, torch.stack([torch.as_tensor(item[key]) for item in alone]))


def test_epochs_reach_persistent_workers(root):
    data = MultiGTDataset(root, strategy="random", crop=16, repeat=4)
    loader = DataLoader(data, batch_size=6, num_workers=2, persistent_workers=True)
    for epoch in (0, 1, 0):
        data.set_epoch(epoch)
        seen = torch.cat([batch["gt"] for batch in loader])
        assert torch.equal(seen, torch.stack([item["gt"] for item in data]))


def test_epochs_seeds_ranks_and_repeats_have_their_own_draws_and_a_resume_has_the_old_ones(root):
    def draws(epoch=0, **options):
        data = MultiGTDataset(root, strategy="random", crop=16, repeat=4, **options)
        data.set_epoch(epoch)
        return data

    first = draws(3, seed=1)
    again = draws(3, seed=1)
    for position in (7, 2, 11, 2):  # in any order
        assert same(first[position], again[position])
    assert same(pickle.loads(pickle.dumps(first))[5], first[5])
    for other in (draws(2, seed=1), draws(3, seed=2), draws(3, seed=1, rank=1)):
        assert sum(same(first[i], other[i]) for i in range(12)) < 3
    assert sum(torch.equal(first[i]["gt"], first[i + 3]["gt"]) for i in range(9)) < 3
    assert same(first[-1], first[11])
    for outside in (12, -13):
        with pytest.raises(IndexError, match="12 samples"):
            first[outside]


def test_low_resolution_images_of_a_crop_are_those_of_the_whole_image(photographs, tmp_path):
    (tmp_path / "original").mkdir()
    save_image(to_uint8(photographs[0]), tmp_path / "original/a.png")
    whole = bicubic_degradation(photographs[0], 4)
    data = MultiGTDataset(tmp_path, scale=4, crop=32, flips=False, repeat=40)
    full = to_uint8(photographs[0]).float() / 255
    for item in data:
        windows = full.unfold(1, 32, 4).unfold(2, 32, 4)
        place = (windows == item["gt"][:, None, None]).all(-1).all(-1).all(0).nonzero()[0].tolist()
        expected = whole[:, place[0] : place[0] + 8, place[1] : place[1] + 8]
        assert float((item["lq"] - expected).abs().max()) <= 1 / 255 + 1e-6  # rounding may tip over


def test_given_low_resolution_images(root, tmp_path):
    (tmp_path / "lq").mkdir()
    for name, suffix in (("a", ""), ("b", "x4"), ("c", "")):
        whole = load_image(root / "original" / f"{name}.png")
        save_image(whole[:, ::4, ::4].contiguous(), tmp_path / "lq" / f"{name}{suffix}.bmp")
    data = MultiGTDataset(root, strategy="random", crop=16, lq=tmp_path / "lq", repeat=10)
    for item in data:
        blocks = numbers(item["gt"])[:2].reshape(2, 4, 4, 4, 4).amin((2, 4))
        assert torch.equal(numbers(item["lq"])[:2], blocks)
    save_image(torch.zeros(3, 9, 9, dtype=torch.uint8), tmp_path / "lq/a.bmp")
    with pytest.raises(ValueError, match=r"a\.bmp is 9x9, but .*a\.png is 40x56 and scale=4"):
        data[0]
    (tmp_path / "lq/a.bmp").unlink()
    with pytest.raises(ValueError, match=r"no low-resolution image of 'a\.png'"):
        MultiGTDataset(root, crop=16, lq=tmp_path / "lq")


def test_hggts_labels_positives_negatives_and_votes(hggt):
    data = MultiGTDataset(hggt, layout="hggt", strategy="upos", scale=4, crop=16, negatives=True, repeat=40)
    drawn: dict[str, Counter] = {name: Counter() for name in ANNOTATIONS}
    for item in data:
        name = Path(item["path"]).stem
        _, labels, votes = ANNOTATIONS[name]
        assert item["positives"].tolist() == [False, *(label == 1 for label in labels)]
        chosen = int(numbers(item["gt"])[2, 0, 0])
        negative = int(numbers(item["negative"])[2, 0, 0])
        assert (numbers(item["original"])[2] == 0).all()
        assert chosen == item["gt_index"]
        assert item["positive_votes"] == (votes[chosen - 1] if chosen else 0)
        assert item["negative_votes"] == (votes[negative - 1] if negative else 0)
        drawn[name][chosen, negative] += 1
    assert sorted(drawn["a"]) == [(1, 3), (4, 3)]
    assert sorted(drawn["b"]) == [(0, 0)]  # all similar: the original, and nothing to push away from
    assert sorted(drawn["c"]) == [(0, 1), (0, 2)]
    assert min(drawn["a"].values()) > 8
    batch = next(iter(DataLoader(data, batch_size=3)))
    pred = (batch["gt"] + 0.01).clamp(0, 1).requires_grad_()
    votes = {name: batch[name] for name in ("original", "negative", "negative_votes", "positive_votes")}
    assert torch.isfinite(HGGTNegativeLoss()(pred, batch["gt"], **votes))


@pytest.mark.parametrize(("keep", "names"), [("all", "abc"), ("positive", "a"), ("judged", "ac")])
def test_sets_that_taught_nothing_are_dropped(hggt, keep, names):
    data = MultiGTDataset(hggt, layout="hggt", strategy="upos", scale=4, crop=16, keep=keep)
    assert [Path(item["path"]).stem for item in data] == list(names)


def test_nothing_left(hggt):
    for path in (hggt / "labels").rglob("*.json"):
        path.write_text((path.parent / "b.json").read_text())
    for path in (hggt / "labels").rglob("*.json"):
        path.write_text(json.dumps({f"Picture_{n}": {"Label": "Similar"} for n in range(2, 6)}))
    with pytest.raises(ValueError, match="leaves none of the 3 sets"):
        MultiGTDataset(hggt, layout="hggt", strategy="upos", keep="positive")


def test_a_table_csv_layout(root, tmp_path):
    lines = ["original,candidate_1"] + [f"sets/original/{n}.png,sets/enhanced_2/{n}.png" for n in "abc"]
    (tmp_path / "sets.csv").write_text("\n".join(lines))
    data = MultiGTDataset(tmp_path / "sets.csv", layout="csv", strategy="random", crop=16, repeat=20)
    assert {int(numbers(item["gt"])[2, 0, 0]) for item in data} == {0, 2}


def test_a_missing_candidate_is_refused_or_never_drawn(root):
    (root / "enhanced_2/b.png").unlink()
    with pytest.raises(ValueError, match="lack a candidate"):
        MultiGTDataset(root, strategy="random", crop=16)
    options = {"crop": 16, "missing": "allow", "candidates": True, "repeat": 30}
    data = MultiGTDataset(root, strategy="random", **options)
    drawn = {item["gt_index"] for item in data if Path(item["path"]).stem == "b"}
    assert drawn == {0, 1, 3}
    item = data[1]
    assert torch.equal(item["candidates"][2], item["candidates"][0])
    # The copy can win nothing from the original.
    scorer = FunctionScorer(lambda x: x[:, 2].mean((1, 2)), name="number", higher_is_better=False)
    assert select_ground_truth(item["candidates"][None], strategy="amo", scorer=scorer).tolist() == [0]


def test_amo_takes_what_is_best_in_the_crop(tmp_path):
    """Left the enhanced image is brighter, right the original; as a whole the enhanced one."""

    def make(height, width, number):
        image = torch.full((3, height, width), 100, dtype=torch.uint8)
        image[:, :, : width // 2] += 60 * number
        image[:, :, width // 2 :] -= 40 * number
        return image

    root = write_folders(tmp_path / "sets", [(32, 64)], count=2, make=make)
    scorer = brightness("light")
    whole = torch.stack([load_image(root / f / "a.png").float().mean() for f in ("original", "enhanced_1")])
    assert int(whole.argmax()) == 1
    data = MultiGTDataset(root, strategy="amo", crop=16, repeat=40, flips=False)
    found = Counter()
    for batch in DataLoader(data, batch_size=8):
        index = select_ground_truth(batch["candidates"], strategy="amo", scorer=scorer)
        assert torch.equal(index, batch["candidates"].mean((2, 3, 4)).argmax(1))
        found.update(index.tolist())
    assert min(found[0], found[1]) > 5


def test_whole_images_and_grey_files(tmp_path, photographs):
    (tmp_path / "original").mkdir()
    save_image(to_uint8(photographs[1].mean(0, keepdim=True)), tmp_path / "original/a.png")
    item = MultiGTDataset(tmp_path, scale=3, flips=False)[0]
    assert item["gt"].shape == (3, 192, 192)
    assert item["lq"].shape == (3, 64, 64)
    torch.testing.assert_close(item["lq"], bicubic_degradation(item["gt"], 3))


def test_a_table_of_other_images_is_refused(root, tmp_path):
    other = write_folders(tmp_path / "other/sets", [(40, 40), (40, 40)])
    for path in sorted(other.rglob("b.png")):
        path.rename(path.with_name("z.png"))
    table = _table(other, [0.1, 0.2, 0.3, 0.4])
    with pytest.raises(ValueError, match=r"lacks 2 of 3 samples: b\.png, c\.png.*another data set"):
        MultiGTDataset(root, strategy="sma", crop=16, table=table)
    fewer = write_folders(tmp_path / "fewer/sets", [(40, 56), (48, 40), (64, 64)], count=2)
    with pytest.raises(ValueError, match=r"another number of candidates for a\.png"):
        MultiGTDataset(root, strategy="sma", crop=16, table=_table(fewer, [0.1, 0.2]))
    tiles = QualityTable.compute(
        root, _planted([0.1]), tmp_path / "tiles.csv", layout="folders", tiles=32, progress=False
    )
    with pytest.raises(ValueError, match="of tiles"):
        MultiGTDataset(root, strategy="sma", crop=16, table=tiles)
    with pytest.raises(TypeError, match=r"QualityTable\.load"):
        MultiGTDataset(root, strategy="sma", crop=16, table=tmp_path / "tiles.csv")


def test_an_unbounded_score_needs_zscores(root):
    table = QualityTable(["a.png", "b.png", "c.png"], torch.rand(3, CANDIDATES), "niqe", False)
    with pytest.raises(ValueError, match="zscore"):
        MultiGTDataset(root, strategy="sma", crop=16, table=table)
    data = MultiGTDataset(root, strategy="sma", crop=16, table=table, normalize="zscore", temperature=1e-6)
    assert [item["gt_index"] for item in data] == table.values.argmin(1).tolist()
    assert all(torch.equal(item["scores"], row) for item, row in zip(data, table.values, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "best"}, "strategy must be one of"),
        ({"strategy": "sma"}, "needs table="),
        ({"strategy": "upos"}, "nobody has judged"),
        ({"negatives": True}, "nobody has judged"),
        ({"keep": "positive"}, "nobody has judged"),
        ({"keep": "best"}, "keep must be one of"),
        ({"crop": 18}, "must be a multiple of scale=4"),
        ({"crop": 0}, "crop must be a whole number"),
        ({"scale": 0}, "scale must be a whole number"),
        ({"repeat": 0}, "repeat must be a whole number"),
        ({"layout": "hggt"}, "lack a candidate"),
        ({"layout": "zip"}, "layout must be one of"),
        ({"lq": ".", "degradation": bicubic_degradation}, "not both"),
        ({"strategy": "upos", "positives": {"q.png": [1]}}, r"'q\.png', which is none of the 3 sets"),
        ({"strategy": "upos", "positives": {"a.png": [0]}}, "from 1 to 3"),
        ({"strategy": "upos", "positives": {"a.png": [4]}}, "from 1 to 3"),
    ],
)
def test_bad_options(root, options, message):
    with pytest.raises(ValueError, match=message):
        MultiGTDataset(root, **options)


def test_the_two_objects_are_the_options(root):
    by_options = MultiGTDataset(root, strategy="random", layout="folders", crop=16, seed=3)
    by_objects = MultiGTDataset(GroundTruths(root=root), Choice(strategy="random"), crop=16, seed=3)
    by_name = MultiGTDataset(root=root, strategy="random", crop=16, seed=3)
    for data in (by_objects, by_name):
        assert torch.equal(data.probabilities, by_options.probabilities)
        assert all(torch.equal(a["gt"], b["gt"]) for a, b in zip(data, by_options, strict=True))
    for arguments, options, message in (
        ((GroundTruths(root=root),), {"layout": "csv"}, r"layout= belongs into truths="),
        ((root, Choice()), {"strategy": "sma"}, r"strategy= belongs into choice="),
        ((root,), {"strategi": "sma"}, "no option 'strategi'"),
        ((), {}, "needs the folder"),
    ):
        with pytest.raises(TypeError, match=message):
            MultiGTDataset(*arguments, **options)


def test_bad_samples(root, tmp_path):
    with pytest.raises(ValueError, match=r"a\.png is 40x56, too small for crop=48"):
        MultiGTDataset(root, crop=48)[0]
    with pytest.raises(ValueError, match=r"a\.png is 40x56, which scale=3 does not divide"):
        MultiGTDataset(root, scale=3)[0]
    save_image(coordinates(40, 52, 2), root / "enhanced_2/a.png")
    data = MultiGTDataset(root, crop=16, candidates=True)
    with pytest.raises(ValueError, match=r"a\.png is 40x56, .*enhanced_2.a\.png is 40x52"):
        data[0]
    with pytest.raises(ValueError, match=r"the degradation must give \(3, \d+, \d+\) for scale=4, got \(3, "):
        MultiGTDataset(root, crop=16, degradation=lambda image, scale, generator: image)[0]
    with pytest.raises(ValueError, match="epoch"):
        data.set_epoch(-1)
    (root / "original/c.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"c\.png is not a readable image"):
        data[2]


def test_hggts_degradation_is_made_again_from_its_generator_and_is_like_a_mild_one(photographs):
    degrade = HGGTDegradation()
    plain = bicubic_degradation(photographs[0], 4)
    for seed in range(12):
        before = torch.get_rng_state()
        made, again = (degrade(photographs[0], 4, torch.Generator().manual_seed(seed)) for _ in range(2))
        assert torch.equal(before, torch.get_rng_state())
        assert torch.equal(made, again)
        assert made.shape == plain.shape
        assert torch.equal((made * 255).round() / 255, made)
        psnr = -10 * float((made - plain).square().mean().log10())
        assert 17 < psnr < 40
    different = [degrade(photographs[0], 4, torch.Generator().manual_seed(seed)) for seed in range(2)]
    assert not torch.equal(*different)


def test_the_parts_of_the_degradation(photographs):
    scipy = pytest.importorskip("scipy")
    y, x = np.mgrid[-4:5, -4:5]
    # Deviations 1.5 and 0.5, turned by 30 degrees, from the covariance.
    turn = np.array([[np.cos(np.pi / 6), -np.sin(np.pi / 6)], [np.sin(np.pi / 6), np.cos(np.pi / 6)]])
    inverse = np.linalg.inv(turn @ np.diag([1.5**2, 0.5**2]) @ turn.T)
    points = np.stack([x, y], -1)
    expected = np.exp(-0.5 * np.einsum("...i,ij,...j", points, inverse, points))
    np.testing.assert_allclose(gaussian_kernel(9, 1.5, 0.5, np.pi / 6), expected / expected.sum(), atol=1e-7)
    radius = np.hypot(x, y)
    with np.errstate(invalid="ignore", divide="ignore"):
        low_pass = 1.2 * scipy.special.j1(1.2 * radius) / (2 * np.pi * radius)
    low_pass[4, 4] = 1.2**2 / (4 * np.pi)
    np.testing.assert_allclose(sinc_kernel(9, 1.2), low_pass / low_pass.sum(), atol=1e-7)
    kernel = gaussian_kernel(5, 1.0, 0.3, 0.7)
    image = photographs[0]
    expected = np.stack([scipy.ndimage.correlate(c, kernel.numpy(), mode="nearest") for c in image.numpy()])
    np.testing.assert_allclose(filter_image(image, kernel), expected, atol=1e-6)
    low, high = (float((compress(image, quality) - image).abs().mean()) for quality in (10, 95))
    assert high < 0.02 < low


@pytest.mark.parametrize(
    "options", [{"gaussian": 1.0, "noise": (25.5, 25.5)}, {"gaussian": 0.0, "poisson": (1.0, 1.0)}]
)
def test_the_noise_has_its_size(options):
    degrade = HGGTDegradation(
        sigma=(0.01, 0.01), isotropic=1.0, sinc=0.0, up=0.0, down=0.0, quality=(100, 100), **options
    )
    image = torch.full((3, 256, 256), 0.5)
    image[:, :, 128:] = 0.25
    image[:, 0] = torch.arange(256) / 255  # 256 levels: as many photons for white
    made = degrade(image, 1, torch.Generator().manual_seed(0))
    noise = [float((made - image)[:, 8:, part].std()) for part in (slice(4, 124), slice(132, 252))]
    expected = (0.1, 0.1) if options["gaussian"] else ((0.5 / 256) ** 0.5, (0.25 / 256) ** 0.5)
    for found, wanted in zip(noise, expected, strict=True):
        assert found == pytest.approx(wanted, rel=0.15)  # a JPEG, even at 100, takes some of the colour


def test_a_table_of_images_that_only_share_their_names_is_refused(root, tmp_path):
    table = _table(root, [0.1, 0.2, 0.3, 0.4])
    other = write_folders(
        tmp_path / "other", [(40, 56), (48, 40), (64, 64)], make=lambda h, w, n: 255 - coordinates(h, w, n)
    )
    MultiGTDataset(root, strategy="sma", table=table, normalize="zscore")
    with pytest.raises(ValueError, match=r"have changed: a\.png"):
        MultiGTDataset(other, strategy="sma", table=table, normalize="zscore")

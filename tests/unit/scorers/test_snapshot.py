"""Snapshot scorers: their targets by hand, their scores on digits that they were not fitted on, and their promises."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from qa_hooks.losses import ScoreLoss
from qa_hooks.scorers import load_scorer
from qa_hooks.scorers.giqa.snapshot import BCScorer, IRScorer, MBCScorer, SnapshotScorer
from qa_hooks.scorers.giqa.snapshot_network import SnapshotNetwork, train_network
from qa_hooks.scorers.giqa.snapshot_targets import (
    held_out_report,
    ordinal_targets,
    ordinal_thresholds,
    pseudo_labels,
    snapshot_loss,
)
from qa_hooks.scorers.training import training_room

LAST = 2000


def test_pseudo_labels_and_targets_of_the_paper():
    iterations = torch.tensor([0, 250, 500, 1000, 1999, 2000])
    quality = pseudo_labels(iterations, LAST)
    assert quality.tolist() == pytest.approx([0, 0.1125, 0.225, 0.45, 0.89955, 0.9])
    targets = ordinal_targets(torch.cat([quality, torch.ones(1)]), ordinal_thresholds(8))
    by_hand = [[0] * 8, [1] + [0] * 7, [1, 1] + [0] * 6, [1] * 4 + [0] * 4, [1] * 7 + [0], [1] * 7 + [0], [1] * 8]
    assert targets.tolist() == by_hand


@pytest.mark.parametrize("classifiers", [1, 2, 3, 7, 8, 12])
@pytest.mark.parametrize("last", [7, 1000, 770_000])
def test_targets_count_thresholds_in_whole_numbers(classifiers, last):
    """S_g cancels: iteration / last >= i / N in integers, so rounding must not decide at the thresholds."""
    iterations = torch.arange(0, last + 1, max(1, last // 168))
    targets = ordinal_targets(pseudo_labels(iterations, last), ordinal_thresholds(classifiers))
    expected = [[int(k * classifiers >= i * last) for i in range(1, classifiers)] + [0] for k in iterations.tolist()]
    assert targets.int().tolist() == expected


def test_the_loss_is_the_sum_over_classifiers_and_the_mean_over_images():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(5, 3)) * 3, rng.integers(0, 2, (5, 3))
    total = 0.0
    for row, wanted in zip(logits, labels, strict=True):
        for logit, label in zip(row, wanted, strict=True):
            total -= math.log(1 / (1 + math.exp(-logit if label else logit)))
    assert float(snapshot_loss(torch.tensor(logits), torch.tensor(labels).double())) == pytest.approx(total / 5)
    squares = [(1 / (1 + math.exp(-logit)) - 0.3) ** 2 for logit in logits[:, 0]]
    loss = snapshot_loss(torch.tensor(logits[:, :1]), torch.full((5, 1), 0.3).double(), regression=True)
    assert float(loss) == pytest.approx(sum(squares) / 5)
    assert math.isfinite(float(snapshot_loss(torch.tensor([[-1e4, 1e4]]), torch.tensor([[1.0, 0.0]]))))


def test_the_report_is_the_balanced_accuracy_of_scikit_learn():
    from sklearn.metrics import balanced_accuracy_score

    rng = np.random.default_rng(0)
    predicted, labels = rng.random((50, 3)), (rng.random((50, 3)) > [0.1, 0.5, 0.8]).astype(int)
    report = held_out_report(torch.tensor(predicted), torch.tensor(labels))
    expected = [balanced_accuracy_score(labels[:, i], predicted[:, i] >= 0.5) for i in range(3)]
    assert report["accuracies"] == pytest.approx(expected)
    assert report["accuracy"] == pytest.approx(np.mean(expected))


def blends(images, iterations, seed):
    """What a run would show: digits that come out of the noise, never quite."""
    generator = torch.Generator().manual_seed(seed)
    share = (0.85 * iterations / LAST)[:, None, None, None]
    chosen = images[torch.randint(len(images), (len(iterations),), generator=generator)]
    return share * chosen + (1 - share) * torch.rand(chosen.shape, generator=generator)


@pytest.fixture(scope="module")
def world(digits):
    """Snapshots and real images to fit on, each of other digits; and more digits to judge on."""
    unit = (digits + 1) / 2
    iterations = torch.arange(0, LAST + 1, 100).repeat_interleave(30)
    return {"pair": (blends(unit[:500], iterations, 0), iterations), "real": unit[500:900], "test": unit[900:]}


@pytest.fixture(scope="module")
def fitted(world):
    scorers = MBCScorer(4), BCScorer(), IRScorer()
    return {s.name: s.fit_snapshots(world["pair"], world["real"], steps=150, progress=False) for s in scorers}


@pytest.mark.parametrize("name", ["giqa_mbc", "giqa_ir"])
def test_later_blends_of_other_digits_score_higher(fitted, world, name):
    generator = torch.Generator().manual_seed(5)
    first, second = torch.randint(21, (2, 2000), generator=generator) * 100
    first, second = first[first != second], second[first != second]
    difference = fitted[name](blends(world["test"], first, 6)) - fitted[name](blends(world["test"], second, 7))
    accuracy = float((difference * (first - second) > 0).float().mean())
    assert accuracy > 0.9


@pytest.mark.parametrize("name", ["giqa_mbc", "giqa_bc", "giqa_ir"])
def test_real_digits_score_above_any_blend(fitted, world, name):
    scorer = fitted[name]
    scores = scorer(blends(world["test"], torch.full((300,), LAST), 8))
    real = scorer(world["test"])
    assert float((real[:, None] > scores).float().mean()) > 0.95
    assert 0 <= float(scores.min()) <= float(real.max()) <= 1
    assert scorer.calibrated()(world["test"]).mean() == pytest.approx(0.5, abs=0.1)


def test_the_report_says_how_good_each_classifier_is(fitted):
    report = fitted["giqa_mbc"].report
    assert report["thresholds"] == pytest.approx([0.225, 0.45, 0.675, 1.0])
    assert len(report["accuracies"]) == 4
    assert min(report["accuracies"]) > 0.85
    assert report["held_out"] == [80, 126]
    assert (report["real"], report["generated"], report["unreadable"]) == (400, 630, 0)
    assert fitted["giqa_bc"].report["accuracy"] > 0.95
    assert fitted["giqa_ir"].report["error"] < 0.1


@pytest.mark.parametrize("name", ["giqa_mbc", "giqa_bc", "giqa_ir"])
def test_saved_and_loaded_scores_are_the_same_bits(fitted, world, name, tmp_path):
    scorer = fitted[name]
    scorer.save(tmp_path / "scorer.safetensors")
    state = torch.get_rng_state()
    loaded = load_scorer(tmp_path / "scorer.safetensors", (-1, 1))
    assert torch.equal(torch.get_rng_state(), state)
    images = world["test"][:50]
    assert type(loaded) is type(scorer)
    assert torch.equal(loaded(images * 2 - 1), scorer((images * 2 - 1 + 1) / 2))
    assert torch.equal(loaded.calibration.points, scorer.calibration.points)
    assert loaded.report == scorer.report
    assert loaded.options() == scorer.options()


def quick(pair, real, scorer=None, **options):
    return (scorer or MBCScorer(2)).fit_snapshots(pair, real, **{"steps": 3, "progress": False, **options})


def weights(scorer):
    return torch.cat([value.flatten().double() for value in scorer.tensors().values()])


def test_a_seed_decides_everything_and_the_users_run_is_untouched(world):
    torch.manual_seed(3)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = weights(quick(world["pair"], world["real"]))
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == numpy_state).all()
    torch.rand(5)
    assert torch.equal(weights(quick(world["pair"], world["real"])), first)
    assert not torch.equal(weights(quick(world["pair"], world["real"], MBCScorer(2, seed=1))), first)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("room", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_it_trains_the_same_whatever_mode_the_caller_is_in(world, room):
    expected = weights(quick(world["pair"], world["real"]))
    with room():
        fitted = quick((world["pair"][0].clone(), world["pair"][1]), world["real"].clone())
    assert torch.equal(weights(fitted), expected)
    assert not any(parameter.is_inference() for parameter in fitted.network.parameters())


def test_it_is_frozen_and_in_nobodys_checkpoint(fitted, world):
    scorer = fitted["giqa_mbc"]
    parent = torch.nn.Module()
    parent.scorer = scorer
    parent.train()
    assert not list(parent.parameters())
    assert not parent.state_dict()
    assert not scorer.network.training
    assert not any(parameter.requires_grad for parameter in scorer.network.parameters())
    before = weights(scorer)
    parent.half()
    assert torch.equal(weights(scorer), before)


def test_as_a_loss_it_moves_images_towards_better_ones(fitted, world):
    images = blends(world["test"], torch.full((16,), 400), 9).requires_grad_()
    scorer = fitted["giqa_ir"]
    start = scorer(images.detach())
    ScoreLoss(scorer)(images).backward()
    assert torch.isfinite(images.grad).all()
    assert (images.grad.flatten(1).norm(dim=1) > 0).all()
    moved = (images.detach() - 0.5 * images.grad / images.grad.flatten(1).norm(dim=1)[:, None, None, None]).clamp(0, 1)
    assert (scorer(moved) > start).float().mean() > 0.9


def folder_of(pair, root, shape=None):
    for index, (image, iteration) in enumerate(zip(*pair, strict=True)):
        path = root / f"step_{int(iteration)}" / f"{index:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray((image[0] * 255).round().byte().numpy())
        (picture.resize(shape(index)) if shape else picture).save(path)
    return root


def test_a_folder_gives_what_its_images_give(world, tmp_path):
    order = torch.arange(0, 630, 9)
    pair = world["pair"][0][order], world["pair"][1][order]
    from_folder = quick(folder_of(pair, tmp_path / "run"), world["real"])
    by_name = sorted(range(len(order)), key=lambda i: f"step_{int(pair[1][i])}/{i:04d}")
    as_bytes = (pair[0][by_name] * 255).round().byte()
    assert torch.equal(weights(from_folder), weights(quick((as_bytes, pair[1][by_name]), world["real"])))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(world["real"]), batch_size=7)
    assert torch.equal(weights(from_folder), weights(quick(tmp_path / "run", loader)))


def test_broken_files_are_left_out_and_mixed_sizes_resized(world, tmp_path):
    pair = world["pair"][0][::9], world["pair"][1][::9]
    folder = folder_of(pair, tmp_path / "run", shape=lambda index: (16, 16) if index % 2 == 0 else (20, 24))
    (folder / "step_100" / "broken.png").write_bytes(b"\x89PNG nothing")
    with (
        pytest.warns(UserWarning, match=r"1 snapshot could not be read .*broken.png"),
        pytest.warns(UserWarning, match="the snapshots had to be resized and the real images had not"),
        pytest.warns(UserWarning, match="the snapshots have 2 sizes; all are brought to 16 x 16"),
    ):
        scorer = quick(folder, world["real"])
    assert scorer.report["generated"] == 70
    assert scorer.report["unreadable"] == 1
    assert scorer.shape == (1, 16, 16)


@pytest.mark.parametrize(("channels", "seen"), [(None, 1), (3, 3)])
def test_grey_and_colour_and_other_sizes_are_converted(world, channels, seen):
    scorer = quick(world["pair"], world["real"].expand(-1, 3, -1, -1), MBCScorer(2, channels=channels, size=(12, 20)))
    assert scorer.shape == (seen, 12, 20)
    grey = world["test"][:4]
    assert torch.allclose(scorer(grey), scorer(grey.expand(-1, 3, -1, -1)), atol=1e-5)
    assert scorer(torch.rand(2, 3, 40, 30, dtype=torch.float64)).dtype == torch.float32
    assert scorer((grey * 255).round().byte()).shape == (4,)
    with pytest.raises(ValueError, match="1 or 3 channels, got 4"):
        scorer(torch.rand(2, 4, 16, 16))


def test_the_level_and_the_last_iteration_shift_the_labels(world):
    _, iterations = world["pair"]
    scorer = IRScorer(generated_level=0.5)
    assert scorer._quality(iterations, 1000).max() == 0.5
    assert (scorer._quality(iterations, 1000) == 0.5).sum() == 30 * 11
    quick(world["pair"], world["real"], MBCScorer(2), max_iteration=1000)
    with pytest.raises(ValueError, match=r"all 630 snapshots are of iteration 0 \(or beyond"):
        quick((world["pair"][0], iterations * 0), world["real"])
    own = MBCScorer(thresholds=[0.3, 0.95])
    assert own.thresholds == (0.3, 0.95)
    assert quick(world["pair"], world["real"], own).report["thresholds"] == [0.3, 0.95]


def test_one_iteration_is_enough_for_real_or_generated(world):
    late = world["pair"][1] == LAST
    scorer = quick((world["pair"][0][late], world["pair"][1][late] * 0), world["real"], BCScorer())
    assert scorer.thresholds == (1.0,)


@pytest.mark.parametrize("backbone", ["mobilenet_v3_small", "squeezenet1_1"])
def test_networks_of_torchvision(world, backbone, tmp_path):
    pytest.importorskip("torchvision")
    scorer = MBCScorer(2, backbone=backbone, size=32)
    quick(world["pair"], world["real"], scorer, steps=2, batch_size=8, calibration=None)
    scorer.save(tmp_path / "scorer.safetensors")
    images = world["test"][:3]
    assert torch.equal(load_scorer(tmp_path / "scorer.safetensors")(images), scorer(images))


@pytest.mark.parametrize("backbone", ["inception_v3", "vit_b_32"])
def test_images_too_small_for_a_network_are_refused_before_training(world, backbone):
    with pytest.raises(ValueError, match=f"{backbone} cannot take images of 16 x 16: .*size=224"):
        quick(world["pair"], world["real"], MBCScorer(2, backbone=backbone))


def test_auxiliary_outputs_and_input_transforms_are_off():
    pytest.importorskip("torchvision")
    with training_room(torch.device("cpu"), 0):
        network = SnapshotNetwork("googlenet", 3, 1, (32, 32))
        assert network(torch.rand(2, 1, 32, 32)).shape == (2, 3)
    assert network.body.transform_input is False


class Probe(torch.nn.Module):
    """A network that remembers what it is trained on."""

    def __init__(self):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(1))
        self.seen = []

    def forward(self, images):
        self.seen.append(images.detach() * 255)
        return images.mean((1, 2, 3))[:, None] + self.bias


@pytest.mark.parametrize("flip", [False, True])
def test_training_images_are_shifted_by_whole_pixels_and_mirrored_by_option_only(flip):
    probe, ramp = Probe(), (torch.arange(16) * 10).byte().expand(40, 1, 16, 16)
    train_network(probe, ramp, torch.zeros(40, 1), ramp, steps=4, batch_size=32, flip=flip, progress=False)
    images = torch.cat(probe.seen)[:, 0]
    rising = images[:, 8, 12] > images[:, 8, 4]
    assert bool(rising.all()) != flip
    assert float(rising.float().mean()) > 0.25
    tens = images[rising][:, 8, 8] / 10
    assert {round(float(value)) for value in tens} == {7, 8, 9}
    assert 0.01 < float((tens - tens.round()).abs().max()) <= 0.051  # and less than a grey level of noise


def test_each_batch_is_half_real_and_half_generated():
    probe, black, white = Probe(), torch.zeros(400, 1, 8, 8).byte(), torch.full((25, 1, 8, 8), 255).byte()
    train_network(probe, black, torch.zeros(400, 1), white, steps=3, batch_size=10, progress=False)
    assert [int((images.mean((1, 2, 3)) > 128).sum()) for images in probe.seen] == [5, 5, 5]
    assert [len(images) for images in probe.seen] == [10, 10, 10]


BAD_FITS = {
    "pair": (lambda w: (w["pair"][0], w["real"]), r"a folder, or a pair \(images .*, got Tensor"),
    "few real": (lambda w: (w["pair"], w["real"][:19]), "at least 20 real images, got 19"),
    "no images": (lambda w: ((w["pair"][0][:0], w["pair"][1][:0]), w["real"]), "snapshots is empty"),
    "iterations": (lambda w: ((w["pair"][0], w["pair"][1][:5]), w["real"]), r"630 images, iterations of shape \(5,\)"),
    "negative": (lambda w: ((w["pair"][0], w["pair"][1] - 5), w["real"]), "finite and not negative"),
    "nan snapshots": (
        lambda w: ((w["pair"][0] * float("nan"), w["pair"][1]), w["real"]),
        "snapshots: some values are not finite",
    ),
    "nan real": (lambda w: (w["pair"], w["real"] * float("nan")), "real: some values are not finite"),
    "range": (
        lambda w: (w["pair"], w["real"] * 2 - 1),
        r"real: values lie in .* but value_range=\(0, 1\) was declared",
    ),
    "tiny": (lambda w: ((w["pair"][0][..., :4, :4], w["pair"][1]), w["real"]), "at least 8 pixels a side, got 4 x 4"),
    "nowhere": (lambda w: ("/nowhere/at/all", w["real"]), "not a folder"),
}


@pytest.mark.parametrize("name", BAD_FITS)
def test_bad_images_are_named(world, name):
    make, message = BAD_FITS[name]
    snapshots, real = make(world)
    with pytest.raises((TypeError, ValueError), match=message):
        quick(snapshots, real)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": "both"}, "targets must be one of"),
        ({"classifiers": 0}, "classifiers must be a whole number"),
        ({"thresholds": [0.5, 0.2]}, "must ascend"),
        ({"thresholds": [0.5, 1.2]}, "must ascend within"),
        ({"thresholds": [0.5], "targets": "binary"}, "thresholds go with targets='ordinal'"),
        ({"generated_level": 0}, "generated_level must be a share"),
        ({"channels": 2}, "channels must be"),
        ({"size": (1, 2, 3)}, "size must be"),
        ({"pretrained": True}, "no pretrained weights"),
        ({"backbone": "resnet17"}, r"backbone must be 'small' or a classification network .* got 'resnet17'"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        SnapshotScorer(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"held_out": 0}, "held_out must"), ({"calibration": "best"}, "calibration must"), ({"steps": 0}, "steps must"),
     ({"max_iteration": 0}, "max_iteration must"), ({"lr": 1e30}, "smaller lr"), ({"max_images": 3}, "max_images")],
)  # fmt: skip
def test_options_of_the_fit_are_checked(world, options, message):
    with pytest.raises(ValueError, match=message):
        quick(world["pair"], world["real"], **options)


def test_an_unfitted_scorer_says_so(tmp_path):
    for use in (lambda s: s(torch.rand(2, 1, 16, 16)), lambda s: s.save(tmp_path / "scorer.safetensors")):
        with pytest.raises(ValueError, match="giqa_mbc is not fitted; call fit_snapshots"):
            use(MBCScorer())


def test_without_spread_there_is_a_scorer_but_no_calibration(world):
    with pytest.warns(UserWarning, match="has no calibration, because .* no spread"):
        scorer = quick(world["pair"], world["real"][:1].expand(30, -1, -1, -1))
    assert scorer.calibration is None
    assert quick(world["pair"], world["real"], calibration=None).calibration is None


def test_of_many_images_a_share_is_taken_evenly(world):
    scorer = quick(world["pair"], world["real"], max_images=40)
    assert (scorer.report["real"], scorer.report["generated"]) == (40, 40)
    assert scorer._quality(world["pair"][1][torch.linspace(0, 629, 40).long()], None).unique().numel() == 21

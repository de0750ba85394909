"""GenerativeMonitor on real digits: its numbers, its cache, its state, and that the run does not notice it."""

from __future__ import annotations

import copy
import logging
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from qa_hooks.callbacks import GenerativeMonitor, Hooks
from qa_hooks.callbacks.callback import Context
from qa_hooks.evaluation.measure import measure
from qa_hooks.evaluation.reference import Reference, make_reference
from qa_hooks.features import create_extractor
from qa_hooks.functional.kid import kernel_distance
from qa_hooks.functional.precision_and_recall import precision_recall
from qa_hooks.images import to_uint8
from qa_hooks.scorers import GMMScorer
from qa_hooks.writers import MemoryWriter

EXTRACTOR = {"type": "random", "width": 4}


def noisy(digits: torch.Tensor, level: float = 0.2):
    """Digits with noise: what an imperfect generator makes."""

    def sample(n: int, generator: torch.Generator) -> torch.Tensor:
        chosen = torch.randint(len(digits), (n,), generator=generator)
        return digits[chosen] + level * torch.randn(n, 1, 16, 16, generator=generator)

    return sample


def make_monitor(digits: torch.Tensor, **options) -> GenerativeMonitor:
    settings = {"extractor": EXTRACTOR, "n": 150, "every": 2, "value_range": (-1, 1), "groups": 5, **options}
    return GenerativeMonitor(settings.pop("sample", noisy(digits)), settings.pop("real", digits[:400]), **settings)


def run(monitor: GenerativeMonitor, steps: int = 1) -> MemoryWriter:
    writer = MemoryWriter()
    with Hooks([monitor], writer=writer) as hooks:
        for _ in range(steps):
            hooks.step()
    return writer


@pytest.mark.filterwarnings("error")
def test_values_are_those_of_the_functions(digits, capsys, caplog):
    caplog.set_level(logging.INFO, "qa_hooks")
    monitor = make_monitor(digits, metrics=("fd", "kid", "pr"))
    writer = run(monitor)
    extractor = create_extractor(EXTRACTOR)
    blocks = []
    from qa_hooks._base.random import mixed_key

    for block, count in enumerate((64, 64, 22)):
        images = noisy(digits)(count, torch.Generator().manual_seed(mixed_key(0, block)))
        blocks.append(extractor(to_uint8(images, (-1, 1))))
    fake, real = torch.cat(blocks), extractor(to_uint8(digits[:400], (-1, 1)))
    chosen = torch.randperm(400, generator=torch.Generator().manual_seed(0))[:150]
    linalg = pytest.importorskip("scipy.linalg")
    (mean_a, cov_a), (mean_b, cov_b) = (
        (r.double().mean(0).numpy(), np.cov(r.double().numpy().T)) for r in (real, fake)
    )
    distance = ((mean_a - mean_b) ** 2).sum() + np.trace(cov_a + cov_b - 2 * linalg.sqrtm(cov_a @ cov_b).real)
    assert monitor.last["step"] == 1
    assert monitor.last["fd"] == pytest.approx(distance, rel=1e-4)
    assert monitor.last["kid"] == pytest.approx(kernel_distance(real, fake).value, rel=1e-4)
    shares = precision_recall(real[chosen], fake)._asdict()
    for key in ("precision", "recall", "density", "coverage"):
        assert monitor.last[key] == pytest.approx(shares[key], abs=1e-9)
    for key in ("fd", "kid", *shares):
        assert monitor.last[f"{key}_low"] <= monitor.last[key] <= monitor.last[f"{key}_high"]
    assert monitor.last["fd_low"] < monitor.last["fd_high"]
    assert writer.scalars["qa_eval/fd_random4-0_n=150/value"] == [(1, monitor.last["fd"])]
    assert writer.scalars["qa_eval/kd_random4-0_n=150/high"] == [(1, monitor.last["kid_high"])]
    assert "n=150" in monitor.spec["fd"]
    assert "real=400" in monitor.spec["fd"]
    assert monitor.spec["fd"] in caplog.text
    assert capsys.readouterr().out == ""  # which is the trainer's own


@pytest.mark.filterwarnings("ignore:.*another convention")
def test_worse_samples_are_further_away(digits):
    near, far = make_monitor(digits, sample=noisy(digits, 0.05)), make_monitor(digits, sample=noisy(digits, 0.6))
    run(near)
    run(far)
    assert near.last["fd_high"] < far.last["fd_low"]
    assert near.last["kid_high"] < far.last["kid_low"]
    assert near.last["precision"] > far.last["precision"]


def test_the_interval_covers_the_mean_over_other_noise(digits):
    quiet = Context(1, {}, {}, MemoryWriter(), 0, 1)
    values, inside = [], 0
    found = []
    reference = make_reference(create_extractor(EXTRACTOR), digits[:400], rows=150, value_range=(-1, 1))
    for seed in range(30):
        monitor = make_monitor(digits, seed=seed, metrics=("fd",), groups=10)
        monitor._reference = reference  # the same each time
        monitor.reduce(quiet, monitor.local(quiet))
        found.append(dict(monitor.last))
        values.append(monitor.last["fd"])
    mean = float(np.mean(values))
    inside = sum(last["fd_low"] <= mean <= last["fd_high"] for last in found)
    assert inside >= 24


def test_identical_sets_are_finite_and_at_zero(digits):
    monitor = make_monitor(digits, sample=lambda n, generator: digits[:n], real=digits[:64], n=64)
    run(monitor)
    assert monitor.last["fd"] == pytest.approx(0, abs=1e-3)
    assert monitor.last["precision"] == monitor.last["recall"] == monitor.last["coverage"] == 1
    collapsed = make_monitor(digits, sample=lambda n, generator: digits[:1].expand(n, -1, -1, -1))
    run(collapsed)
    values = {key: value for key, value in collapsed.last.items() if not key.endswith(("_low", "_high"))}
    assert all(np.isfinite(list(values.values())))
    assert np.isnan(collapsed.last["fd_low"])  # no left-out group changes it: how far it may lie is not known
    assert collapsed.last["recall"] <= 0.01


def test_inception_score_needs_a_classifier(digits):
    with pytest.raises(ValueError, match="pass classifier="):
        make_monitor(digits, metrics=("is",))
    sure = make_monitor(
        digits, metrics=("is",), classifier=lambda x: (x.mean((2, 3)) > 0.3).long() * 50 * torch.eye(2)[0]
    )
    run(sure)
    assert 1 <= sure.last["is"] <= 2
    assert sure.last["is_low"] <= sure.last["is"] <= sure.last["is_high"]


@pytest.fixture(scope="module")
def scorer(digits) -> GMMScorer:
    return GMMScorer(EXTRACTOR, 2, pca=4, value_range=(-1, 1)).fit(digits[:600], progress=False)


@pytest.mark.filterwarnings("ignore:.*converge.*")
def test_quality_and_diversity_scores(digits, scorer):
    options = {"metrics": ("qs", "ds"), "scorer": scorer, "extractor": scorer.extractor, "real": digits[600:900]}
    good = make_monitor(digits, sample=lambda n, g: digits[torch.randint(900, 1400, (n,), generator=g)], **options)
    writer = run(good)
    assert good.last["qs"] == pytest.approx(0.5, abs=0.1)
    assert 0 < good.last["qs_high"] - good.last["qs_low"] < 0.2  # 4 deviations of 0.29 / sqrt(150), and some
    assert good.last["ds"] == pytest.approx(0.5, abs=0.15)
    assert "qa_eval/qs_giqa_gmm_random4-0_n=150/low" in writer.scalars
    collapsed = make_monitor(digits, sample=lambda n, g: digits[900:903].repeat(50, 1, 1, 1)[:n], **options)
    with pytest.warns(UserWarning, match="a generator that ignores its noise shows so"):
        run(collapsed)
    assert collapsed.last["ds"] < good.last["ds_low"]
    with pytest.raises(ValueError, match="GMMScorer or KNNScorer"):
        make_monitor(digits, metrics=("qs",))
    with pytest.raises(ValueError, match=r"extractor=scorer\.extractor"):
        make_monitor(digits, metrics=("qs",), scorer=scorer, extractor="random")


def test_the_reference_is_kept_and_a_changed_data_set_is_noticed(digits, tmp_path, monkeypatch):
    first = make_monitor(digits, cache=tmp_path)
    run(first)
    (kept,) = tmp_path.glob("*.safetensors")
    import qa_hooks.evaluation.reference as reference

    def never(*args, **options):
        raise AssertionError("extracted again")

    with monkeypatch.context() as patch:
        patch.setattr(reference, "extract_features", never)
        again = make_monitor(digits, cache=tmp_path)
        run(again)
    assert again.last == first.last
    changed = digits[:400].clone()
    changed[7] *= 0.99
    run(make_monitor(digits, real=changed, cache=tmp_path))
    run(make_monitor(digits, extractor={"type": "random", "width": 4, "seed": 1}, cache=tmp_path))
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    assert not list(tmp_path.glob("*.partial"))
    kept.write_bytes(kept.read_bytes()[:1000])  # what a full disk leaves
    with pytest.warns(UserWarning, match="does not hold a reference.*computed again"):
        run(make_monitor(digits, cache=tmp_path))
    assert Reference.load(kept).count == 400


def test_a_reference_of_anything(digits, tmp_path):
    from qa_hooks.images import save_image

    extractor = create_extractor(EXTRACTOR)
    images = to_uint8(digits[:60], (-1, 1))
    for index, image in enumerate(images):
        save_image(image, tmp_path / f"{index:03d}.png")
    dataset = TensorDataset(images, torch.zeros(60))
    from torch.utils.data import DistributedSampler

    padded = DistributedSampler(dataset, num_replicas=7, rank=0)  # 9 of 60, and 63 in all
    sources = [images, digits[:60], tmp_path, dataset, DataLoader(dataset, 16, shuffle=True)]
    sources.append(DataLoader(dataset, 16, sampler=padded))
    expected = make_reference(extractor, images)
    for source in sources:
        found = make_reference(extractor, source, value_range=(-1, 1))
        assert found.count == 60
        assert torch.allclose(found.mean, expected.mean, atol=1e-6)
        assert torch.allclose(found.covariance, expected.covariance, atol=1e-5)


def test_a_shuffling_loader_keeps_its_generator(digits):
    generator = torch.Generator().manual_seed(3)
    loader = DataLoader(TensorDataset(digits[:100]), 16, shuffle=True, generator=generator)
    before = generator.get_state()
    make_reference(create_extractor(EXTRACTOR), loader, value_range=(-1, 1))
    assert torch.equal(generator.get_state(), before)


def test_state_survives_and_another_spec_is_refused(digits):
    whole = make_monitor(digits)
    curve = run(whole, 4).scalars
    first, second = make_monitor(digits), make_monitor(digits)
    writer = MemoryWriter()
    hooks = Hooks([first], writer=writer)
    for _ in range(2):
        hooks.step()
    resumed = Hooks([second], writer=writer)
    resumed.load_state_dict(hooks.state_dict())
    assert second.last == first.last
    for _ in range(2):
        resumed.step()
    assert second.last == whole.last
    own = {tag: points for tag, points in curve.items() if tag.startswith("qa_eval")}
    assert {tag: points for tag, points in writer.scalars.items() if tag.startswith("qa_eval")} == own
    other = make_monitor(digits, n=160, every=1)
    moved = Hooks([other], writer=writer)
    moved.load_state_dict(hooks.state_dict())
    with pytest.warns(UserWarning, match="cannot be compared; give a monitor with other settings"):
        moved.step()
    assert other.last == first.last  # nothing was measured


@pytest.mark.parametrize("count", [120, 401])  # fewer real images than generated ones change precision's n too
def test_other_real_images_are_told_and_the_run_goes_on(digits, count):
    hooks = Hooks([make_monitor(digits, real=digits[: count - 1], every=1)], writer=MemoryWriter())
    hooks.step()
    other = make_monitor(digits, real=digits[:count], every=1)
    moved = Hooks([other], writer=MemoryWriter())
    moved.load_state_dict(hooks.state_dict())
    with pytest.warns(UserWarning, match=rf"the real images are others than before.*real={count - 1}.*real={count}"):
        moved.step()
    assert other.last["step"] == 2
    assert f"real={count}" in other.spec["fd"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        moved.step()
    assert other.last["step"] == 3


class Flipped(torch.utils.data.Dataset):
    """Random augmentation, as in training."""

    def __init__(self, images: torch.Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.images[index].flip(-1) if torch.rand(()) < 0.5 else self.images[index]


@pytest.mark.filterwarnings("error")
def test_random_augmentation_of_the_real_images_does_not_end_a_resumed_run(digits):
    torch.manual_seed(1)
    hooks = Hooks([make_monitor(digits, real=Flipped(digits[:100]), every=1)], writer=MemoryWriter())
    hooks.step()
    torch.manual_seed(2)
    again = make_monitor(digits, real=Flipped(digits[:100]), every=1)
    resumed = Hooks([again], writer=MemoryWriter())
    resumed.load_state_dict(hooks.state_dict())
    first = dict(again.last)
    resumed.step()
    assert again.last == {**first, "step": 2}  # the same noise and the same augmentation


def test_rows_of_a_sorted_data_set_are_in_random_order(digits):
    extractor = create_extractor(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), name="brightness")
    levels = torch.linspace(0, 1, 200)[:, None, None, None].expand(-1, 3, 8, 8)
    first = make_reference(extractor, levels, rows=100).rows[:20, 0]
    assert 0.3 < float(first.mean()) < 0.7
    assert float(first.max()) > 0.8


def test_a_reference_that_cannot_be_written_is_warned_of(digits, tmp_path, monkeypatch):
    import safetensors.torch

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise safetensors.SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.warns(UserWarning, match="cannot be kept: .*No space left"):
        reference = make_reference(create_extractor(EXTRACTOR), digits[:40], value_range=(-1, 1), cache=tmp_path)
    assert reference.count == 40
    assert list(tmp_path.iterdir()) == []


class Generator(nn.Module):
    """With BatchNorm and dropout, in train mode: what watching could disturb."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Linear(8, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 256), nn.Tanh()]
        self.layers = nn.Sequential(*layers, nn.Unflatten(1, (1, 16, 16)))

    def forward(self, noise: torch.Tensor) -> torch.Tensor:
        return self.layers(noise)


def train(digits: torch.Tensor, watched: bool) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    net = Generator()
    loader = DataLoader(TensorDataset(digits[:256]), 64, shuffle=True)
    optimizer = torch.optim.Adam(net.parameters())
    sample = lambda n, generator: net(torch.randn(n, 8, generator=generator))  # noqa: E731
    monitor = make_monitor(digits, sample=sample, real=loader, every=1, n=64)
    hooks = Hooks([monitor] if watched else [], writer=MemoryWriter()).attach(optimizer)
    for (real,) in loader:
        loss = (net(torch.randn(len(real), 8)) - real).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert net.training
    assert bool(monitor.last) == watched
    hooks.close()
    return {**copy.deepcopy(net.state_dict()), "random": torch.rand(3)}


def test_the_users_run_is_bit_identical(digits):
    alone, watched = train(digits, False), train(digits, True)
    assert all(torch.equal(alone[key], watched[key]) for key in alone)


def test_failures_switch_it_off_once(digits):
    def diverged(n: int, generator: torch.Generator) -> torch.Tensor:
        return torch.full((n, 1, 16, 16), float("nan"))

    monitor = make_monitor(digits, sample=diverged, every=1)
    with pytest.warns(UserWarning, match="non-finite|not finite") as caught:
        run(monitor, 3)
    assert len([w for w in caught if "switched off" in str(w.message)]) == 1
    broken = make_monitor(digits, real=torch.full((100, 1, 16, 16), 7.0))
    with pytest.warns(UserWarning, match=r"value_range=\(-1, 1\)"):
        run(broken)
    assert broken.last == {}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sample": 3}, TypeError, "sample must be callable"),
        ({"metrics": ("fid",)}, ValueError, "unknown metric 'fid' .did you mean fd"),
        ({"metrics": "fd"}, ValueError, "metrics must be some of"),
        ({"n": 20}, ValueError, "n must be"),
        ({"real": iter([])}, TypeError, "read again"),
        ({"value_range": (1, 0)}, ValueError, "low < high"),
        ({"extractor": nn.Conv2d(3, 4, 3)}, ValueError, "name="),
    ],
)
def test_bad_arguments_are_refused(digits, options, error, message):
    with pytest.raises(error, match=message):
        make_monitor(digits, **options)


def test_famous_names_are_for_the_canonical_network(digits):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    own = create_extractor(net, name="inception")
    reference = make_reference(own, digits[:80], value_range=(-1, 1))
    found = measure(own(to_uint8(digits[:60], (-1, 1))), reference, ["fd"], extractor=own)
    assert found["fd"].spec.startswith("fd_own-inception[")
    with pytest.raises(ValueError, match="reference was made by"):
        measure(torch.zeros(60, 56), reference, ["fd"], extractor=create_extractor(EXTRACTOR))


def test_grey_images_are_as_those_of_three_equal_channels():
    real, found = torch.rand(60, 1, 16, 16), []
    for channels in (1, 3):

        def sample(n, rng, channels=channels):
            return torch.rand(n, 1, 16, 16, generator=rng).expand(-1, channels, -1, -1)

        monitor = GenerativeMonitor(sample, real, extractor="random", n=50, every=1, metrics=("fd",))
        Hooks([monitor]).step()
        found.append(monitor.last["fd"])
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def plain(n: int, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(n, 1, 16, 16, generator=generator)


def test_images_of_another_size_are_not_measured():
    options = {"n": 50, "every": 1, "metrics": ("fd",)}
    monitor = GenerativeMonitor(plain, torch.rand(60, 1, 8, 8), extractor="random", **options)
    with pytest.warns(UserWarning, match="real images are 8x8 and generated ones 16x16"):
        Hooks([monitor]).step()
    resized = GenerativeMonitor(plain, torch.rand(60, 1, 8, 8), extractor={"type": "random", "size": 16}, **options)
    Hooks([resized]).step()
    assert resized.last["fd"] > 0


@pytest.mark.parametrize("place", [0, 30, 59])
def test_the_place_of_an_odd_image_makes_no_difference(place):
    """Sizes are taken from all images; a grey one among colours is an image like others."""
    images = [torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(i)) for i in range(60)]
    options = {"extractor": "random", "n": 50, "every": 1, "metrics": ("fd",)}
    images[place] = images[place][:1]
    grey = GenerativeMonitor(plain, images, **options)
    Hooks([grey]).step()
    assert grey.last["fd"] > 0
    images[place] = torch.rand(3, 24, 20)
    odd = GenerativeMonitor(plain, images, **options)
    with pytest.warns(UserWarning, match="real images are 16x16, 24x20 and generated ones 16x16"):
        Hooks([odd]).step()


def test_a_sampler_of_one_channel_is_measured_like_one_that_repeats_it():
    real = torch.rand(60, 1, 16, 16).expand(-1, 3, -1, -1)
    found = []
    for sample in (plain, lambda n, generator: plain(n, generator).expand(-1, 3, -1, -1)):
        monitor = GenerativeMonitor(sample, real, extractor="random", n=50, every=1, metrics=("fd",))
        Hooks([monitor]).step()
        found.append(monitor.last["fd"])
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_a_kept_reference_without_sizes_is_made_again(digits, tmp_path):
    """Files of before have none."""
    from dataclasses import replace

    extractor = create_extractor(EXTRACTOR)
    whole = make_reference(extractor, digits[:40], value_range=(-1, 1), cache=tmp_path)
    (path,) = tmp_path.iterdir()
    replace(whole, shapes=whole.shapes[:0]).save(path)
    again = make_reference(extractor, digits[:40], value_range=(-1, 1), cache=tmp_path)
    assert again.shapes.tolist() == Reference.load(path).shapes.tolist() == [[1, 16, 16, 40]]


def test_too_few_real_images_are_told_at_once():
    with pytest.raises(ValueError, match="real has 5 images, and at least 10 are needed"):
        GenerativeMonitor(plain, torch.rand(5, 1, 16, 16), extractor="random", n=50)


def test_real_images_that_are_not_there_are_told_at_once():
    sample = lambda n, rng: torch.rand(n, 1, 16, 16, generator=rng)  # noqa: E731
    with pytest.raises(ValueError, match="is not a folder"):
        GenerativeMonitor(sample, "/no/such/folder", extractor="random", n=50)
    with pytest.raises(TypeError, match="real is None"):
        GenerativeMonitor(sample, None, extractor="random", n=50)

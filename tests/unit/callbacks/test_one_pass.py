"""Monitors of one step that ask one function for the same images: it is called once, and the numbers are the same."""

from __future__ import annotations

import copy
import gc
import random
import warnings

import pytest
import torch
from torch import nn
from torch.nn.functional import avg_pool2d, interpolate

from qa_hooks.callbacks import (
    BestCheckpoint,
    Callback,
    GenerativeMonitor,
    Hooks,
    PerceptionDistortion,
    RewardGuard,
    SampleGrid,
    ScoreHistogram,
    ScoreMonitor,
    ScorePanel,
    SnapshotCollector,
    with_weights,
)
from qa_hooks.scorers import FunctionScorer, create_scorer
from qa_hooks.sources import samples
from qa_hooks.sources.samples import OnePass, SampleSet, sample_blocks
from qa_hooks.writers import MemoryWriter
from toy_scorers import brightness

SIZES = [(40, 56), (56, 40), (48, 48)]


class Counted(nn.Module):
    """A network that draws from every generator there is, is another one in train mode, and counts its calls."""

    def __init__(self):
        super().__init__()
        self.norm, self.dropout, self.passes = nn.BatchNorm2d(3), nn.Dropout(), []
        self.shift = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        self.passes.append(len(x))
        return 0.5 * self.dropout(self.norm(x)) + self.shift + 0.01 * torch.rand(()) + 0.01 * random.random()


@pytest.fixture
def net():
    return Counted()


@pytest.fixture
def photographs():
    rng = torch.Generator().manual_seed(0)
    return [torch.rand(3, *size, generator=rng) for size in SIZES]


def restored(net, photographs):
    small = [avg_pool2d(image[None], 2) for image in photographs]
    return lambda n, generator: [interpolate(net(image), scale_factor=2)[0] for image in small[:n]]


def generated(net, side=16):
    return lambda n, generator: net(torch.rand(n, 3, side, side, generator=generator))


def run(monitors, net, *, steps=2):
    """All that monitors write in steps between which the network changes."""
    writer = MemoryWriter()
    hooks = Hooks(monitors, writer=writer)
    for step in range(steps):
        net.train()
        with torch.no_grad():
            net.shift += 0.1 * step
        hooks.step()
    return {kind: {tag: copy.copy(points) for tag, points in getattr(writer, kind).items()
                   if not tag.startswith("qa_perf")} for kind in ("scalars", "images", "histograms")}  # fmt: skip


def same(one, other):
    assert one.keys() == other.keys()
    for kind in one:
        assert one[kind].keys() == other[kind].keys()
        for tag, points in one[kind].items():
            for (step, value), (other_step, other_value) in zip(points, other[kind][tag], strict=True):
                assert step == other_step
                assert torch.equal(torch.as_tensor(value), torch.as_tensor(other_value)), tag


def check_alone_and_together(make, net, passes):
    """The same numbers from one `Hooks` as from one for each monitor, and so many calls of the network in a step."""
    start, alone = copy.deepcopy(net.state_dict()), {"scalars": {}, "images": {}, "histograms": {}}
    for index in range(len(make())):
        net.load_state_dict(start)
        for kind, tags in run([make()[index]], net).items():
            assert not alone[kind].keys() & tags.keys()
            alone[kind] |= tags
    net.load_state_dict(start)
    net.passes.clear()
    same(run(make(), net), alone)
    assert len(net.passes) == 2 * passes, net.passes
    assert alone["scalars"]


def test_five_monitors_of_photographs_make_one_pass(net, photographs):
    restore, psnr = restored(net, photographs), create_scorer("psnr")

    def make():
        given = {"reference": photographs, "every": 1}
        return [
            ScoreMonitor(psnr, sample=restore, **given),
            ScoreMonitor(create_scorer({"type": "psnr", "channel": "y"}), sample=restore, batch_size=1, **given),
            ScorePanel(restore, psnr, name="panel", **given),
            PerceptionDistortion(brightness(), psnr, images=restore, **given),
            SampleGrid(restore, n=3, every=1),
        ]

    check_alone_and_together(make, net, len(photographs))


def test_monitors_of_generated_images_share_the_blocks_that_they_have_in_common(net, tmp_path):
    sample, real = generated(net), torch.rand(60, 3, 16, 16)

    def make():
        return [
            SampleGrid(sample, n=20, every=1),
            ScoreMonitor(brightness(), sample=sample, n=50, batch_size=20, every=1),
            GenerativeMonitor(sample, real, extractor="random", metrics=("fd", "kid"), n=50, batch_size=20, every=1),
            ScoreHistogram(sample, real, brightness("light"), n=50, batch_size=20, every=1),
            RewardGuard(brightness(), sample=sample, real=real, n=50, batch_size=20, every=1),
            ScoreMonitor(brightness("others"), sample=sample, n=50, batch_size=20, seed=1, every=1),
            ScoreMonitor(brightness("many"), sample=sample, n=50, batch_size=25, every=1),
            SnapshotCollector(sample, folder=tmp_path, n=20, every=1),
        ]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few images; the snapshots of another run
        check_alone_and_together(make, net, 3 + 3 + 2 + 1)


def test_only_what_is_the_same_is_shared(net):
    class Sampler:
        def draw(self, n, generator):
            return generated(net)(n, generator)

    sampler, other = Sampler(), Sampler()
    plain = generated(net)
    average = with_weights(plain, net, {"shift": torch.tensor(0.25)})
    for first, second, passes in (
        (sampler.draw, sampler.draw, 1),  # two objects, and one method of one object
        (sampler.draw, other.draw, 2),
        (plain, plain, 1),
        (plain, average, 2),
        (plain, generated(net), 2),
    ):
        net.passes.clear()
        one, two = (
            ScoreMonitor(brightness(name), sample=s, n=4, every=1)
            for name, s in zip("ab", (first, second), strict=True)
        )
        Hooks([one, two], writer=MemoryWriter()).step()
        assert len(net.passes) == passes
        assert (two.last["mean"] == pytest.approx(one.last["mean"] + 0.25)) == (second is average)


def test_callbacks_that_read_a_monitor_stand_between(net, tmp_path):
    one, two = (
        ScoreMonitor(brightness(name), sample=sample, n=4, every=1) for sample in [generated(net)] for name in "ab"
    )
    best = BestCheckpoint(one, "mean", save=lambda path: path.touch(), folder=tmp_path)
    Hooks([one, best, two], writer=MemoryWriter()).step()
    assert net.passes == [4]


class TestOtherWeightsInOneStep:
    """Each of these measured the right weights before anything was shared."""

    def test_a_callback_that_exchanges_them(self, net):
        class Shift(Callback):
            def __init__(self, by):
                self.by, self.name = by, f"{by}"

            def on_step_end(self, ctx):
                net.shift.data += self.by

        sample = generated(net)
        plain, average, again = (ScoreMonitor(brightness(name), sample=sample, n=4, every=1) for name in "abc")
        Hooks([plain, Shift(0.25), average, Shift(-0.25), again], writer=MemoryWriter()).step()
        assert average.last["mean"] == pytest.approx(plain.last["mean"] + 0.25)
        assert again.last["mean"] == pytest.approx(plain.last["mean"])

    def test_a_monitor_of_the_user_that_exchanges_them(self, net):
        class Average(ScoreMonitor):
            def local(self, ctx):
                net.shift.data += 0.25
                part = super().local(ctx)
                net.shift.data -= 0.25
                return part

        sample = generated(net)
        plain, other = (kind(brightness(), sample=sample, n=4, every=1) for kind in (ScoreMonitor, Average))
        for order in ([plain, other], [other, plain]):
            Hooks(order, writer=MemoryWriter()).step()
            assert other.last["mean"] == pytest.approx(plain.last["mean"] + 0.25)

    def test_the_base_of_a_guard(self):
        from qa_hooks.integrations.peft import inject_lora

        net = nn.Sequential(nn.Conv2d(3, 3, 1))
        inject_lora(net, rank=1, targets=["0"])
        for parameter in net.parameters():
            nn.init.constant_(parameter, 0.5)
        sample = lambda n, generator: net(torch.rand(n, 3, 16, 16, generator=generator)).sigmoid()  # noqa: E731
        looks = []
        for before in ([], [ScoreMonitor(brightness(), sample=sample, n=8, batch_size=32, every=1)]):
            guard = RewardGuard(sample=sample, base=net, n=8, every=1)
            Hooks([*before, guard], writer=MemoryWriter()).step()
            looks.append((guard.looks.first, guard.last))
        assert torch.equal(looks[0][0], looks[1][0])
        assert looks[0][1] == looks[1][1]
        assert any(value for key, value in guard.last.items() if key.startswith("change/"))

    def test_a_guard_that_scales_them(self, net, monkeypatch):
        sample = generated(net)
        guard = RewardGuard(
            sample=sample, real=torch.rand(8, 3, 16, 16), n=8, every=1, action="scale",
            scale=lambda step: net.shift.data.add_(0.25),
        )  # fmt: skip
        monkeypatch.setattr(guard, "reduce", lambda ctx, part: setattr(guard, "alarms", guard.alarms + 1))
        before, after = (ScoreMonitor(brightness(name), sample=sample, n=8, batch_size=32, every=1) for name in "ab")
        Hooks([before, guard, after], writer=MemoryWriter()).step()
        assert after.last["mean"] == pytest.approx(before.last["mean"] + 0.25)


def test_an_error_reaches_each_monitor():
    calls = []

    def fails(n, generator):
        calls.append(n)
        raise RuntimeError("out of luck")

    monitors = [ScoreMonitor(brightness(name), sample=fails, n=4, every=1) for name in "ab"]
    with pytest.warns(UserWarning, match="failed and is switched off") as told:
        Hooks(monitors, writer=MemoryWriter()).step()
    assert calls == [4, 4]
    assert len([w for w in told if "out of luck" in str(w.message)]) == 2


def test_what_one_monitor_makes_of_the_images_no_other_sees(net):
    def spoils(x):
        return x.mul_(0).mean((1, 2, 3))

    sample = lambda n, generator: (generated(net)(n, generator) * 99).byte()  # noqa: E731
    scorers = [brightness("first"), FunctionScorer(spoils, name="spoils", higher_is_better=True), brightness("third")]
    monitors = [ScoreMonitor(scorer, sample=sample, n=4, every=1) for scorer in scorers]
    Hooks(monitors, writer=MemoryWriter()).step()
    assert monitors[0].last["mean"] == monitors[2].last["mean"] > 0
    assert len(net.passes) == 1


class TestWhatIsKept:
    def ask(self, one_pass, *sets):
        return [torch.cat([images for _, images in sample_blocks(part, one_pass=one_pass)]) for part in sets]

    def test_nothing_that_nobody_asks_for_again(self, net):
        many, few = (SampleSet(generated(net), n, 4, seed=0) for n in (40, 40))
        one_pass = OnePass([many, few])
        self.ask(one_pass, many, few)
        assert not one_pass._held

    def test_only_what_somebody_still_waits_for(self, net):
        sample = generated(net)
        many, few = SampleSet(sample, 40, 4, 0), SampleSet(sample, 8, 4, 0)
        one_pass = OnePass([many, few, few])
        self.ask(one_pass, many)
        assert len(one_pass._held) == 2
        self.ask(one_pass, few)
        assert len(one_pass._held) == 2
        self.ask(one_pass, few)
        assert not one_pass._held
        assert sum(net.passes) == 40
        self.ask(one_pass, few)  # once more than it had said
        assert sum(net.passes) == 48

    def test_no_more_than_there_is_room_for(self, net, monkeypatch):
        part = SampleSet(generated(net, side=8), 12, 4, 0)
        monkeypatch.setattr(samples, "HELD", 2 * 4 * 3 * 8 * 8 * 4 + 1)  # two of the three blocks
        one_pass = OnePass([part, part])
        first, second = self.ask(one_pass, part, part)
        assert torch.equal(first, second)
        assert len(net.passes) == 3 + 1

    def test_nothing_after_the_step_even_where_a_monitor_never_came(self, net):
        fails = FunctionScorer(lambda x: 1 / 0, name="fails", higher_is_better=True)
        sample = generated(net, side=24)
        alive = lambda: [o for o in gc.get_objects() if type(o) is torch.Tensor and o.shape[1:] == (3, 24, 24)]  # noqa: E731
        hooks = Hooks(
            [ScoreMonitor(s, sample=sample, n=4, every=1) for s in (brightness(), fails)], writer=MemoryWriter()
        )
        with pytest.warns(UserWarning, match="division by zero"):
            hooks.step()
        gc.collect()
        assert not alive()
        hooks.step()
        assert net.passes == [4, 4]


def test_monitors_that_compute_elsewhere_share_it_too(net, inline):
    sample = generated(net, side=96)
    here = ScoreMonitor(create_scorer("niqe_bsd100"), sample=sample, n=4, every=1, name="here")
    there = ScoreMonitor(create_scorer("niqe_bsd100"), sample=sample, n=4, every=1, where="cpu", name="there")
    with Hooks([there, here], writer=MemoryWriter()) as hooks:
        hooks.step()
    assert net.passes == [4]
    assert here.last == there.last

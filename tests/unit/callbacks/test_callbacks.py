from __future__ import annotations

import pytest
import torch
from PIL import Image
from torch import nn

from qa_hooks.callbacks import Hooks, PerceptionDistortion, RefreshGradientModel, SampleGrid, ScoreMonitor
from qa_hooks.penalties import NIQEPenalty, QAGANPenalty, SSIMPenalty
from qa_hooks.scorers import PSNR, FunctionScorer
from qa_hooks.writers import MemoryWriter


@pytest.fixture
def generator() -> nn.Module:
    return nn.Sequential(
        nn.Linear(8, 64), nn.BatchNorm1d(64), nn.Dropout(0.5), nn.Unflatten(1, (1, 8, 8)), nn.Sigmoid()
    )


@pytest.fixture
def brightness() -> FunctionScorer:
    return FunctionScorer(lambda x: x.mean((1, 2, 3)), name="brightness", higher_is_better=True)


def sampler(net):
    return lambda n, rng: net(torch.randn(n, 8, generator=rng))


class TestSampleGrid:
    def test_same_noise_each_time_and_no_trace(self, generator, tmp_path):
        writer = MemoryWriter()
        generator.train()
        buffers, state = [b.clone() for b in generator.buffers()], torch.get_rng_state()
        with Hooks([SampleGrid(sampler(generator), every=1, n=6, folder=tmp_path)], writer=writer) as hooks:
            hooks.step()
            hooks.step()
        (one, first), (two, second) = writer.images["qa_images/samples/grid"]
        assert (one, two) == (1, 2)
        assert torch.equal(first, second)
        assert first.shape == (1, 2 * 66 + 2, 3 * 66 + 2)  # 6 images of 8 pixels, 8 times enlarged
        assert all(torch.equal(a, b) for a, b in zip(generator.buffers(), buffers, strict=True))
        assert torch.equal(torch.get_rng_state(), state)
        assert generator[2].training
        assert Image.open(tmp_path / "00000002.png").size == (200, 134)

    def test_a_wrong_number_of_samples_switches_it_off(self):
        hooks = Hooks([SampleGrid(lambda n, rng: torch.zeros(3, 1, 8, 8), every=1)])
        with pytest.warns(UserWarning, match=r"sample\(64, generator\) must give \(64, 1 or 3"):
            hooks.step()

    def test_bad_arguments(self, tmp_path):
        with pytest.raises(TypeError, match="sample must be callable"):
            SampleGrid(torch.zeros(1))
        with pytest.raises(ValueError, match="every must be"):
            SampleGrid(lambda n, g: None, every=0)
        (tmp_path / "file").write_text("")
        with pytest.raises(ValueError, match="cannot be written"):
            SampleGrid(lambda n, g: None, folder=tmp_path / "file")


class TestScoreMonitor:
    def test_mean_spread_and_histogram(self, brightness):
        writer = MemoryWriter()
        monitor = ScoreMonitor(brightness, every=1, sample=lambda n, rng: torch.rand(n, 1, 4, 4, generator=rng), n=100)
        with Hooks([monitor], writer=writer) as hooks:
            hooks.step()
        values = writer.histograms["qa_eval/brightness/histogram"][0][1].double()
        assert values.numel() == 100
        assert writer.scalars["qa_eval/brightness/mean"][0][1] == pytest.approx(values.mean().item())
        assert writer.scalars["qa_eval/brightness/std"][0][1] == pytest.approx(values.std(unbiased=False).item())
        assert monitor.last["n"] == 100

    def test_images_of_the_loop_with_a_reference(self):
        monitor = ScoreMonitor(PSNR(), every=1, images="pred", reference="target")
        Hooks([monitor]).step(pred=torch.full((5, 3, 8, 8), 1.1), target=torch.full((5, 3, 8, 8), 0.9))
        assert monitor.last["mean"] == pytest.approx(20.0, abs=0.01)  # the overshoot is clamped

    def test_non_finite_scores_are_counted(self):
        scorer = FunctionScorer(lambda x: x.mean((1, 2, 3)).log(), name="log", higher_is_better=True)
        writer, images = MemoryWriter(), torch.ones(4, 1, 2, 2)
        images[0] = 0
        Hooks([ScoreMonitor(scorer, every=1, images="x")], writer=writer).step(x=images)
        assert writer.scalars["qa_eval/log/nonfinite"] == [(1, 1.0)]
        assert writer.scalars["qa_eval/log/mean"] == [(1, 0.0)]

    def test_missing_images_say_what_is_there(self, brightness):
        with pytest.warns(UserWarning, match=r"no images named 'fake' were handed over .* got \['real'\]"):
            Hooks([ScoreMonitor(brightness, every=1, images="fake")]).step(real=torch.zeros(1, 1, 2, 2))

    @pytest.mark.parametrize("given", [torch.zeros(3, 4, 4), torch.zeros(0, 3, 4, 4), torch.zeros(2, 16, 16, 3)])
    def test_what_is_no_batch_of_images_is_named(self, brightness, given):
        words = "switched off .* fake( must have the shape| is empty|: the shape .* looks like)"
        with pytest.warns(UserWarning, match=words):
            Hooks([ScoreMonitor(brightness, every=1, images="fake")], writer=MemoryWriter()).step(fake=given)

    def test_each_image_needs_its_own_reference(self):
        psnr, images = PSNR(), (torch.zeros(2, 3, 9, 9), torch.zeros(3, 3, 9, 9))
        axes = FunctionScorer(lambda x: x.mean((1, 2, 3)), name="level", higher_is_better=True), psnr
        path = PerceptionDistortion(*axes, images="pred", reference="target", every=1)
        for monitor in (ScoreMonitor(psnr, every=1, images="pred", reference="target"), path):
            with pytest.warns(UserWarning, match="each of 'pred' needs its 'target', got 2 and 3 images"):
                Hooks([monitor], writer=MemoryWriter()).step(pred=images[0], target=images[1])

    def test_a_wrong_range_is_noticed(self, brightness):
        tanh = lambda n, rng: torch.randn(n, 1, 8, 8, generator=rng).tanh()  # noqa: E731
        for monitor in (ScoreMonitor(brightness, every=1, sample=tanh), SampleGrid(tanh, every=1)):
            with pytest.warns(UserWarning, match="another convention"):
                Hooks([monitor]).step()

    def test_the_scorers_own_network_is_protected(self):
        net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(1), nn.Linear(72, 1))
        scorer = FunctionScorer(lambda x: net(x), name="net", higher_is_better=True, differentiable=False)
        Hooks([ScoreMonitor(scorer, every=1, images="x")]).step(x=torch.rand(4, 1, 8, 8))
        assert net[1].training
        assert int(net[1].num_batches_tracked) == 0

    def test_bad_arguments(self, brightness):
        for arguments in ({"n": 0}, {"batch_size": 0}, {"every": "5"}, {"every": 2.5}):
            with pytest.raises(ValueError, match=f"{next(iter(arguments))} must be a whole number"):
                ScoreMonitor(brightness, images="x", **arguments)
        with pytest.raises(TypeError, match="sample must be callable"):
            ScoreMonitor(brightness, sample=3)
        with pytest.raises(ValueError, match="give either sample"):
            ScoreMonitor(brightness)
        with pytest.raises(ValueError, match="psnr needs reference="):
            ScoreMonitor(PSNR(), images="pred")
        with pytest.raises(ValueError, match="brightness takes no reference"):
            ScoreMonitor(brightness, images="pred", reference="gt")
        with pytest.raises(TypeError, match="must be a qa_hooks Scorer"):
            ScoreMonitor(lambda x: x, images="pred")


class TestRefreshGradientModel:
    def test_refits_without_a_trace(self, critic, digits):
        penalty = QAGANPenalty("niqe", value_range=(-1, 1), warmup=400)
        loader = torch.utils.data.DataLoader(digits[:512], batch_size=64, shuffle=True)
        state = torch.get_rng_state()
        hooks = Hooks([RefreshGradientModel(penalty, critic, loader, every=2)])
        hooks.step()
        assert penalty.parts["niqe"].model is None
        hooks.step()
        first = penalty.parts["niqe"].model
        assert first.count == 512
        with torch.no_grad():
            critic[0].weight.mul_(-2)
        hooks.step()
        hooks.step()
        assert not torch.equal(penalty.parts["niqe"].model.mean, first.mean)
        assert torch.equal(torch.get_rng_state(), state)

    def test_a_failed_fit_keeps_the_old_model(self, critic, digits):
        penalty = NIQEPenalty(value_range=(-1, 1), warmup=400)
        callback = RefreshGradientModel(penalty, critic, [digits[:512]], every=1)
        hooks = Hooks([callback])
        hooks.step()
        model, callback.batches = penalty.model, [digits[:10]]
        with pytest.warns(UserWarning, match="at least 360 maps"):
            hooks.step()
        assert penalty.model is model

    def test_a_generator_can_be_read_only_once(self, critic, digits):
        with pytest.raises(ValueError, match="batches can be read only once"):
            RefreshGradientModel(NIQEPenalty(value_range=(-1, 1), warmup=9), critic, iter([digits]), every=1)

    def test_needs_a_niqe_term(self, critic):
        with pytest.raises(ValueError, match="no NIQE term: SSIMPenalty"):
            RefreshGradientModel(SSIMPenalty(value_range=(-1, 1)), critic, [], every=1)


def test_scores_come_with_their_interval_and_their_change_image_by_image():
    shift = [0.0]
    sample = lambda n, rng: torch.rand(n, 1, 4, 4, generator=rng) * 0.5 + shift[0]  # noqa: E731
    scorer = FunctionScorer(lambda x: x.mean((1, 2, 3)), name="brightness", higher_is_better=True)
    monitor, writer = ScoreMonitor(scorer, every=1, sample=sample, n=50), MemoryWriter()
    hooks = Hooks([monitor], writer=writer)
    hooks.step()
    assert "change" not in monitor.last
    assert monitor.last["mean_low"] < monitor.last["mean"] < monitor.last["mean_high"]
    resumed = ScoreMonitor(scorer, every=1, sample=sample, n=50)
    resumed.load_state_dict(monitor.state_dict())
    shift[0] = 0.25
    hooks.step()
    # The noise is the same, so the change is exact though the scores themselves are spread.
    assert monitor.last["change"] == pytest.approx(0.25, abs=1e-6)
    assert monitor.last["change_low"] == pytest.approx(0.25, abs=1e-6)
    assert writer.scalars["qa_eval/brightness_change/mean"][0][1] == pytest.approx(0.25, abs=1e-6)
    again = Hooks([resumed], writer=MemoryWriter())
    again.step()
    assert resumed.last == {**monitor.last, "step": 1}

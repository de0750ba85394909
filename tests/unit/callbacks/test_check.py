"""What is said before and at the start of a run: `hooks.check()`, pictures for nobody, traces of a sampler."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from torch import nn

from qa_hooks.callbacks import (
    BestCheckpoint,
    Callback,
    EarlyStop,
    GenerativeMonitor,
    Hooks,
    NaNGuard,
    PerceptionDistortion,
    RefreshGradientModel,
    RewardGuard,
    SampleGrid,
    ScoreHistogram,
    ScoreMonitor,
    ScorePanel,
    SnapshotCollector,
)
from qa_hooks.losses import SSIMLoss
from qa_hooks.penalties import DriftPenalty, NIQEPenalty, QAGANPenalty, SSIMPenalty
from qa_hooks.scorers import FunctionScorer, create_scorer
from qa_hooks.weighting import OHEM
from qa_hooks.writers import MemoryWriter


def brightness(fn=lambda x: x.mean((1, 2, 3))) -> FunctionScorer:
    return FunctionScorer(fn, name="brightness", higher_is_better=True)


def noise(n, generator):
    return torch.rand(n, 1, 8, 8, generator=generator)


FIXED = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


class TestCheck:
    def test_it_says_what_would_happen(self, tmp_path):
        net = nn.Sequential(nn.Linear(4, 64), nn.BatchNorm1d(64), nn.Sigmoid(), nn.Unflatten(1, (1, 8, 8)))
        callbacks = [
            SampleGrid(lambda n, g: net(torch.randn(n, 4, generator=g)), n=4),
            ScoreMonitor(brightness(), sample=noise, n=8, batch_size=4),
            ScoreMonitor(brightness(), images="fake", name="loop"),
            RewardGuard(brightness(), sample=noise, base=noise, n=8),
            NaNGuard(),
        ]
        hooks = Hooks(callbacks, log_dir=tmp_path, track={"qagan": SSIMPenalty(value_range=(0, 1))})
        state, random = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
        report = hooks.check()
        assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
        assert torch.equal(torch.get_rng_state(), random)
        assert net.training
        assert not list(tmp_path.iterdir())
        lines = report.splitlines()
        assert lines[0] == "SampleGrid(samples, every=500)"
        assert lines[1].startswith("    sample(4, generator) gives (4, 1, 8, 8) float32 in [")
        assert lines[1].endswith(", declared (0, 1)")
        assert lines[3].startswith("    sample(4, generator) gives (4, 1, 8, 8)")
        assert lines[4].startswith("    brightness: 0.")
        assert "takes the images 'fake' from hooks.step(fake=...)" in lines[6]
        assert "track qagan: SSIMPenalty" in lines
        assert lines[-1] == f"values go to TensorBoardWriter in {tmp_path}"

    def test_it_names_what_has_no_curve_for_want_of_a_weight(self):
        parts = {
            "ssim": SSIMLoss(weight=0),
            "drift": DriftPenalty(value_range=(0, 1), weight=0),
            "qagan": QAGANPenalty("ssim", value_range=(0, 1), gp_weight=0, quality_weight=0, drift_weight=0),
            "ohem": OHEM(brightness(), worst=0.25, weight=1.0),
        }
        hooks = Hooks([], writer=MemoryWriter(), track=parts)
        told = re.findall(r"track (\w+): \w+; it is SWITCHED OFF BY ITS WEIGHTS, .*ScoreMonitor", hooks.check())
        assert told == list(parts)
        parts["qagan"].weights["ssim"] = parts["ssim"].weight = parts["drift"].weight = 0.1
        parts["ohem"].weight = 2.0
        assert "SWITCHED OFF" not in hooks.check()

    def test_the_function_of_restored_images_is_tried_with_their_ground_truths(self):
        truths = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        axes = create_scorer("niqe_bsd100"), create_scorer("psnr")
        whole = PerceptionDistortion(brightness(), axes[1], images=lambda n, rng: truths[:n] * 0.5, reference=truths)
        report = Hooks([whole], writer=MemoryWriter()).check()
        assert "sample(3, generator) gives (3, 3, 64, 64) float32 in [" in report
        assert "psnr: " in report
        assert "no images" not in report
        assert "FAILS" not in report
        small = PerceptionDistortion(*axes, images=lambda n, rng: truths[:n], reference=truths)
        assert "niqe_bsd100 FAILS: images of 64 x 64" in Hooks([small], writer=MemoryWriter()).check()
        assert "FAILS" not in report

    def test_a_scorer_is_tried_on_images_that_it_takes(self, photographs):
        images = [photographs[0][:, :64, :64], photographs[1]]
        monitor = ScoreMonitor(create_scorer("niqe_bsd100"), sample=lambda n, rng: images, n=2)
        report = Hooks([monitor], writer=MemoryWriter()).check()
        assert "niqe_bsd100: " in report
        assert "LEFT OUT: images of 64 x 64 pixels are too small" in report
        assert "FAILS" not in report

    @pytest.mark.parametrize(
        ("sample", "words"),
        [
            (
                lambda n, rng: torch.rand(8, 1, 8, 8, generator=rng),
                r"THEN IT FAILS: .*sample\(4, generator\) must",
            ),
            (
                lambda n, rng: FIXED[:n],
                "WARNS: .*the same images for other noise: of n=12 all after",
            ),
            (lambda n, rng: torch.rand(n, 1, 8, 8, generator=rng), r"\], declared \(-1, 1\); WARNS: "),
        ],
    )
    def test_what_a_later_call_would_do(self, sample, words):
        scorer = FunctionScorer(lambda x: x.mean((1, 2, 3)), name="level", higher_is_better=True, value_range=(-1, 1))
        monitor = ScoreMonitor(scorer, sample=sample, n=20, batch_size=8)
        assert re.search(words, Hooks([monitor], writer=MemoryWriter()).check())

    def test_it_names_what_would_fail_and_raises_nothing(self, tmp_path):
        def broken(n, generator):
            raise RuntimeError("no such weights")

        class Full(MemoryWriter):
            def flush(self):
                raise OSError("No space left on device")

        callbacks = [
            SampleGrid(broken, name="a"),
            ScoreMonitor(brightness(lambda x: x.no_such_thing()), sample=noise, n=4, name="b"),
            ScoreMonitor(brightness(lambda x: x.mean((1, 2, 3)).log() * torch.nan), sample=noise, n=4, name="c"),
        ]
        report = Hooks(callbacks, writer=Full()).check()
        assert "sample FAILS: RuntimeError: no such weights" in report
        assert "brightness FAILS: AttributeError" in report
        assert "4 of 4 NOT FINITE" in report
        assert report.splitlines()[-1] == "values go to Full FAILS: OSError: No space left on device"
        assert Hooks([]).check() == "values go to nowhere: give log_dir= or writer="

    def test_it_says_which_noise_a_sampler_uses(self):
        own, calls = torch.Generator(), []

        def counts(n, generator):
            calls.append(n)
            return torch.full((n, 1, 8, 8), 0.1 * len(calls))

        samplers = {
            "given": noise,
            "global": lambda n, generator: torch.rand(n, 1, 8, 8),
            "own": lambda n, generator: torch.rand(n, 1, 8, 8, generator=own),
            "counts": counts,
        }
        report = Hooks([SampleGrid(sample, n=2, name=name) for name, sample in samplers.items()]).check()
        said = dict(zip(samplers, report.splitlines()[1::2], strict=False))
        assert "generator unused" not in said["given"]
        assert "unused, and the global ones are seeded" in said["global"]
        assert "THE SAME SEED GIVES OTHER IMAGES" in said["own"]
        assert "it moves own, which cannot be put back" in said["own"]
        assert "THE SAME SEED GIVES OTHER IMAGES" in said["counts"]

    def test_a_sampler_of_nan_is_called_that(self):
        half = lambda n, g: noise(n, g).where(torch.arange(n)[:, None, None, None] % 2 == 0, float("nan"))  # noqa: E731
        monitor = ScoreMonitor(brightness(), sample=half, n=4)
        report = Hooks([monitor]).check()
        assert "sample HOLDS NaN or infinity: 2 of its first 4 images" in report
        assert "THE SAME SEED" not in report
        assert "brightness: higher is better; no images to try it on" in report
        with pytest.warns(UserWarning, match="switched off.*samples: some values are not finite"):
            Hooks([monitor]).step()

    def test_a_callback_that_reads_another_runs_as_often(self, tmp_path):
        monitor = ScoreMonitor(brightness(), sample=noise, n=4, every=70)
        best = BestCheckpoint(monitor, "mean", save=lambda path: None, folder=tmp_path)
        report = Hooks([monitor, best, EarlyStop(monitor, "mean", patience=3)]).check()
        assert "BestCheckpoint(ScoreMonitor(brightness).mean, every=70)" in report
        assert "EarlyStop(ScoreMonitor(brightness).mean, every=70)" in report


class TestRehearsal:
    """What `check` finds in order, the first measurement takes; what that refuses, `check` names."""

    def refused(self, monitor, message: str) -> None:
        """Both name the same error."""
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            report = Hooks([monitor]).check()
        assert re.search(f"the first measurement FAILS: .*{message}", report)
        with pytest.warns(UserWarning, match=f"switched off.*{message}"):
            Hooks([monitor], writer=MemoryWriter()).step()

    @pytest.mark.parametrize(
        ("real", "options", "message"),
        [
            (torch.rand(60, 1, 16, 16), {}, "real images are 16x16 and generated ones 8x8"),
            (torch.rand(60, 1, 8, 8) * 3, {}, r"values lie in \[.*\] but value_range=\(0, 1\)"),
            (torch.rand(60, 2, 8, 8), {}, "1 or 3 channels, got 2"),
            ([torch.rand(30, 1, 16, 16)] * 2, {}, "real images are 16x16 and generated ones 8x8"),
            (
                torch.rand(60, 1, 8, 8),
                {"metrics": ["is"], "classifier": lambda x: x.mean((2, 3)) @ torch.rand(3, 2)},
                "mat1 and mat2 shapes cannot be multiplied",
            ),
        ],
        ids=["size", "range", "channels", "loader", "classifier"],
    )
    def test_real_images_and_networks_are_tried(self, real, options, message):
        monitor = GenerativeMonitor(noise, real, extractor={"type": "random", "width": 4}, n=50, **options)
        self.refused(monitor, message)

    def test_real_images_of_a_histogram_are_scored(self):
        large = lambda n, generator: torch.rand(n, 1, 96, 96, generator=generator)  # noqa: E731
        monitor = ScoreHistogram(large, torch.rand(8, 1, 64, 64), create_scorer("niqe_bsd100"), n=2)
        self.refused(monitor, "images of 64 x 64 pixels are too small")

    def test_what_is_in_order_is_said_and_leaves_no_trace(self):
        class Stream(torch.utils.data.IterableDataset):
            def __iter__(self):
                return iter(torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(0)))

        options = {"extractor": {"type": "random", "width": 4}, "n": 50, "metrics": ("fd",)}
        for real in (torch.rand(60, 1, 8, 8), torch.utils.data.DataLoader(Stream(), batch_size=20)):
            state = torch.get_rng_state()
            report = Hooks([GenerativeMonitor(noise, real, **options)]).check()
            assert torch.equal(torch.get_rng_state(), state)
            assert "real: (1, 8, 8); random4-0 gives 56 features of each" in report
            assert "FAILS" not in report
            assert "WARNS" not in report
        doubtful = GenerativeMonitor(noise, torch.rand(60, 1, 8, 8), value_range=(-1, 1), **options)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # it is a line of the report
            assert "WARNS: real: values lie in [" in Hooks([doubtful]).check()

    def test_few_images_are_told_before_the_run_and_in_it(self):
        options = {"extractor": {"type": "random", "width": 4}, "n": 50, "metrics": ("fd",)}
        few = "12 real images are few (a verdict needs 50 of each kind)"
        monitor = GenerativeMonitor(noise, torch.rand(12, 1, 8, 8), **options)
        assert f"WARNS: {monitor.state_key}: {few}" in Hooks([monitor]).check()
        hooks = Hooks([monitor])
        with pytest.warns(UserWarning, match=re.escape(few)):
            hooks.step()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            hooks.step(1000)
        assert monitor.last["step"] == 1000
        samples = GenerativeMonitor(noise, torch.rand(60, 1, 8, 8), **{**options, "n": 20, "groups": 4})
        assert "20 generated images are few" in Hooks([samples]).check()


class TestNoWriter:
    """A run without a log says once, and after the first step, whose values are lost, and what to write."""

    def told(self, callbacks, steps=1, use=lambda hooks: None, **options):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            with Hooks(callbacks, **options) as hooks:
                for _ in range(steps):
                    use(hooks)
                    hooks.step(pred=torch.rand(2, 3, 16, 16), target=torch.rand(2, 3, 16, 16))
        return [str(w.message) for w in seen if "no writer" in str(w.message)]

    def test_whatever_the_callback_that_writes(self):
        class Own(Callback):
            def on_step_end(self, ctx):
                ctx.writer.scalar("mine", 1.0, ctx.step)

        real = torch.rand(60, 1, 8, 8)
        writing = [
            SampleGrid(noise, n=4),
            ScorePanel(noise, brightness(), n=4),
            ScoreHistogram(noise, real, brightness(), n=4),
            ScoreMonitor(brightness(), sample=noise, n=4),
            PerceptionDistortion(brightness(), create_scorer("psnr"), images="pred", reference="target"),
            RewardGuard(sample=noise, real=real, n=8),
            GenerativeMonitor(noise, real, extractor="random", metrics=("fd",), n=50),
            Own(),
        ]
        (message,) = self.told([*writing, NaNGuard()], steps=3)
        assert message.startswith(
            ", ".join(callback.state_key for callback in writing) + ": these hooks have no writer"
        )
        for remedy in ('Hooks(..., log_dir="runs/a")', "writer=...", "folder=...", "MemoryWriter()"):
            assert remedy in message
        for callback in writing[:-1]:
            (message,) = self.told([callback])
            assert message.startswith(f"{callback.state_key}: ")

    def test_what_is_recorded_and_tracked(self):
        (message,) = self.told([], steps=120, use=lambda hooks: hooks.record(loss=1.0))
        assert message.startswith("the means of what is tracked or recorded: these hooks")
        (message,) = self.told([], use=lambda hooks: hooks.record(loss=1.0))  # a short run, written at its end
        assert "the means of what is tracked or recorded" in message
        assert self.told([], track={"ohem": OHEM()}) == []  # nothing came of it

    def test_nothing_is_said_where_something_is_kept(self, tmp_path):
        kept = SampleGrid(noise, n=4, folder=tmp_path / "grids")
        collector = SnapshotCollector(noise, folder=tmp_path / "snapshots", n=4)
        assert self.told([kept, collector, NaNGuard()], budget=0.5) == []
        assert len(list((tmp_path / "grids").glob("*.png"))) == 1
        monitor = ScoreMonitor(brightness(), sample=noise, n=4)
        assert self.told([monitor], writer=MemoryWriter()) == []
        assert self.told([monitor], log_dir=tmp_path / "run") == []
        assert self.told([monitor], use=lambda hooks: hooks.use_writer(MemoryWriter())) == []

    def test_a_log_that_broke_says_so_itself(self):
        class Full(MemoryWriter):
            def scalar(self, tag, value, step):
                raise OSError("no space left on device")

        monitors = [ScoreMonitor(brightness(), sample=noise, n=4, name=name) for name in "ab"]
        assert self.told(monitors, writer=Full()) == []


def test_what_a_sampler_moves_is_said_at_the_first_measurement_alone():
    class Model:
        def __init__(self):
            self.calls = 0

        def sample(self, n, generator):
            self.calls += 1
            return noise(n, generator)

    hooks = Hooks([ScoreMonitor(brightness(), sample=Model().sample, n=4, every=1)])
    with pytest.warns(UserWarning, match=r"ScoreMonitor\(brightness\): .* cannot be put back: calls of Model"):
        hooks.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hooks.step()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BestCheckpoint(watched(), "mean", save=lambda: None, folder="."), r"save\(path\), but it takes \(\)"),
        (lambda: SampleGrid(lambda n: n), r"sample\(n, generator\), but it takes \(n\)"),
        (lambda: ScoreMonitor(brightness(), sample=lambda n: n), r"sample\(n, generator\)"),
        (lambda: RewardGuard(sample=noise, base=lambda n: n), r"base\(n, generator\)"),
        (lambda: RewardGuard(sample=noise, action="scale", scale=lambda: 1), r"scale\(step\)"),
        (lambda: RefreshGradientModel(warming(), lambda: 0, [], every=1), r"critic\(images\)"),
        (lambda: RefreshGradientModel(warming(), nn.Identity(), lambda n: [], every=1), r"batches\(\)"),
        (lambda: OHEM(lambda: 0), r"scorer\(images\)"),
        (lambda: SSIMPenalty(value_range=(0, 1), output_fn=lambda: 0), r"output_fn\(what the critic returns\)"),
        (lambda: Hooks().attach(torch.optim.SGD([torch.zeros(1)], 0.1), on_stop=lambda step: 0), r"on_stop\(\)"),
    ],
)
def test_functions_with_a_wrong_signature_are_refused_before_the_run(make, message):
    with pytest.raises(TypeError, match=f"must be callable as {message}"):
        make()


def watched() -> ScoreMonitor:
    return ScoreMonitor(brightness(), sample=noise)


def warming() -> NIQEPenalty:
    return NIQEPenalty(value_range=(0, 1), warmup=100)


def test_another_range_than_the_declared_one_is_told(tmp_path):
    tanh = lambda n, g: torch.rand(n, 3, 16, 16, generator=g) * 2 - 1  # noqa: E731
    wrong, right = (
        Hooks([SampleGrid(tanh, n=8, value_range=value_range, folder=tmp_path)]).check()
        for value_range in ((0, 1), (-1, 1))
    )
    assert "declared (0, 1); THAT IS ANOTHER RANGE: value_range= says what the numbers mean, declare (-1, 1)" in wrong
    assert "(49% of the values lie outside)" in wrong or "(50% of the values lie outside)" in wrong
    assert "unless the network is untrained" in wrong
    assert "ANOTHER RANGE" not in right


@pytest.mark.parametrize(
    ("share", "far", "words"),
    [
        (0.02, 1.5, "2.0% of the values overshoot that range, and are clamped"),  # an untrained network, clamped
        (0.0, 0.0, ""),
        (0.02, 254.0, "THAT IS ANOTHER RANGE"),  # a few white points on black, in [0, 255]
        (0.6, 0.3, "THAT IS ANOTHER RANGE"),
    ],
)
def test_an_overshoot_is_told_from_another_range_by_how_many_values_are_how_far_outside(share, far, words):
    def sample(n, generator):
        images = torch.rand(n, 3, 20, 20, generator=generator) * 0.98 + 0.01
        flat = images.view(-1)
        flat[: round(share * len(flat))] = 1 + far
        return images

    report = Hooks([ScoreMonitor(brightness(), sample=sample, n=4)], writer=MemoryWriter()).check()
    assert words in report
    for other in ("overshoot", "ANOTHER RANGE"):
        assert (other in report) == (other in words)


def test_an_untrained_super_resolution_network_overshoots():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 12, 3, padding=1), nn.PixelShuffle(2))
    small = torch.rand(4, 3, 16, 16)
    restore = lambda n, generator: nn.functional.interpolate(small, scale_factor=2, mode="bicubic") + body(small)  # noqa: E731
    report = Hooks([ScoreMonitor(brightness(), sample=restore, n=4)], writer=MemoryWriter()).check()
    assert "ANOTHER RANGE" not in report

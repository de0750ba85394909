"""Monitors of a validation set of photographs, which differ in size."""

import warnings

import pytest
import torch
from torch.nn.functional import avg_pool2d, interpolate

from qa_hooks.callbacks import (
    BestCheckpoint,
    Callback,
    Hooks,
    NaNGuard,
    PerceptionDistortion,
    RewardGuard,
    SampleGrid,
    ScoreHistogram,
    ScoreMonitor,
    ScorePanel,
    SnapshotCollector,
)
from qa_hooks.functional.intervals import bootstrap_interval
from qa_hooks.images import load_image
from qa_hooks.scorers import FunctionScorer, create_scorer
from qa_hooks.sources.reference_images import as_runs
from qa_hooks.writers import MemoryWriter

SIZES = [(40, 56), (56, 40), (56, 40), (48, 48), (40, 56)]


@pytest.fixture
def truths():
    rng = torch.Generator().manual_seed(0)
    return [torch.rand(3, *size, generator=rng) for size in SIZES]


def blurred(truths):
    def restore(n, generator):
        small = [avg_pool2d(image[None], 2) for image in truths[:n]]
        return [interpolate(image, scale_factor=2)[0] for image in small]

    return restore


def one_by_one(scorer, restore, truths):
    pairs = zip(restore(len(truths), None), truths, strict=True)
    return torch.cat([scorer(image[None], reference=truth[None]) for image, truth in pairs]).double()


def brightness():
    return FunctionScorer(lambda x: x.mean((1, 2, 3)), name="brightness", higher_is_better=True)


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_a_monitor_of_a_score_with_ground_truths(truths, batch_size):
    restore, psnr = blurred(truths), create_scorer("psnr")
    monitor = ScoreMonitor(psnr, sample=restore, reference=truths, every=1, batch_size=batch_size)
    hooks = Hooks([monitor], writer=MemoryWriter())
    hooks.step()
    expected = one_by_one(psnr, restore, truths)
    assert monitor.last["n"] == len(truths)
    assert monitor.last["mean"] == pytest.approx(float(expected.mean()), rel=1e-6)
    hooks.step()
    assert monitor.last["change"] == 0


def test_both_axes(truths):
    restore, psnr = blurred(truths), create_scorer("psnr")
    axes, writer = PerceptionDistortion(brightness(), psnr, images=restore, reference=truths, every=1), MemoryWriter()
    Hooks([axes], writer=writer).step()
    scores = one_by_one(psnr, restore, truths)
    interval = bootstrap_interval(scores)
    assert axes.last["distortion"] == pytest.approx(float(scores.mean()), rel=1e-6)
    assert axes.last["distortion_low"] == pytest.approx(interval.low, rel=1e-6)
    assert axes.last["distortion_high"] == pytest.approx(interval.high, rel=1e-6)
    for stat in ("mean", "low", "high"):
        assert len(writer.scalars[f"qa_eval/perception_distortion_psnr/{stat}"]) == 1
    assert axes.last["n"] == len(truths)


def test_the_panel_shows_and_keeps_them(truths):
    writer = MemoryWriter()
    panel = ScorePanel(blurred(truths), create_scorer("psnr"), reference=truths, every=1, thumbnail=24)
    hooks = Hooks([panel], writer=writer)
    hooks.step()
    state = hooks.state_dict()
    assert panel.last["n"] == len(truths)
    assert panel.state_dict()["panels"]["last"]["thumbnails"].shape == (len(truths), 3, 24, 24)
    hooks.load_state_dict(state)
    hooks.step()
    assert panel.last["fell"] == 0
    assert {"qa_images/psnr/ranked", "qa_images/psnr/regressions"} == set(writer.images)


def test_the_panel_names_them(truths):
    options = {"reference": truths, "every": 1}
    plain, named = MemoryWriter(), MemoryWriter()
    Hooks([ScorePanel(blurred(truths), create_scorer("psnr"), **options)], writer=plain).step()
    panel = ScorePanel(blurred(truths), create_scorer("psnr"), names=["a", "b", "c", "d", "e"], **options)
    Hooks([panel], writer=named).step()
    (_, sheet), (_, other) = plain.images["qa_images/psnr/ranked"][0], named.images["qa_images/psnr/ranked"][0]
    assert sheet.shape == other.shape
    assert not torch.equal(sheet, other)
    with pytest.raises(ValueError, match="names has 2 for 5 samples"):
        ScorePanel(blurred(truths), create_scorer("psnr"), names=["a", "b"], **options)


def test_pairs_stay_pairs_in_a_set_larger_than_a_batch():
    """A function that restores gives the first n images of its set: a second call would give those again."""
    rng = torch.Generator().manual_seed(0)
    truths = torch.rand(70, 3, 16, 16, generator=rng)
    panel = ScorePanel(lambda n, generator: truths[:n], create_scorer("ssim"), reference=truths, every=1)
    monitor = ScoreMonitor(
        create_scorer("ssim"), sample=lambda n, g: truths[:n], reference=truths, batch_size=16, every=1
    )
    Hooks([panel, monitor], writer=MemoryWriter()).step()
    assert panel.last["worst"] == pytest.approx(1)
    assert (monitor.last["n"], monitor.last["mean"]) == (70, pytest.approx(1))


class TestHandedOverByTheLoop:
    """`hooks.step(pred=[...], target=[...])`: what a function that gives lists would have given."""

    @pytest.mark.parametrize("batch_size", [1, 2, 64])
    @pytest.mark.parametrize("kind", [list, tuple])
    def test_the_same_numbers_as_from_a_function(self, truths, batch_size, kind):
        restore, psnr = blurred(truths), create_scorer("psnr")
        options = {"every": 1, "batch_size": batch_size}
        by_function = [
            ScoreMonitor(psnr, sample=restore, reference=truths, **options),
            PerceptionDistortion(brightness(), psnr, images=restore, reference=truths, **options),
        ]
        by_name = [
            ScoreMonitor(psnr, images="pred", reference="target", name="handed", **options),
            PerceptionDistortion(brightness(), psnr, images="pred", reference="target", name="axes", **options),
            ScoreMonitor(brightness(), images="pred", **options),
        ]
        hooks = Hooks([*by_function, *by_name], writer=MemoryWriter())
        hooks.step(pred=kind(restore(len(truths), None)), target=kind(truths))
        for function, name in zip(by_function, by_name, strict=False):
            assert name.last == function.last
        assert by_name[2].last["mean"] == by_name[1].last["perception"]

    def test_one_size_is_a_batch(self):
        pred, target = torch.rand(2, 4, 3, 16, 16)
        batch, listed = (ScoreMonitor(create_scorer("psnr"), images="pred", reference="target") for _ in range(2))
        Hooks([batch], writer=MemoryWriter()).step(pred=pred, target=target)
        Hooks([listed], writer=MemoryWriter()).step(pred=list(pred), target=target)
        assert listed.last == batch.last

    def test_callbacks_see_a_list_without_its_graph(self):
        seen = {}

        class Own(Callback):
            def on_step_end(self, ctx):
                seen.update(ctx.images)

        Hooks([Own()]).step(pred=[torch.rand(3, 8, 8, requires_grad=True), torch.rand(3, 6, 9)])
        assert [tuple(image.shape) for image in seen["pred"]] == [(3, 8, 8), (3, 6, 9)]
        assert not seen["pred"][0].requires_grad

    def test_nan_guard_looks_at_each(self, truths):
        guard = NaNGuard(every=1)
        hooks = Hooks([guard])
        hooks.step(pred=truths)
        assert guard.found == 0
        broken = [*truths[:-1], torch.full_like(truths[-1], float("nan"))]
        with pytest.warns(UserWarning, match="images 'pred' is not finite"):
            hooks.step(pred=broken)
        with pytest.warns(UserWarning, match="images 'pred': .*black"):
            Hooks([NaNGuard(every=1)]).step(pred=[torch.zeros_like(truth) for truth in truths])

    def test_the_guard_wants_one_size_and_says_so(self):
        sizes = [*[(64, 64)] * 8, (64, 48)]
        images = [torch.rand(3, *size) for size in sizes]
        with pytest.warns(UserWarning, match=r"images of one look must be of one size, got \(3, 64, 48\) after others"):
            Hooks([RewardGuard(images="fake", n=9, every=1)]).step(fake=images)
        with pytest.warns(UserWarning, match="images of one look must be of one size"):
            Hooks([RewardGuard(sample=lambda n, generator: images[:n], n=9, every=1)]).step()
        batch, listed = (RewardGuard(images="fake", base="base", n=8, every=1) for _ in range(2))
        Hooks([batch]).step(fake=torch.stack(images[:8]), base=torch.stack(images[:8]).flip(1))
        Hooks([listed]).step(fake=images[:8], base=[image.flip(0) for image in images[:8]])
        assert listed.last == batch.last

    @pytest.mark.parametrize(
        ("pred", "target", "message"),
        [
            ([], [], "images is empty"),
            ([torch.rand(3, 8, 8)] * 3, [torch.rand(3, 8, 8)] * 2, "each of 'pred' needs its 'target', got 3 and 2"),
            (
                torch.rand(2, 3, 8, 8),
                [torch.rand(3, 8, 8), torch.rand(3, 6, 6)],
                r"all \(3, 8, 8\) have 'target' of several sizes, \(3, 8, 8\), \(3, 6, 6\): hand both over",
            ),
            ([torch.rand(8, 8)], [torch.rand(8, 8)], r"must have the shape \(N, C, H, W\), got \(8, 8\)"),
        ],
    )
    def test_what_does_not_fit(self, pred, target, message):
        monitor = ScoreMonitor(create_scorer("psnr"), images="pred", reference="target")
        with pytest.warns(UserWarning, match=message):
            Hooks([monitor], writer=MemoryWriter()).step(pred=pred, target=target)

    @pytest.mark.parametrize("wrong", ["a.png", [torch.rand(3, 8, 8), "a.png"], 3, None, [[torch.rand(3, 8, 8)]]])
    def test_what_are_no_images(self, wrong):
        with pytest.raises(TypeError, match=r"hooks.step\(pred=...\) takes a tensor .*, or a list of tensors .* got"):
            Hooks([]).step(pred=wrong)


def test_pictures_of_them(truths, tmp_path):
    writer, restore = MemoryWriter(), blurred(truths)
    collector = SnapshotCollector(restore, folder=tmp_path, n=4, every=1)
    real = ScoreHistogram(restore, truths, brightness(), n=4, every=1)
    Hooks([SampleGrid(restore, n=4, every=1, scale=1), collector, real], writer=writer).step()
    (_, grid), *_ = writer.images["qa_images/samples/grid"]
    assert grid.shape == (3, 2 * 56 + 6, 2 * 56 + 6)
    kept = [load_image(path).shape for path in sorted(tmp_path.glob("*/*.png"))]
    assert [tuple(shape[1:]) for shape in kept] == SIZES[:4]


def test_the_dry_run_tries_all_of_them(truths):
    monitor = ScoreMonitor(create_scorer("psnr"), sample=blurred(truths), reference=truths, every=1)
    report = Hooks([monitor], writer=MemoryWriter()).check()
    assert "sample(5, generator) gives 5 images of 3 sizes float32 in [" in report
    assert "FAILS" not in report


def test_the_dry_run_tries_a_function_once_for_all_who_ask_the_same(truths):
    calls, restore, psnr = [], blurred(truths), create_scorer("psnr")

    def counted(n, generator):
        calls.append(n)
        return restore(n, generator)

    given = {"sample": counted, "reference": truths, "every": 1}
    monitors = [ScoreMonitor(psnr, name=name, **given) for name in "abc"]
    reports = [Hooks(some, writer=MemoryWriter()).check() for some in (monitors[:1], monitors)]
    assert calls == [5] * 6
    assert reports[1].count(reports[0].splitlines()[1]) == 3


def tall():
    """A scorer that takes no image of fewer than 48 rows."""

    def score(images):
        if images.shape[2] < 48:
            raise ValueError(f"{images.shape[2]} rows are too few")
        return images.mean((1, 2, 3))

    return FunctionScorer(score, name="tall", higher_is_better=True)


class TestImagesThatAScorerRefuses:
    def test_they_are_left_out_of_a_mean_and_said_once(self, truths):
        writer = MemoryWriter()
        monitor = ScoreMonitor(tall(), sample=blurred(truths), n=5, every=1)
        hooks = Hooks([monitor], writer=writer)
        with pytest.warns(UserWarning, match=r"ScoreMonitor\(tall\): 2 of 5 images .*: 40 rows are too few"):
            hooks.step()
        expected = torch.stack([image.mean() for image in blurred(truths)(5, None) if image.shape[1] >= 48])
        assert monitor.last["mean"] == pytest.approx(float(expected.mean()), rel=1e-6)
        assert monitor.last["n"] == 3
        assert writer.scalars["qa_eval/tall/nonfinite"] == [(1, 2.0)]
        hooks.step()  # and no second warning, which would be an error here
        assert monitor.last["change"] == 0

    def test_a_neighbour_of_the_same_size_keeps_its_score(self):
        def score(images):
            if bool((images.flatten(1).amax(1) > 0.9).any()):
                raise ValueError("too bright")
            return images.mean((1, 2, 3))

        images = torch.linspace(0.5, 1, 5)[:, None, None, None].expand(5, 3, 8, 8)
        scorer = FunctionScorer(score, name="dark", higher_is_better=True)
        monitor = ScoreMonitor(scorer, sample=lambda n, rng: images[:n], n=5, every=1)
        with pytest.warns(UserWarning, match="1 of 5 images cannot be scored .* too bright"):
            Hooks([monitor], writer=MemoryWriter()).step()
        assert monitor.last["mean"] == pytest.approx(float(images[:4].mean()))

    def test_real_images_too(self, truths):
        monitor = ScoreHistogram(lambda n, rng: truths[:1] * n, truths[:3], tall(), every=1, n=2)
        kept = [image.mean() for image in truths[:3] if image.shape[1] >= 48]
        monitor.sample = lambda n, rng: [image for image in truths if image.shape[1] >= 48][:n]
        report = Hooks([monitor], writer=MemoryWriter()).check()
        assert "; left out: 40 rows are too few" in report
        assert "FAILS" not in report
        with pytest.warns(UserWarning, match=r"1 of 3 real images cannot be scored .*: 40 rows are too few"):
            Hooks([monitor], writer=MemoryWriter()).step()
        assert monitor.last["real_mean"] == pytest.approx(float(torch.stack(kept).mean()), rel=1e-6)

    def test_both_axes_leave_out_the_same_images(self, truths):
        restore, psnr = blurred(truths), create_scorer("psnr")
        axes = PerceptionDistortion(tall(), psnr, images=restore, reference=truths, every=1)
        with pytest.warns(UserWarning, match="2 of 5 images"):
            Hooks([axes], writer=MemoryWriter()).step()
        tall_ones = torch.tensor([size[0] >= 48 for size in SIZES])
        assert axes.last["distortion"] == pytest.approx(
            float(one_by_one(psnr, restore, truths)[tall_ones].mean()), rel=1e-6
        )

    def test_a_panel_ranks_them_last_and_keeps_its_best(self, truths):
        strength = [1.0]
        panel = ScorePanel(lambda n, rng: [image * strength[0] for image in truths[:n]], tall(), n=5, every=1)
        hooks = Hooks([panel], writer=MemoryWriter())
        with pytest.warns(UserWarning, match="2 of 5 images"):
            hooks.step()
        for level, best in ((0.5, 1), (1.0, 1)):
            strength[0] = level
            hooks.step()
            assert panel._panels["best"]["step"] == best
        assert panel.last["n"] == 3

    def test_a_set_that_is_refused_whole_switches_the_monitor_off(self, truths):
        monitor = ScoreMonitor(tall(), sample=lambda n, rng: truths[:1] * n, n=3, every=1)
        with pytest.warns(UserWarning, match="switched off for the rest of the run: 40 rows are too few"):
            Hooks([monitor], writer=MemoryWriter()).step()

    def test_elsewhere(self, photographs):
        images = [photographs[0], photographs[1][:, :64, :64], photographs[2]]
        monitor = ScoreMonitor(
            create_scorer("niqe_bsd100"), sample=lambda n, rng: images, n=3, every=1, where="process"
        )
        with (
            pytest.warns(UserWarning, match="1 of 3 images cannot be scored .* 64 x 64 pixels are too small"),
            Hooks([monitor], writer=MemoryWriter()) as hooks,
        ):
            hooks.step()
        assert monitor.last["n"] == 2


class TestWhatIsRefused:
    def test_another_order(self, truths):
        monitor = ScoreMonitor(create_scorer("psnr"), sample=lambda n, g: truths[::-1], reference=truths, every=1)
        with pytest.warns(UserWarning, match=r"image 1 is \(3, 48, 48\) and its ground truth \(3, 56, 40\): give"):
            Hooks([monitor], writer=MemoryWriter()).step()

    def test_whoever_reads_a_monitor_that_failed_is_named(self, truths, tmp_path):
        monitor = ScoreMonitor(create_scorer("psnr"), sample=lambda n, g: truths[::-1], reference=truths, every=1)
        best = BestCheckpoint(monitor, "mean", save=lambda path: path.touch(), folder=tmp_path)
        with pytest.warns(UserWarning, match="BestCheckpoint.*has no values any more"):
            Hooks([monitor, best], writer=MemoryWriter()).step()

    def test_another_number(self, truths):
        with pytest.raises(ValueError, match="n is the number of the ground truths, 5, got 4"):
            ScorePanel(blurred(truths), create_scorer("psnr"), reference=truths, n=4)
        monitor = ScoreMonitor(create_scorer("psnr"), sample=lambda n, g: truths[:3], reference=truths, every=1)
        with pytest.warns(UserWarning, match=r"must give \(5, 1 or 3, H, W\), got \(1, 3, 40, 56\), \(2, 3, 56, 40\)"):
            Hooks([monitor], writer=MemoryWriter()).step()

    def test_ground_truths_of_another_range(self, truths):
        with pytest.raises(ValueError, match=r"reference: values lie in \[0.*, 2.*\] but value_range=\(0, 1\)"):
            ScoreMonitor(create_scorer("psnr"), sample=blurred(truths), reference=[*truths, truths[0] * 2.5])

    @pytest.mark.parametrize(
        ("reference", "error", "message"),
        [
            (["a.png"], TypeError, "reference: images must be a tensor"),
            ([], ValueError, "reference: images is empty"),
            (torch.rand(2, 4, 8, 8), ValueError, r"reference: images have 1 or 3 channels, got \(4, 8, 8\)"),
        ],
    )
    def test_what_is_no_ground_truth(self, reference, error, message):
        for make in (ScoreMonitor, ScorePanel):
            with pytest.raises(error, match=message):
                make(scorer=create_scorer("psnr"), sample=lambda n, g: torch.rand(n, 3, 8, 8), reference=reference)

    def test_a_name_beside_a_function_and_images_beside_a_name(self, truths):
        with pytest.raises(ValueError, match="reference= is a name beside images="):
            ScoreMonitor(create_scorer("psnr"), sample=blurred(truths), reference="target")
        with pytest.raises(ValueError, match="reference= is a name beside images="):
            ScoreMonitor(create_scorer("psnr"), images="pred", reference=truths)
        with pytest.raises(ValueError, match="psnr needs reference=, the ground truths of the samples"):
            ScoreMonitor(create_scorer("psnr"), sample=blurred(truths))


def test_runs_keep_the_order_and_the_kind():
    images = [torch.zeros(3, 8, 8), torch.ones(3, 8, 8), torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(1, 8, 8)]
    runs = as_runs(iter(images))
    assert [(tuple(run.shape), run.dtype) for run in runs] == [
        ((2, 3, 8, 8), torch.float32),
        ((1, 3, 8, 8), torch.uint8),
        ((1, 1, 8, 8), torch.float32),
    ]
    assert [float(image.float().mean()) for image in runs[0]] == [0, 1]
    with pytest.raises(ValueError, match="images is empty"):
        as_runs([])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [tuple(run.shape) for run in as_runs(torch.zeros(2, 3, 4, 4))] == [(2, 3, 4, 4)]


def test_a_run_that_goes_on_with_other_images_leaves_out_one_change(truths):
    first = ScoreMonitor(brightness(), sample=blurred(truths), n=5, every=1)
    Hooks([first], writer=MemoryWriter()).step()
    again = ScoreMonitor(brightness(), sample=blurred(truths), n=3, every=1)
    again.load_state_dict(first.state_dict())
    hooks = Hooks([again], writer=MemoryWriter())
    with pytest.warns(UserWarning, match="has 3 images now and had 5 before"):
        hooks.step()
    assert "change" not in again.last
    hooks.step()
    assert again.last["change"] == 0


def test_two_best_checkpoints_need_a_folder_each(truths, tmp_path):
    monitors = [ScoreMonitor(brightness(), sample=blurred(truths), n=5, every=1, name=name) for name in ("a", "b")]
    saves = [BestCheckpoint(monitor, "mean", save=print, folder=tmp_path) for monitor in monitors]
    with pytest.raises(ValueError, match="would both keep their files in"):
        Hooks([*monitors, *saves], writer=MemoryWriter())


@pytest.mark.parametrize("step", [torch.tensor(7.9), 1.5, "7", True, -1])
def test_a_step_is_a_number_of_steps(step):
    with pytest.raises(ValueError, match="step must be a whole number"):
        Hooks([], writer=MemoryWriter()).step(step)

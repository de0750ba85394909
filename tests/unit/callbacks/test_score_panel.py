from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from qa_hooks.callbacks import Hooks, PerceptionDistortion, ScoreHistogram, ScorePanel
from qa_hooks.drawing.chart import GREY, ORANGE
from qa_hooks.functional.degradations import degrade
from qa_hooks.images import to_uint8
from qa_hooks.scorers import PSNR, FunctionScorer, create_scorer
from qa_hooks.writers import MemoryWriter
from toy_scorers import brightness


def flat(levels: torch.Tensor) -> torch.Tensor:
    """One flat image of 32 pixels for each level."""
    return levels[:, None, None, None].expand(-1, 3, 32, 32).float() / 255


def corner(sheet: torch.Tensor, level: int, skip: int = 0) -> tuple[int, int]:
    """Top and left of a flat block of this level, the first in reading order after `skip` others of it."""
    mask = (sheet == level).all(0)
    blocks = torch.nn.functional.avg_pool2d(mask[None].float(), 64, 1)[0] == 1  # drawn twice enlarged
    found = blocks.nonzero()
    return tuple(found[skip].tolist())


def holds(sheet: torch.Tensor, part: torch.Tensor) -> bool:
    """Whether the sheet shows these pixels somewhere."""
    views = np.lib.stride_tricks.sliding_window_view(sheet.numpy(), part.shape)[0]
    corners = (views[:, :, :, 0, 0] == part[:, 0, 0].numpy()).all(-1)
    return any((views[top, left] == part.numpy()).all() for top, left in np.argwhere(corners))


def reloaded(state: dict) -> dict:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


class Run:
    """A model whose samples are flat images of the levels that it has at the time."""

    def __init__(self, levels: list[int]) -> None:
        self.levels = torch.tensor(levels)

    def __call__(self, n: int, generator: torch.Generator) -> torch.Tensor:
        return flat(self.levels[:n])


class TestScorePanel:
    @pytest.mark.parametrize("higher", [True, False])
    def test_best_to_worst(self, higher):
        run, writer = Run([60, 140, 20, 100, 180]), MemoryWriter()
        panel = ScorePanel(run, brightness(higher_is_better=higher), every=1, n=5)
        Hooks([panel], writer=writer).step()
        sheet = writer.images["qa_images/brightness/ranked"][0][1]
        places = [corner(sheet, level) for level in sorted(run.levels.tolist(), reverse=higher)]
        assert places == sorted(places)  # in reading order
        assert len(set(places)) == 5
        assert "qa_images/brightness/regressions" not in writer.images
        expected = {"step": 1, "mean": 100 / 255, "n": 5, "best": 180 / 255, "worst": 20 / 255}
        if not higher:
            expected.update(best=20 / 255, worst=180 / 255)
        assert panel.last == pytest.approx(expected)

    def test_of_many_the_ends_are_shown(self):
        run, writer = Run(list(range(15, 215, 10))), MemoryWriter()
        Hooks([ScorePanel(run, brightness(), every=1, n=20, show=6)], writer=writer).step()
        sheet = writer.images["qa_images/brightness/ranked"][0][1]
        shown = {level for level in range(15, 215, 10) if (sheet == level).all(0).sum() >= 4096}
        assert shown == {205, 195, 185, 35, 25, 15}

    def test_what_fell_before_and_after(self):
        run, writer = Run([60, 140, 20, 100, 180]), MemoryWriter()
        panel = ScorePanel(run, brightness(), every=1, n=5)
        hooks = Hooks([panel], writer=writer)
        hooks.step()
        run.levels = torch.tensor([61, 111, 21, 91, 211])
        hooks.step()
        assert writer.scalars["qa_eval/brightness/fell"] == [(2, pytest.approx(0.4))]
        sheet = writer.images["qa_images/brightness/regressions"][0][1]
        # The one that fell most comes first; before and after stand in one column, before on top.
        pairs = [(corner(sheet, old), corner(sheet, new)) for old, new in ((140, 111), (100, 91))]
        assert all(before[1] == after[1] and before[0] < after[0] for before, after in pairs)
        assert pairs[0][0][1] < pairs[1][0][1]
        assert not any((sheet == level).all(0).sum() >= 4096 for level in (60, 61, 180, 211))

    def test_since_the_best_panel_too(self):
        run, writer = Run([100, 150]), MemoryWriter()
        panel = ScorePanel(run, brightness(), every=1, n=2)
        hooks = Hooks([panel], writer=writer)
        for levels in ([100, 150], [200, 160], [90, 80], [91, 81]):
            run.levels = torch.tensor(levels)
            hooks.step()
        assert [value for _, value in writer.scalars["qa_eval/brightness/fell"]] == [0.0, 1.0, 0.0]
        sheets = [sheet for _, sheet in writer.images["qa_images/brightness/regressions"]]
        assert corner(sheets[1], 200)
        assert corner(sheets[2], 90)  # nothing fell since the last panel, which is shown all the same
        ((step, since_best),) = writer.images["qa_images/brightness/since_best"]
        assert step == 4  # before that the last panel was the best one
        assert corner(since_best, 200)[0] < corner(since_best, 91)[0]

    def test_a_resumed_run_draws_the_same(self, digits):
        def run(strength: float):
            return lambda n, generator: digits[:n] * strength

        def panel(writer):
            return Hooks([ScorePanel(run(1.0), brightness(value_range=(-1, 1)), every=1, n=12)], writer=writer)

        def go(hooks, strengths):
            for strength in strengths:
                hooks.callbacks[0].sample = run(strength)
                hooks.step()

        strengths = (1.0, 0.5, 0.8, 0.2)
        whole, first, second = MemoryWriter(), MemoryWriter(), MemoryWriter()
        go(panel(whole), strengths)
        hooks = panel(first)
        go(hooks, strengths[:2])
        state = reloaded(hooks.state_dict())
        hooks = panel(second)
        hooks.load_state_dict(state)
        go(hooks, strengths[2:])
        for tag, pictures in whole.images.items():
            later = [(step, picture) for step, picture in pictures if step > 2]
            assert [step for step, _ in second.images[tag]] == [step for step, _ in later]
            assert later[-1][0] == 4
            assert all(torch.equal(a, b) for (_, a), (_, b) in zip(second.images[tag], later, strict=True))
        assert second.scalars["qa_eval/brightness/fell"] == whole.scalars["qa_eval/brightness/fell"][1:]

    def test_the_state_of_another_panel_is_not_compared_with(self):
        run = Run([100, 150, 200])
        hooks = Hooks([ScorePanel(run, brightness(), every=1, n=3)])
        hooks.step()
        writer = MemoryWriter()
        other = Hooks([ScorePanel(run, brightness(), every=1, n=2)], writer=writer)
        with pytest.warns(UserWarning, match="saved with n=3, seed=0 and has n=2"):
            other.load_state_dict(hooks.state_dict())
        other.step()
        assert list(writer.images) == ["qa_images/brightness/ranked"]

    def test_what_the_state_weighs(self, photographs):
        panel = ScorePanel(lambda n, g: photographs[:1].expand(n, -1, -1, -1), brightness(), every=1)
        Hooks([panel]).step()
        state = reloaded(panel.state_dict())
        tensors = [tensor for run in state["panels"].values() for tensor in run.values() if torch.is_tensor(tensor)]
        assert sum(tensor.numel() * tensor.element_size() for tensor in tensors) <= 7.2e6
        assert state["panels"]["last"]["thumbnails"].shape == (64, 3, 96, 96)

    def test_of_a_large_image_one_part_is_shown_pixel_by_pixel_before_and_after(self, photographs):
        large = photographs[0, :, :180]
        small, strength, writers = photographs[1, :, :64, :64], [1.0], [MemoryWriter(), MemoryWriter()]

        def restored(n, generator):
            return [large * strength[0], small * strength[0]]

        def made(writer):
            return Hooks([ScorePanel(restored, brightness(), every=1, n=2, thumbnail=90)], writer=writer)

        hooks = made(writers[0])
        hooks.step()
        state = reloaded(hooks.state_dict())
        strength[0] = 0.5
        for each in (hooks, made(writers[1])):
            if each is not hooks:
                each.load_state_dict(state)
            each.step()
        ranked = writers[0].images["qa_images/brightness/ranked"][0][1]
        nine = [(top, left) for top in (0, 30, 60) for left in (0, 36, 72)]  # the shown part is 120 pixels large here
        assert sum(holds(ranked, to_uint8(large)[:, top : top + 120, left : left + 120]) for top, left in nine) == 1
        sheet = writers[0].images["qa_images/brightness/regressions"][0][1]
        nine = [(top, left) for top in (0, 45, 90) for left in (0, 51, 102)]
        before, after = (
            [at for at in nine if holds(sheet, to_uint8(large * factor)[:, at[0] : at[0] + 90, at[1] : at[1] + 90])]
            for factor in (1.0, 0.5)
        )
        assert len(before) == 1
        assert before == after
        assert torch.equal(sheet, writers[1].images["qa_images/brightness/regressions"][0][1])

    def test_a_state_without_parts_of_large_images_is_gone_on_from(self, photographs):
        strength, writer = [1.0], MemoryWriter()
        panel = ScorePanel(lambda n, g: photographs[:n] * strength[0], brightness(), every=1, n=2)
        hooks = Hooks([panel], writer=writer)
        hooks.step()
        state = panel.state_dict()
        for kept in state["panels"].values():
            del kept["squares"], kept["places"]
        panel.load_state_dict(state)
        strength[0] = 0.5
        hooks.step()
        ((_, sheet),) = writer.images["qa_images/brightness/regressions"]
        hooks.step()
        later = writer.images["qa_images/brightness/regressions"][1][1]
        assert sheet.shape[1] + 2 * 96 < later.shape[1]  # two rows of parts

    def test_an_image_that_has_become_smaller_shows_the_nearest_part(self, photographs):
        side, writer = [200], MemoryWriter()
        panel = ScorePanel(lambda n, g: photographs[:n, :, : side[0], : side[0]], brightness(), every=1, n=2)
        hooks = Hooks([panel], writer=writer)
        for side[0] in (200, 120, 40):
            hooks.step()
        assert len(writer.images["qa_images/brightness/regressions"]) == 2

    @pytest.mark.filterwarnings("ignore:.*another convention")  # of nearly black images
    def test_scores_that_are_not_finite(self):
        scorer = FunctionScorer(lambda x: (x.mean((1, 2, 3)) - 0.3).log(), name="log", higher_is_better=True)
        run, writer = Run([100, 150, 200]), MemoryWriter()
        panel = ScorePanel(run, scorer, every=1, n=3)
        hooks = Hooks([panel], writer=writer)
        hooks.step()
        run.levels = torch.tensor([101, 20, 201])
        hooks.step()
        assert panel.last["n"] == 2
        assert panel.last["fell"] == pytest.approx(1 / 3)
        sheet = writer.images["qa_images/log/ranked"][1][1]
        assert corner(sheet, 201)[1] < corner(sheet, 101)[1] < corner(sheet, 20)[1]
        run.levels = torch.tensor([1, 2, 3])
        with pytest.warns(UserWarning, match="no finite score among 3"):
            hooks.step()

    def test_restored_photographs_against_their_ground_truth(self, photographs, tmp_path):
        level = [1, 1, 1, 1]

        def restore(n, generator):
            return torch.cat([degrade(photographs[i : i + 1], "blur", level[i]) for i in range(n)])

        panel = ScorePanel(restore, PSNR(), every=1, n=4, reference=photographs, folder=tmp_path)
        hooks = Hooks([panel])
        hooks.step()
        level[2] = 4
        hooks.step()
        error = (restore(4, None).clamp(0, 1) - photographs).double().pow(2).mean((1, 2, 3))
        assert panel.last["mean"] == pytest.approx(float((-10 * error.log10()).mean()), abs=1e-3)
        assert panel.last["fell"] == 0.25
        names = sorted(path.name for path in tmp_path.iterdir())
        assert names == ["ranked_00000001.png", "ranked_00000002.png", "regressions_00000002.png"]
        assert Image.open(tmp_path / names[0]).size[0] > 4 * 128

    def test_bad_arguments(self, photographs):
        run = Run([1, 2])
        with pytest.raises(TypeError, match="scorer must be a qa_hooks Scorer, got function"):
            ScorePanel(run, lambda x: x)
        with pytest.raises(TypeError, match="sample must be callable"):
            ScorePanel(photographs, brightness())
        with pytest.raises(ValueError, match="psnr needs reference="):
            ScorePanel(run, PSNR(), n=2)
        with pytest.raises(ValueError, match="brightness takes no reference"):
            ScorePanel(run, brightness(), n=4, reference=photographs)
        with pytest.raises(ValueError, match="ground truths"):
            ScorePanel(run, PSNR(), n=3, reference=photographs)
        with pytest.raises(ValueError, match="n must be a whole number of at least 2"):
            ScorePanel(run, brightness(), n=1)
        prompted = FunctionScorer(lambda x, prompt: x.mean(1), name="p", higher_is_better=True, inputs=["prompt"])
        with pytest.raises(ValueError, match="p needs prompts"):
            ScorePanel(run, prompted)


class TestScoreHistogram:
    def test_the_numbers_are_those_of_scipy(self, digits):
        stats = pytest.importorskip("scipy.stats")
        scorer = FunctionScorer(lambda x: x.std((1, 2, 3)), name="c", higher_is_better=True, value_range=(-1, 1))
        noisy = degrade(digits[:300] / 2 + 0.5, "blur", 2) * 2 - 1
        writer = MemoryWriter()
        monitor = ScoreHistogram(lambda n, g: noisy[torch.randperm(300, generator=g)[:n]], digits[300:500], scorer,
                                 every=1, n=100)  # fmt: skip
        Hooks([monitor], writer=writer).step()
        generated, real = (writer.histograms[f"qa_eval/c/{part}"][0][1] for part in ("generated", "real"))
        assert torch.allclose(real, (digits[300:500] / 2 + 0.5).std((1, 2, 3)), atol=1e-6)
        assert generated.shape == (100,)
        expected = stats.ks_2samp(generated.numpy(), real.numpy()).statistic
        assert writer.scalars["qa_eval/c/ks"] == [(1, pytest.approx(expected))]
        assert expected > 0.3
        assert 0 < monitor.last["overlap"] < 0.7
        assert monitor.last["real_mean"] == pytest.approx(float(real.mean()), abs=1e-5)
        picture = writer.images["qa_images/c/distribution"][0][1]
        for color in (GREY, ORANGE):
            assert (picture == torch.tensor(color, dtype=torch.uint8)[:, None, None]).all(0).sum() > 100

    def test_the_right_distribution(self, digits):
        scorer = brightness(value_range=(-1, 1))
        mixed = digits[torch.randperm(1400)]  # the writers come one after another
        monitor = ScoreHistogram(lambda n, g: mixed[:n], mixed[700:], scorer, every=1, n=600, batch_size=600, bins=16)
        Hooks([monitor]).step()
        assert monitor.last["ks"] < 0.12
        assert monitor.last["overlap"] > 0.85

    def test_real_images_from_a_loader_are_scored_once(self, digits, tmp_path):
        loader = torch.utils.data.DataLoader(digits[:50], batch_size=16, shuffle=True)
        seen = []
        scorer = FunctionScorer(
            lambda x: (seen.append(len(x)), x.mean((1, 2, 3)))[1], name="b", higher_is_better=True, value_range=(-1, 1)
        )
        state = torch.get_rng_state()
        hooks = Hooks([ScoreHistogram(lambda n, g: digits[:n], loader, scorer, every=1, n=8, folder=tmp_path)])
        hooks.step()
        hooks.step()
        assert seen == [8, 16, 16, 16, 2, 8]
        assert torch.equal(torch.get_rng_state(), state)
        assert len(list(tmp_path.iterdir())) == 2

    def test_the_histogram_of_the_real_images_is_written_once(self, digits):
        writer = MemoryWriter()
        scorer = brightness(value_range=(-1, 1))
        hooks = Hooks([ScoreHistogram(lambda n, g: digits[:n], digits[50:90], scorer, every=1, n=8)], writer=writer)
        for _ in range(3):
            hooks.step()
        counts = {tag.rpartition("/")[2]: len(values) for tag, values in writer.histograms.items()}
        assert counts == {"generated": 3, "real": 1}

    def test_scores_that_are_not_finite(self):
        scorer = FunctionScorer(lambda x: x.mean((1, 2, 3)).log(), name="log", higher_is_better=True)
        writer = MemoryWriter()
        monitor = ScoreHistogram(Run([0, 100, 200]), flat(torch.tensor([100, 200])), scorer, every=1, n=3)
        Hooks([monitor], writer=writer).step()
        assert writer.scalars["qa_eval/log/nonfinite"] == [(1, 1.0)]
        assert (monitor.last["ks"], monitor.last["n"]) == (0.0, 2)
        with pytest.warns(UserWarning, match="no finite score among 2"):
            Hooks([ScoreHistogram(Run([0, 0]), flat(torch.tensor([100, 200])), scorer, every=1, n=2)]).step()

    @pytest.mark.filterwarnings("ignore:.*another convention")  # of nearly black images
    def test_bad_arguments(self, digits):
        with pytest.raises(ValueError, match="psnr needs a reference, which generated images do not have"):
            ScoreHistogram(lambda n, g: digits[:n], digits, PSNR())
        with pytest.warns(UserWarning, match="ScoreHistogram.*switched off.*is not a folder"):
            Hooks([ScoreHistogram(Run([1, 2]), "/nowhere", brightness(), n=2)]).step()


class TestPerceptionDistortion:
    def monitor(self, **options) -> PerceptionDistortion:
        sharpness = FunctionScorer(
            lambda x: x.diff(dim=-1).abs().mean((1, 2, 3)), name="sharpness", higher_is_better=True
        )
        return PerceptionDistortion(sharpness, PSNR(), every=1, **options)

    def test_two_means_and_their_path(self, photographs):
        writer = MemoryWriter()
        monitor = self.monitor(images="pred", reference="target", batch_size=3)
        hooks = Hooks([monitor], writer=writer)
        for level in (4, 2, 1):
            hooks.step(pred=degrade(photographs, "blur", level), target=photographs)
        pred = degrade(photographs, "blur", 1).clamp(0, 1).double().numpy()
        error = ((pred - photographs.double().numpy()) ** 2).mean((1, 2, 3))
        assert monitor.last["distortion"] == pytest.approx((-10 * np.log10(error)).mean(), abs=1e-4)
        assert monitor.last["perception"] == pytest.approx(np.abs(np.diff(pred, axis=-1)).mean(), rel=1e-5)
        assert [step for step, _ in writer.scalars["qa_eval/perception_distortion_psnr/mean"]] == [1, 2, 3]
        assert monitor.path[:, 0].tolist() == [1, 2, 3]
        assert bool((monitor.path.diff(dim=0) > 0).all())  # less blur: closer and sharper
        assert len(writer.images["qa_images/perception_distortion/path"]) == 3

    def test_a_validation_set_and_a_resumed_run(self, photographs, tmp_path):
        level = [4]
        options = {"images": lambda n, g: degrade(photographs[:n], "blur", level[0]), "reference": photographs}
        whole, first = self.monitor(**options), self.monitor(**options, folder=tmp_path)
        for monitor, steps in ((whole, (1, 2)), (first, (1,))):
            hooks = Hooks([monitor])
            for step in steps:
                level[0] = 5 - step
                hooks.step()
        second, writer = self.monitor(**options), MemoryWriter()
        hooks = Hooks([second], writer=writer)
        hooks.load_state_dict({"step": 1, "callbacks": {second.state_key: reloaded(first.state_dict())}})
        level[0] = 3
        hooks.step()
        assert second.path[:, 0].tolist() == [1, 2]
        assert torch.equal(second.path, whole.path)
        assert second.last == whole.last
        assert (tmp_path / "path_00000001.png").exists()

    def test_with_niqe_and_bad_arguments(self, photographs):
        niqe = create_scorer("niqe_bsd100")
        monitor = PerceptionDistortion(niqe, PSNR(), images="a", reference="b", every=1)
        Hooks([monitor]).step(a=photographs, b=photographs.roll(1, -1))
        assert 1 < monitor.last["perception"] < 20
        with pytest.raises(ValueError, match="perception is judged without a reference; psnr needs one"):
            PerceptionDistortion(PSNR(), niqe, images="a", reference="b")
        with pytest.raises(ValueError, match="distortion is measured against a reference"):
            PerceptionDistortion(niqe, niqe, images="a", reference="b")
        with pytest.raises(ValueError, match="two names that the loop hands over, or a function and images"):
            PerceptionDistortion(niqe, PSNR(), images="a", reference=photographs)
        with pytest.raises(ValueError, match=r"psnr .*\(-1.0, 1.0\)"):
            PerceptionDistortion(niqe, PSNR(value_range=(-1, 1)), images="a", reference="b")
        with pytest.warns(UserWarning, match=r"no images named 'b' .* got \['a'\]"):
            Hooks([PerceptionDistortion(niqe, PSNR(), images="a", reference="b")]).step(a=photographs)

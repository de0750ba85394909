from __future__ import annotations

import inspect
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from qa_hooks.features import create_extractor
from qa_hooks.losses import ScoreLoss
from qa_hooks.scorers import MSSSIM, PSNR, SSIM, Calibration, FunctionScorer, Scorer, create_scorer, load_scorer
from qa_hooks.scorers.catalogue import SPECS
from qa_hooks.weighting import OHEM
from toy_scorers import brightness


@pytest.fixture
def pair(photographs):
    torch.manual_seed(0)
    return (photographs + 0.05 * torch.randn_like(photographs)).clamp(0, 1), photographs


class TestFullReference:
    def test_psnr_equals_scikit_image(self, pair):
        metrics = pytest.importorskip("skimage.metrics")
        expected = [
            metrics.peak_signal_noise_ratio(b.numpy(), a.numpy(), data_range=1) for a, b in zip(*pair, strict=True)
        ]
        assert np.allclose(PSNR()(pair[0], reference=pair[1]), expected, atol=1e-4)

    def test_y_channel_and_border_follow_basicsr(self, pair):
        """Y = 65.481 R + 128.553 G + 24.966 B + 16 of 255, after cutting the border."""
        images, reference = (x.double().numpy().transpose(0, 2, 3, 1)[:, 4:-4, 4:-4] for x in pair)
        y = [x @ np.array([65.481, 128.553, 24.966]) + 16 for x in (images, reference)]
        expected = 20 * np.log10(255 / np.sqrt(((y[0] - y[1]) ** 2).mean((1, 2))))
        assert np.allclose(PSNR(channel="y", crop_border=4)(pair[0], reference=pair[1]), expected, atol=1e-3)
        metrics = pytest.importorskip("skimage.metrics")
        full = [
            metrics.structural_similarity(
                a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255, full=True
            )[1][5:-5, 5:-5].mean()
            for a, b in zip(*y, strict=True)
        ]
        assert np.allclose(SSIM(channel="y", crop_border=4)(pair[0], reference=pair[1]), full, atol=1e-4)

    def test_identical_images(self, photographs):
        assert torch.allclose(PSNR()(photographs, reference=photographs), torch.tensor(100.0))
        for scorer in (SSIM(), MSSSIM()):
            assert torch.allclose(scorer(photographs, reference=photographs), torch.tensor(1.0), atol=1e-5)

    def test_bad_options_and_inputs(self, pair):
        with pytest.raises(ValueError, match="channel must be 'rgb' or 'y'"):
            PSNR(channel="x")
        with pytest.raises(ValueError, match="crop_border must not be negative"):
            PSNR(crop_border=-1)
        with pytest.raises(ValueError, match="leaves nothing"):
            PSNR(crop_border=96)(pair[0], reference=pair[1])
        with pytest.raises(ValueError, match="psnr needs reference="):
            PSNR()(pair[0])
        with pytest.raises(ValueError, match="brightness takes no reference"):
            brightness()(pair[0], reference=pair[1])
        with pytest.raises(ValueError, match="same shape"):
            PSNR()(pair[0], reference=pair[1][:2])


class TestContract:
    def test_ranges_and_file_types_agree(self, photographs):
        unit = brightness()(photographs)
        assert torch.allclose(brightness(value_range=(-1, 1))(photographs * 2 - 1), unit, atol=1e-6)
        quantised = (photographs * 255).round().byte()
        assert torch.allclose(brightness()(quantised), unit, atol=1e-2)
        pictures = [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in quantised]
        assert torch.equal(brightness()(pictures), brightness()(quantised))

    def test_autocast_and_half_do_not_lower_the_precision(self, photographs):
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(64, 1))
        scorer = FunctionScorer(net, name="net", higher_is_better=True)
        expected = scorer(photographs)
        scorer.half()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(scorer(photographs), expected)

    def test_goodness_points_up(self, photographs):
        down = brightness("d", higher_is_better=False)
        assert torch.equal(down.goodness(photographs), -down(photographs))

    def test_always_in_eval_mode(self):
        net = nn.Dropout()
        scorer = FunctionScorer(net, name="net", higher_is_better=True)
        nn.Sequential(scorer).train()
        assert not net.training

    def test_one_score_per_image(self, photographs):
        with pytest.raises(ValueError, match="one score per image"):
            FunctionScorer(lambda x: x.mean(), name="m", higher_is_better=True)(photographs)
        with pytest.raises(TypeError, match="must return a tensor"):
            FunctionScorer(lambda x: 1.0, name="m", higher_is_better=True)(photographs)
        with pytest.raises(NotImplementedError):
            Scorer()(photographs)

    def test_prompts(self, photographs):
        scorer = FunctionScorer(
            lambda x, prompt: torch.tensor([float(len(p)) for p in prompt]),
            name="length", higher_is_better=True, inputs=("prompt",),
        )  # fmt: skip
        assert scorer(photographs, prompt=["a", "ab", "", "abc"]).tolist() == [1, 2, 0, 3]
        with pytest.raises(ValueError, match="list of 4 strings"):
            scorer(photographs, prompt="a")
        with pytest.raises(ValueError, match="inputs may name"):
            FunctionScorer(len, name="x", higher_is_better=True, inputs=("depth",))

    def test_non_finite_images_are_refused(self, photographs):
        with pytest.raises(ValueError, match="images: some values are not finite"):
            brightness()(photographs * float("nan"))


def test_a_scorer_in_a_model_is_not_in_its_checkpoint():
    from qa_hooks.scorers import NIQE

    parent = nn.ModuleDict({"niqe": NIQE().fit_calibration(torch.randn(50)), "net": nn.Linear(1, 1)})
    assert set(parent.state_dict()) == {"net.weight", "net.bias"}
    parent.double().to("meta")
    assert parent["niqe"].mean.device.type == "meta"


class TestCalibration:
    def test_held_out_values_become_uniform(self):
        stats = pytest.importorskip("scipy.stats")
        generator = torch.Generator().manual_seed(0)
        calibration = Calibration.fit(torch.randn(5000, generator=generator) * 30 - 1e4)
        calibrated = calibration(torch.randn(2000, generator=generator) * 30 - 1e4)
        assert stats.kstest(calibrated.numpy(), "uniform").pvalue > 0.01
        assert calibrated.mean().item() == pytest.approx(0.5, abs=0.03)

    @pytest.mark.parametrize("method", ["ecdf", "minmax", "sigmoid"])
    def test_monotone_bounded_and_saved(self, method):
        values = torch.randn(500)
        calibration = Calibration.fit(values, method=method)
        out = calibration(torch.linspace(-50, 50, 401))
        assert (out.diff() >= 0).all()
        assert out.min() >= 0
        assert out.max() <= 1
        assert torch.equal(Calibration(method, calibration.points)(values), calibration(values))

    def test_ties_count_half(self):
        calibration = Calibration.fit(torch.tensor([0.0] * 50 + [1.0] * 50))
        assert calibration(torch.tensor([0.0, 1.0])).tolist() == [
            pytest.approx(0.25, abs=0.01),
            pytest.approx(0.75, abs=0.01),
        ]

    def test_what_cannot_be_fitted(self):
        with pytest.raises(ValueError, match="at least 10"):
            Calibration.fit(torch.zeros(5))
        with pytest.raises(ValueError, match="no spread"):
            Calibration.fit(torch.zeros(50))
        with pytest.raises(ValueError, match="non-finite"):
            Calibration.fit(torch.full((50,), float("nan")))
        with pytest.raises(ValueError, match="method must be one of"):
            Calibration.fit(torch.randn(50), method="magic")

    def test_a_scorer_without_one_says_how(self):
        with pytest.raises(ValueError, match="fit_calibration"):
            brightness().calibrated()

    def test_a_calibrated_scorer(self, photographs):
        scorer = brightness(value_range=(-1, 1))
        calibrated = scorer.fit_calibration(torch.linspace(0, 1, 100)).calibrated()
        assert (calibrated.name, calibrated.score_range) == ("brightness_calibrated", (0.0, 1.0))
        assert torch.allclose(calibrated(photographs * 2 - 1), photographs.mean((1, 2, 3)), atol=1e-3)


class TestFiles:
    def test_round_trip_with_calibration(self, pair, tmp_path):
        scorer = PSNR(channel="y", crop_border=2)
        scorer.fit_calibration(torch.linspace(10, 40, 50))
        scorer.save(tmp_path / "psnr.safetensors")
        loaded = create_scorer(tmp_path / "psnr.safetensors", (-1, 1))
        unit, symmetric = ({"images": a, "reference": b} for a, b in (pair, [x * 2 - 1 for x in pair]))
        assert torch.allclose(loaded(**symmetric), scorer(**unit), atol=1e-3)
        assert torch.allclose(loaded.calibrated()(**symmetric), scorer.calibrated()(**unit), atol=1e-3)

    def test_broken_and_foreign_files_are_named(self, tmp_path):
        from safetensors.torch import save_file

        good, bad = tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
        PSNR().fit_calibration(torch.linspace(0, 1, 50)).save(good)
        bad.write_bytes(good.read_bytes()[:-8])
        with pytest.raises(ValueError, match=r"bad\.safetensors is not a whole safetensors file"):
            load_scorer(bad)
        save_file({"a": torch.zeros(1)}, bad)
        with pytest.raises(ValueError, match="is not a saved scorer"):
            load_scorer(bad)
        header = json.dumps({"class": "Evil", "options": {}})
        save_file({"a": torch.zeros(1)}, bad, metadata={"format": "qa_hooks.scorer", "scorer": header})
        with pytest.raises(ValueError, match="unknown class 'Evil'"):
            load_scorer(bad)
        header = json.dumps({"class": "PSNR", "options": {"channel": "rgb", "gamma": 2}})
        save_file({"a": torch.zeros(1)}, bad, metadata={"format": "qa_hooks.scorer", "scorer": header})
        with pytest.raises(ValueError, match="does not fit PSNR"):
            load_scorer(bad)
        with pytest.raises(ValueError, match="does not exist"):
            load_scorer(tmp_path / "none.safetensors")

    def test_code_is_not_saved(self, tmp_path):
        with pytest.raises(TypeError, match="cannot be saved"):
            brightness().save(tmp_path / "x.safetensors")

    def test_specs(self):
        assert create_scorer("ssim").name == "ssim"
        assert create_scorer({"type": "psnr", "crop_border": 2}).crop_border == 2
        scorer = brightness()
        assert create_scorer(scorer) is scorer
        with pytest.raises(ValueError, match=r"value_range=\(0.0, 1.0\), got value_range=\(-1, 1\)"):
            create_scorer(scorer, value_range=(-1, 1))
        assert create_scorer({"type": "psnr", "value_range": (-1, 1)}).value_range == (-1, 1)
        with pytest.raises(ValueError, match="a metric of pyiqa is called pyiqa:topiq_nr"):
            create_scorer("pyiqa_topiq_nr")  # as its column is called
        with pytest.raises(ValueError, match=r"unknown scorer 'fid' .*; known are psnr"):
            create_scorer("fid")
        with pytest.raises(ValueError, match="needs the key 'type'"):
            create_scorer({"name": "psnr"})
        with pytest.raises(TypeError, match="gamma"):
            create_scorer({"type": "psnr", "gamma": 1})
        with pytest.raises(ValueError, match="fit= is for scorers that are fitted here, not for ssim"):
            create_scorer({"type": "ssim", "fit": "folder"})

    def test_every_entry_names_a_class_that_can_be_saved(self):
        for name, entry in SPECS.items():
            assert issubclass(entry.kind, Scorer), name
            assert set(entry.options) <= set(inspect.signature(entry.kind).parameters), name
            assert entry.needs_fit == (name.startswith("giqa-") or name in ("rank", "afine-fitted"))


@pytest.mark.parametrize("use", ["scorer", "OHEM", "ScoreLoss"])
def test_a_function_that_changes_its_images_in_place_is_refused(use):
    scorer = FunctionScorer(lambda images: images.mul_(2).mean((1, 2, 3)), name="doubling", higher_is_better=True)
    uses = {"scorer": scorer, "OHEM": OHEM(scorer), "ScoreLoss": ScoreLoss(scorer, ceiling=1.0)}
    with pytest.raises(ValueError, match="doubling has changed the images that it was given, in place"):
        uses[use](torch.rand(2, 3, 8, 8) / 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: create_scorer({"type": "niqe_bsd100", "foo": 1}), r"niqe_bsd100 has no option foo; its own are"),
        (
            lambda: create_scorer({"type": "psnr", "foo": 1, "bar": 2}),
            r"psnr has no option foo, bar; its own are",
        ),
        (
            lambda: create_scorer({"type": "giqa-knn", "foo": 1}, fit=torch.rand(9, 3, 8, 8), extractor="random"),
            r"giqa-knn has no option foo; its own are",
        ),
        (lambda: create_scorer({"type": "psnr", "foo": 1}, (-1, 1)), "psnr has no option foo"),
        (lambda: create_extractor("random", weights="x"), "random has no option weights; its own are seed, width"),
        (lambda: create_extractor("efficientnet_lite0", weights="x"), "has no option weights; it has none of its own"),
        (lambda: create_extractor("resnet18", foo=1), "resnet18 has no option foo; its own are weights"),
    ],
)
def test_options_that_are_not_there_are_named(make, message):
    with pytest.raises(TypeError, match=message):
        make()

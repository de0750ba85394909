"""Metrics of other libraries give the libraries' own numbers, per image, in every form in which images arrive.

Nothing is downloaded: metrics without weights run as they are; of those with weights the library's own class is built
with random ones, by replacing the one function that would fetch them.
"""

from __future__ import annotations

import socket
import sys
import types

import pytest
import torch
from torch import nn

from qa_hooks.functional.degradations import degrade
from qa_hooks.losses import ScoreLoss
from qa_hooks.rewards.check import check_reward
from qa_hooks.scorers import create_scorer
from qa_hooks.scorers.libraries.pyiqa import PyIQAScorer, _parse_range
from qa_hooks.scorers.libraries.torchmetrics import DISTS, LPIPS, TorchMetricsScorer

pytest.importorskip("torchmetrics")
pytest.importorskip("piq")
pytestmark = pytest.mark.filterwarnings("ignore")

PIQ = {name: name for name in ("psnr", "ssim", "fsim", "gmsd", "vsi", "dss", "haarpsi", "mdsi")} | {
    "ms-ssim": "multi_scale_ssim",
    "iw-ssim": "information_weighted_ssim",
    "vif": "vif_p",
    "ms-gmsd": "multi_scale_gmsd",
}
TORCHMETRICS = {
    "ssim": ("structural_similarity_index_measure", {"data_range": 1.0}),
    "ms-ssim": ("multiscale_structural_similarity_index_measure", {"data_range": 1.0}),
    "psnr": ("peak_signal_noise_ratio", {"data_range": 1.0}),
    "uqi": ("universal_image_quality_index", {}),
    "vif": ("visual_information_fidelity", {}),
    "scc": ("spatial_correlation_coefficient", {}),
    "ergas": ("error_relative_global_dimensionless_synthesis", {}),
    "rmse-sw": ("root_mean_squared_error_using_sliding_window", {}),
}
PYIQA = (
    "ssim",
    "ssimc",
    "psnr",
    "psnry",
    "fsim",
    "ms_ssim",
    "vif",
    "gmsd",
    "nlpd",
    "vsi",
    "cw_ssim",
    "piqe",
    "entropy",
)
WITHOUT_WEIGHTS = [f"piq:{name}" for name in [*PIQ, "srsim", "tv"]] + [f"torchmetrics:{name}" for name in TORCHMETRICS]


@pytest.fixture(scope="module")
def pair(photographs):
    """Two photographs with noise, and without."""
    clean = photographs[:2]
    return degrade(clean, "noise", 2, generator=torch.Generator().manual_seed(0)), clean


def inputs_of(scorer, clean):
    return {"reference": clean} if "reference" in scorer.inputs else {}


class TestTheLibrariesOwnNumbers:
    """One image at a time through the library's public function, whose reduction then does not matter."""

    @pytest.mark.parametrize("name", PIQ)
    def test_piq(self, name, pair):
        import piq

        expected = [getattr(piq, PIQ[name])(a[None], b[None]) for a, b in zip(*pair, strict=True)]
        scores = create_scorer(f"piq:{name}")(pair[0], reference=pair[1])
        torch.testing.assert_close(scores, torch.stack(expected), rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("name", TORCHMETRICS)
    def test_torchmetrics(self, name, pair):
        import torchmetrics.functional.image as library

        function, options = TORCHMETRICS[name]
        expected = [getattr(library, function)(a[None], b[None], **options) for a, b in zip(*pair, strict=True)]
        scores = create_scorer(f"torchmetrics:{name}")(pair[0], reference=pair[1])
        torch.testing.assert_close(scores, torch.stack(expected).float(), rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("name", PYIQA)
    def test_pyiqa(self, name, pair):
        pyiqa = pytest.importorskip("pyiqa")
        metric = pyiqa.create_metric(name, device="cpu")
        scorer = create_scorer(f"pyiqa:{name}")
        given = [[a[None], b[None]] if "reference" in scorer.inputs else [a[None]] for a, b in zip(*pair, strict=True)]
        expected = torch.cat([metric(*images).reshape(1) for images in given])
        scores = scorer(pair[0], **inputs_of(scorer, pair[1]))
        torch.testing.assert_close(scores, expected.float(), rtol=1e-5, atol=1e-5)
        assert scorer.higher_is_better is not metric.lower_better

    def test_total_variation(self, pair):
        import piq

        scores = create_scorer("piq:tv")(pair[0])
        assert float(scores.mean()) == pytest.approx(float(piq.total_variation(pair[0])), rel=1e-5)


class TestEveryAdapter:
    @pytest.mark.parametrize("spec", WITHOUT_WEIGHTS)
    def test_one_score_per_image_whatever_the_batch_and_the_range(self, spec, pair):
        scorer = create_scorer(spec)
        together = scorer(pair[0], **inputs_of(scorer, pair[1]))
        apart = torch.cat([scorer(a[None], **inputs_of(scorer, b[None])) for a, b in zip(*pair, strict=True)])
        torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)
        symmetric = create_scorer(spec, (-1, 1))
        shifted = symmetric(pair[0] * 2 - 1, **inputs_of(scorer, pair[1] * 2 - 1))
        torch.testing.assert_close(shifted, together, rtol=1e-3, atol=1e-5)
        assert together.dtype == torch.float32
        assert together.shape == (2,)

    @pytest.mark.parametrize("spec", [spec for spec in WITHOUT_WEIGHTS if not spec.endswith(":tv")])
    def test_the_stated_direction_and_range_hold(self, spec, pair):
        scorer = create_scorer(spec)
        worse = degrade(pair[1], "noise", 4, generator=torch.Generator().manual_seed(1))
        better = scorer.goodness(pair[0], reference=pair[1])
        assert (better > scorer.goodness(worse, reference=pair[1])).all()
        if scorer.score_range is not None:
            low, high = scorer.score_range
            for images in (pair[0], worse, pair[1]):
                scores = scorer(images, reference=pair[1])
                assert ((scores >= low - 1e-5) & (scores <= high + 1e-5)).all()

    @pytest.mark.parametrize("spec", WITHOUT_WEIGHTS)
    def test_the_stated_gradient_is_there(self, spec):
        scorer = create_scorer(spec)
        if scorer.differentiable:
            check_reward(scorer)
        else:
            with pytest.raises(ValueError, match="no usable gradient"):
                ScoreLoss(scorer)

    def test_overshoot_is_scored_as_its_clamp_and_pulled_back(self, pair):
        scorer = create_scorer("piq:ssim")
        images = (pair[0] * 1.4 - 0.2).requires_grad_()
        scores = scorer(images, reference=pair[1])
        assert torch.equal(scores, scorer(images.detach().clamp(0, 1), reference=pair[1]))
        (gradient,) = torch.autograd.grad(scores.sum(), images)
        outside = (images < 0) | (images > 1)
        assert outside.any()
        assert (gradient[outside] != 0).float().mean() > 0.5

    def test_names_and_options(self, pair):
        scorer = create_scorer({"type": "piq:ssim", "downsample": False, "value_range": (0, 255)})
        assert (scorer.name, scorer.value_range) == ("piq_ssim_no_downsample", (0, 255))
        import piq

        expected = piq.ssim(*pair, downsample=False, reduction="none")
        torch.testing.assert_close(scorer(pair[0] * 255, reference=pair[1] * 255), expected, rtol=1e-4, atol=1e-5)
        assert scorer.fingerprint == create_scorer({"type": "piq:ssim", "downsample": False}).fingerprint
        assert scorer.fingerprint != create_scorer("piq:ssim").fingerprint
        assert "4" not in scorer.state_dict()
        with pytest.raises(TypeError, match=r"made again by create_scorer\('piq:ssim'\)"):
            scorer.save("somewhere.safetensors")


class TestBadInput:
    def test_names(self):
        with pytest.raises(ValueError, match=r"unknown metric piq:nothing; known are \['brisque'"):
            create_scorer("piq:nothing")
        with pytest.raises(TypeError, match=r"piq:ssim has no option sigma; see piq\.ssim"):
            create_scorer({"type": "piq:ssim", "sigma": 2})
        with pytest.raises(ValueError, match="fit= is for scorers that are fitted here, not for piq:ssim"):
            create_scorer("piq:ssim", fit="folder")
        with pytest.raises(ValueError, match="piq_ssim needs reference="):
            create_scorer("piq:ssim")(torch.rand(1, 3, 32, 32))

    def test_what_a_library_refuses_is_a_value_error(self):
        with pytest.raises(ValueError, match=r"piq:ms-ssim refuses images of the shape \(1, 3, 32, 32\)"):
            create_scorer("piq:ms-ssim")(torch.rand(1, 3, 32, 32), reference=torch.rand(1, 3, 32, 32))

    def test_a_missing_library(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "piq", None)
        with pytest.raises(ImportError, match="piq is not installed: pip install piq"):
            create_scorer("piq:ssim")

    def test_pyiqa_names(self):
        pytest.importorskip("pyiqa")
        with pytest.raises(ValueError, match=r"unknown metric pyiqa:muziq; near it are \['musiq'"):
            create_scorer("pyiqa:muziq")
        with pytest.raises(ValueError, match="compares sets of images"):
            create_scorer("pyiqa:fid")
        with pytest.raises(TypeError, match=r"what pyiqa\.create_metric returns, got Linear"):
            PyIQAScorer(nn.Linear(2, 2))

    @pytest.mark.parametrize("spec", ["pyiqa:musiq", "piq:brisque", "torchmetrics:arniqa"])
    def test_without_a_network_the_message_says_what_is_wanted(self, spec, monkeypatch, tmp_path):
        def no_network(*_args, **_options):
            raise OSError("no network")

        monkeypatch.setattr(socket, "getaddrinfo", no_network)
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        if spec.startswith("pyiqa"):
            pytest.importorskip("pyiqa")
            monkeypatch.setattr("pyiqa.utils.download_util.DEFAULT_CACHE_DIR", str(tmp_path))
        with pytest.raises(
            RuntimeError, match=r"could not be loaded: .*no network.*Wanted: .https://.*TORCH_HOME"
        ) as error:
            create_scorer(spec)
        assert f"create_scorer('{spec}')" in str(error.value)


def test_ranges_of_pyiqa():
    assert _parse_range("0, 1") == ((0.0, 1.0), True)
    assert _parse_range("~0, ~100") == ((0.0, 100.0), False)
    assert _parse_range("~-1, ~0.1") == ((-1.0, 0.1), False)
    assert _parse_range("~0, ~") == (None, False)
    assert _parse_range(None) == (None, False)


class TestNetworksWithRandomWeights:
    def test_musiq(self, monkeypatch, photographs):
        pyiqa = pytest.importorskip("pyiqa")
        monkeypatch.setattr("pyiqa.archs.musiq_arch.load_pretrained_network", lambda *_, **__: None)
        state = torch.get_rng_state()
        scorer = create_scorer("pyiqa:musiq", (-1, 1))
        assert torch.equal(torch.get_rng_state(), state)
        assert (scorer.score_range, scorer.nominal_range, scorer.higher_is_better) == (None, (0.0, 100.0), True)
        scorer.train().half()
        assert not any(module.training for module in scorer._frozen[0].modules())
        assert not list(scorer.parameters())
        images = photographs[:2, :, :96, :96]
        with torch.no_grad():
            scores = scorer(images * 2 - 1)
        metric = scorer.metric
        original = pyiqa.create_metric("musiq", device="cpu")
        original.load_state_dict(metric.state_dict())
        torch.testing.assert_close(scores, original(images).flatten(), rtol=1e-4, atol=1e-5)
        assert not scores.requires_grad
        check_reward(scorer, images * 2 - 1)

    def test_a_metric_object_is_taken_over(self, pair):
        pyiqa = pytest.importorskip("pyiqa")
        scorer = PyIQAScorer(pyiqa.create_metric("psnr", as_loss=True, device="cpu"))  # whose own answer is a mean
        assert scorer(pair[0], reference=pair[1]).shape == (2,)
        assert scorer.name == "pyiqa_psnr"

    def test_a_prompt_reaches_clipscore(self):
        class Metric(nn.Module):
            metric_name, metric_mode, lower_better, score_range, as_loss = "clipscore", "NR", False, "0, 2.5", False

            def forward(self, target, ref=None, caption_list=None):
                assert ref is None
                return target.mean((1, 2, 3)) * torch.tensor([float(len(caption)) for caption in caption_list])

        scorer = PyIQAScorer(Metric())
        images = torch.rand(2, 3, 8, 8)
        expected = images.mean((1, 2, 3)) * torch.tensor([3.0, 5.0])
        torch.testing.assert_close(scorer(images, prompt=["dog", "house"]), expected)
        assert (scorer.inputs, scorer.score_range) == ({"prompt"}, (0.0, 2.5))
        with pytest.raises(ValueError, match="list of 2 strings"):
            scorer(images, prompt=["dog"])

    def test_lpips(self, monkeypatch, pair):
        import torchvision
        from torchmetrics.functional.image import learned_perceptual_image_patch_similarity

        weights = torchvision.models.alexnet(weights=None).state_dict()
        monkeypatch.setattr(torchvision.models.AlexNet_Weights, "get_state_dict", lambda *_, **__: weights)
        scorer = create_scorer("lpips")
        assert isinstance(scorer, LPIPS)
        expected = [
            learned_perceptual_image_patch_similarity(a[None], b[None], normalize=True)
            for a, b in zip(*pair, strict=True)
        ]
        torch.testing.assert_close(scorer(pair[0], reference=pair[1]), torch.stack(expected), rtol=1e-4, atol=1e-7)
        check_reward(scorer)
        grey = scorer(pair[0].mean(1, keepdim=True), reference=pair[1].mean(1, keepdim=True))
        assert grey.isfinite().all()
        assert (scorer.name, scorer.higher_is_better) == ("lpips", False)

    def test_dists(self, monkeypatch, pair):
        import torchvision
        from torchmetrics.functional.image import deep_image_structure_and_texture_similarity

        network = torchvision.models.vgg16(weights=None)
        monkeypatch.setattr("torchmetrics.functional.image.dists.vgg16", lambda weights: network)
        scorer = create_scorer("dists")
        assert isinstance(scorer, DISTS)
        small = [images[:, :, :64, :64] for images in pair]
        expected = deep_image_structure_and_texture_similarity(*small)
        torch.testing.assert_close(scorer(small[0], reference=small[1]), expected, rtol=1e-4, atol=1e-6)
        check_reward(scorer, small[0], reference=small[1])

    def test_arniqa(self, monkeypatch, photographs):
        from torchmetrics.functional.image import arniqa

        module = sys.modules[arniqa.__module__]  # which the function of the same name hides
        monkeypatch.setattr(module._ARNIQA, "_load_weights", lambda self: None)
        torch.manual_seed(0)
        scorer = TorchMetricsScorer("arniqa")
        images = photographs[:2, :, :64, :64]
        monkeypatch.setattr(module, "_NoTrainArniqa", lambda regressor_dataset: scorer.metric)
        expected = torch.stack([arniqa(image[None]) for image in images])
        torch.testing.assert_close(scorer(images), expected.flatten(), rtol=1e-4, atol=1e-5)
        check_reward(scorer, images)

    def test_clip_iqa_has_the_numbers_of_piq_and_a_gradient(self):
        import piq

        from qa_hooks.scorers.libraries.piq import CLIPIQA

        class Extractor(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = nn.Sequential(nn.Conv2d(3, 8, 5, stride=4), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

            def encode_image(self, images, pos_embedding=True):
                assert not pos_embedding
                return self.net(images)

        metric = piq.CLIPIQA.__new__(piq.CLIPIQA)
        nn.Module.__init__(metric)
        metric.feature_extractor, metric.data_range, metric.logit_scale = Extractor(), 1.0, torch.tensor(5.0)
        metric.register_buffer("anchors", torch.randn(2, 8))
        metric.register_buffer("default_mean", torch.full((1, 3, 1, 1), 0.4))
        metric.register_buffer("default_std", torch.full((1, 3, 1, 1), 0.3))
        images = torch.rand(2, 3, 32, 32, requires_grad=True)
        scores = CLIPIQA(metric)(images)
        torch.testing.assert_close(scores, metric(images.detach()).flatten())
        assert not metric(images).requires_grad  # which is why there is a class of ours
        (gradient,) = torch.autograd.grad(scores[1], images)
        assert (gradient[1] != 0).any()
        assert not gradient[0].any()

    def test_clip_score_of_torchmetrics(self):
        """Its own function on a stand-in for CLIP, with the model loaded once."""
        from torchmetrics.functional.multimodal import clip_score

        class Model(nn.Module):
            config = types.SimpleNamespace()

            def __init__(self):
                super().__init__()
                self.image, self.text = nn.Linear(3, 6), nn.Embedding(64, 6)

            def get_image_features(self, pixels):
                return self.image(pixels.float().mean((2, 3)) / 255)

            def get_text_features(self, tokens, mask):
                return self.text(tokens).mean(1)

        def processor(text=None, images=None, **_):
            if images is not None:
                assert images[0].dtype == torch.uint8
                return {"pixel_values": torch.stack(images)}
            tokens = torch.tensor([[ord(letter) % 64 for letter in line[:3]] for line in text])
            return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}

        built, model = [], Model()

        def load():
            built.append(model)
            return model, processor

        scorer = TorchMetricsScorer("clip-score", model_name_or_path=load)
        images = torch.rand(2, 3, 8, 8)
        scores = scorer(images, prompt=["a dog", "the house"])
        pixels = (images * 255).round().to(torch.uint8)
        expected = [
            clip_score(pixels[i], text, lambda: (model, processor)) for i, text in enumerate(["a dog", "the house"])
        ]
        torch.testing.assert_close(scores, torch.stack(expected).flatten())
        assert scores[0] != scores[1]
        assert len(built) == 1
        with pytest.raises(ValueError, match="no usable gradient"):
            check_reward(scorer)

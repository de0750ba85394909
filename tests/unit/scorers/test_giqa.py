"""GMM and nearest-neighbour scorers: against scikit-learn, SciPy and plain loops, on real digits."""

from __future__ import annotations

import os
import random
import shutil
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from qa_hooks.features import FeatureExtractor, create_extractor, extract_features
from qa_hooks.images import save_image, to_uint8
from qa_hooks.losses import ScoreLoss
from qa_hooks.scorers import GMMScorer, KNNScorer, RankScorer, create_scorer, load_scorer
from qa_hooks.sources.fingerprint import data_fingerprint

SYMMETRIC = (-1.0, 1.0)
pytestmark = pytest.mark.filterwarnings("ignore:images. values lie in:UserWarning")


class Smooth(nn.Module):
    """A small smooth network in the type of its input, so that gradients can be compared with finite differences."""

    def __init__(self) -> None:
        super().__init__()
        weights = torch.randn(12, 3, 3, 3, generator=torch.Generator().manual_seed(3)) * 0.4
        self.register_buffer("weights", weights)

    def forward(self, images):
        return torch.tanh(nn.functional.conv2d(images, self.weights.to(images.dtype), stride=2)).mean((2, 3))


class InDouble(FeatureExtractor):
    """Without the cast to float32 of every other extractor."""

    def forward(self, images):
        return self.network(images.expand(-1, 3, -1, -1))


@pytest.fixture(scope="module")
def extractor():
    return create_extractor("random", width=8)


@pytest.fixture(scope="module")
def features(extractor, digits):
    return extract_features(extractor, digits, value_range=SYMMETRIC, progress=False)


@pytest.fixture(scope="module")
def gmm(extractor, digits):
    return GMMScorer(extractor, 3, value_range=SYMMETRIC).fit(digits[:1000], progress=False)


@pytest.fixture(scope="module")
def knn(extractor, digits):
    return KNNScorer(extractor, value_range=SYMMETRIC).fit(digits[:1000], progress=False)


def damaged(digits, strength):
    return (digits + strength * torch.randn(digits.shape, generator=torch.Generator().manual_seed(1))).clamp(-1, 1)


def pairwise(better, worse):
    return (better[:, None] > worse).double().mean().item()


class TestGMM:
    @pytest.mark.parametrize("covariance", ["full", "diag"])
    @pytest.mark.parametrize(("components", "pca"), [(1, 0.9), (4, 6), (3, None)])
    def test_equal_to_scikit_learn(self, extractor, features, components, pca, covariance):
        from sklearn.decomposition import PCA
        from sklearn.mixture import GaussianMixture

        own = {} if pca is not None else {"reg_covar": 1e-4}
        scorer = GMMScorer(extractor, components, pca=pca, covariance=covariance, seed=5, **own)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scorer.fit_features(features, calibration=None)
            rows = features.values.double().numpy()
            rows = PCA(pca, random_state=5).fit_transform(rows) if pca is not None else rows - rows.mean(0)
            peer = GaussianMixture(components, covariance_type=covariance, random_state=5, **own).fit(rows)
        expected = peer.score_samples(rows)
        assert np.allclose(scorer.score_features(features), expected, rtol=1e-4, atol=1e-3)

    def test_one_component_is_the_single_gaussian(self, extractor, features):
        stats = pytest.importorskip("scipy.stats")
        scorer = GMMScorer(extractor, 1, pca=5, reg_covar=0).fit_features(features, calibration=None)
        rows = features.values.double() - features.values.double().mean(0)
        _, _, axes = torch.linalg.svd(rows, full_matrices=False)
        rows = rows @ axes[:5].T
        expected = stats.multivariate_normal(np.zeros(5), np.cov(rows.T.numpy(), bias=True)).logpdf(rows.numpy())
        assert np.allclose(scorer.score_features(features), expected, rtol=1e-4, atol=1e-3)
        assert (scorer.name, GMMScorer(extractor, 2).name) == ("giqa_sgm", "giqa_gmm")

    def test_damage_lowers_the_score_of_images_it_never_saw(self, gmm, digits):
        unseen = gmm(digits[1000:])
        little, much = gmm(damaged(digits[1000:], 0.2)), gmm(damaged(digits[1000:], 0.8))
        assert pairwise(unseen, little) > 0.75
        assert pairwise(little, much) > 0.95

    def test_calibrated_on_images_that_were_held_out(self, gmm, digits):
        assert gmm.calibrated()(digits[1000:]).mean().item() == pytest.approx(0.5, abs=0.07)
        in_sample = GMMScorer(gmm.extractor, 3, value_range=SYMMETRIC).fit(digits[:1000], calibration=None)
        assert in_sample.calibration is None
        assert not torch.equal(in_sample.means, gmm.means)

    def test_few_images_for_a_component_warn(self, extractor, features):
        with pytest.warns(UserWarning, match=r"images for 112 dimensions"):
            GMMScorer(extractor, 4, pca=None).fit_features(features[:300], calibration=None)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            GMMScorer(extractor, 4, pca=3).fit_features(features[:300], calibration=None)

    def test_what_cannot_be_fitted(self, extractor, features):
        scorer = GMMScorer(extractor, 7)
        with pytest.raises(ValueError, match="7 components need as many images, got 6"):
            scorer.fit_features(features[:6], calibration=None)
        with pytest.raises(ValueError, match="features of all 50 images are the same"):
            scorer.fit_features(features.values[:1].expand(50, -1), calibration=None)
        with pytest.raises(ValueError, match="non-finite"):
            scorer.fit_features(features.values[:50] / 0)
        with pytest.raises(ValueError, match="was empty"):
            scorer.fit_features(features.values[:0])
        with pytest.raises(ValueError, match=r"features must be \(n, 112\) of random8-0, got \(9, 5\)"):
            scorer.fit_features(torch.zeros(9, 5))
        with pytest.raises(ValueError, match=r"a share of 0\.2 of 40 images is 8"):
            scorer.fit_features(features[:40])
        with pytest.raises(ValueError, match="pca=60 dimensions need as many images"):
            GMMScorer(extractor, 2, pca=60).fit_features(features[:50], calibration=None)
        with pytest.raises(ValueError, match=r"reg_covar") as caught:
            GMMScorer(extractor, 2, pca=3, reg_covar=0).fit_features(
                torch.cat([features.values[:1]] * 20 + [features.values[:20]]), calibration=None
            )
        assert "could not be fitted on 40 images in 3 dimensions" in str(caught.value)

    @pytest.mark.parametrize(
        "options", [{"components": 0}, {"pca": 0}, {"pca": 1.0}, {"pca": True}, {"covariance": "tied"}, {"seed": -1}]
    )
    def test_bad_options(self, extractor, options):
        with pytest.raises(ValueError, match=next(iter(options))):
            GMMScorer(extractor, **options)


class TestKNN:
    @pytest.mark.parametrize("k", [1, 4])
    def test_the_papers_formula(self, extractor, features, k):
        scorer = KNNScorer(extractor, k).fit_features(features[:200], calibration=None)
        bank, queries = features.values[:200].double(), features.values[200:260].double()
        nearest = ((queries[:, None] - bank) ** 2).sum(2).sort(1).values[:, :k]
        assert torch.allclose(scorer.score_features(queries.float()).double(), (1 / nearest).mean(1), rtol=1e-5)

    @pytest.mark.parametrize("k", [1, 4])
    def test_the_official_codes_formula(self, extractor, features, k):
        """As in its loop: torch's pairwise_distance with p = 1, sorted, the inverses added up."""
        scorer = KNNScorer(extractor, k, variant="official_code").fit_features(features[:200], calibration=None)
        bank, queries = features.values[:200], features.values[200:260]
        distances = torch.stack([nn.functional.pairwise_distance(q.expand(200, -1), bank, p=1) for q in queries])
        expected = (1 / distances.sort(1).values[:, :k]).sum(1)
        assert torch.allclose(scorer.score_features(queries), expected, rtol=1e-4)

    def test_its_own_images_score_without_themselves(self, extractor, features):
        scorer = KNNScorer(extractor, 2).fit_features(features[:200], calibration=None)
        bank = features.values[:200].double()
        squared = ((bank[:, None] - bank) ** 2).sum(2).fill_diagonal_(torch.inf)
        expected = (1 / squared.sort(1).values[:, :2]).mean(1)
        assert torch.allclose(scorer.own_scores().double(), expected, rtol=1e-5)
        rounded = features.values[:200] * (1 + 2e-7)  # as another batch size rounds them
        for own in (features.values[:200], rounded):
            assert torch.allclose(scorer.score_features(own).double(), expected, rtol=1e-3)

    @pytest.mark.parametrize("variant", ["paper", "official_code"])
    def test_copies_in_the_bank_are_no_neighbours_of_each_other(self, extractor, features, variant):
        rows = torch.arange(202) % 200  # the first two images are there twice
        once, twice = (
            KNNScorer(extractor, 2, variant=variant).fit_features(part, calibration=None)
            for part in (features[:200], features[rows])
        )
        expected = once.own_scores()[:2]
        assert torch.allclose(twice.score_features(features[:2]), expected, rtol=1e-4)
        assert torch.allclose(twice.own_scores()[:2], expected, rtol=1e-4)

    def test_damage_lowers_the_score_of_images_it_never_saw(self, knn, digits):
        unseen = knn(digits[1000:])
        little, much = knn(damaged(digits[1000:], 0.2)), knn(damaged(digits[1000:], 0.8))
        assert pairwise(unseen, little) > 0.75
        assert pairwise(little, much) > 0.95
        assert knn.calibrated()(digits[1000:]).mean().item() == pytest.approx(0.5, abs=0.07)

    @pytest.mark.filterwarnings("ignore:giqa_knn has 200 real images:UserWarning")
    def test_more_neighbours_than_images(self, extractor, features):
        with pytest.raises(ValueError, match="k=300 neighbours need as many images in the bank, got 200"):
            KNNScorer(extractor, 300).fit_features(features[:200], calibration=None)
        with pytest.warns(UserWarning, match="wants at least 400"):
            scorer = KNNScorer(extractor, 200).fit_features(features[:200], calibration=None)
        with pytest.raises(ValueError, match="k=200, but it has 199 others"):
            scorer.own_scores()
        with pytest.raises(ValueError, match="variant must be one of"):
            KNNScorer(extractor, variant="mean")


SCORERS = {
    "gmm": lambda extractor, **options: GMMScorer(extractor, 2, pca=4, **options),
    "gmm diag": lambda extractor, **options: GMMScorer(extractor, 2, pca=None, covariance="diag", **options),
    "knn": lambda extractor, **options: KNNScorer(extractor, 2, **options),
    "knn official": lambda extractor, **options: KNNScorer(extractor, 2, variant="official_code", **options),
}


@pytest.mark.parametrize("name", SCORERS)
class TestBoth:
    def test_gradient_through_the_extractor(self, name, digits):
        """Central differences in float64 along random directions."""
        scorer = SCORERS[name](InDouble(Smooth(), name="smooth")).fit(digits[:300] / 2 + 0.5, calibration=None)
        images = (digits[300:304].double() / 2 + 0.5).requires_grad_()
        (gradient,) = torch.autograd.grad(scorer.score(images).sum(), images)
        for _ in range(3):
            direction = torch.randn_like(images)
            step = 1e-5 * direction
            with torch.no_grad():
                numeric = (scorer.score(images + step) - scorer.score(images - step)).sum().item() / 2e-5
            assert (gradient * direction).sum().item() == pytest.approx(numeric, rel=1e-4)

    @pytest.mark.filterwarnings("ignore:.*has no best value, and this loss no ceiling")
    def test_as_a_loss_it_raises_the_score(self, name, digits):
        scorer = SCORERS[name](create_extractor("random", width=8)).fit(digits[:300] / 2 + 0.5, calibration=None)
        images = (damaged(digits[300:308], 0.5) / 2 + 0.5).requires_grad_()
        before = scorer(images).detach()
        optimizer = torch.optim.Adam([images], lr=0.01)
        for _ in range(20):
            optimizer.zero_grad()
            ScoreLoss(scorer)(images).backward()
            optimizer.step()
        assert (scorer(images) > before).all()
        assert all(p.grad is None for p in scorer.extractor.network.parameters())

    def test_fitted_in_inference_mode_it_can_be_a_loss(self, name, digits, tmp_path):
        with torch.inference_mode():
            scorer = SCORERS[name]("random", value_range=SYMMETRIC).fit(digits[:80], progress=False)
            scorer.save(tmp_path / "scorer.safetensors")
            loaded = load_scorer(tmp_path / "scorer.safetensors", SYMMETRIC)
        for each in (scorer, loaded):
            images = digits[80:84].clone().requires_grad_()
            each(images).sum().backward()
            assert images.grad.abs().sum() > 0

    def test_the_users_autocast_does_not_reach_scores_of_features(self, name, extractor, features):
        scorer = SCORERS[name](extractor).fit_features(features)
        expected = scorer.score_features(features)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(scorer.score_features(features), expected)

    def test_refit_keeps_options_and_basis(self, name, extractor, features):
        scorer = SCORERS[name](extractor).fit_features(features[:400])
        other = scorer.refit(features[400:800])
        assert other.own_options() == scorer.own_options()
        assert other.calibration is None
        assert not torch.equal(other.score_features(features[:50]), scorer.score_features(features[:50]))
        if name.startswith("gmm"):
            assert torch.equal(other.basis, scorer.basis)
            assert torch.equal(other.center, scorer.center)
        again = scorer.refit(features[400:800])
        assert torch.equal(other.score_features(features), again.score_features(features))

    def test_a_collapsed_set_can_be_refitted(self, name, extractor, features):
        scorer = SCORERS[name](extractor).fit_features(features[:400])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            other = scorer.refit(features.values[:1].expand(80, -1))
        assert torch.isfinite(other.score_features(features)).all()

    def test_saved_and_loaded_it_scores_the_same(self, name, extractor, features, digits, tmp_path):
        scorer = SCORERS[name](extractor, value_range=SYMMETRIC).fit_features(features[:400])
        scorer.save(tmp_path / "s.safetensors")
        loaded = load_scorer(tmp_path / "s.safetensors", SYMMETRIC)
        assert torch.equal(loaded(digits[:9]), scorer(digits[:9]))
        assert torch.equal(loaded.calibrated()(digits[:9]), scorer.calibrated()(digits[:9]))
        assert loaded.options() == scorer.options()
        assert not scorer.state_dict()

    def test_the_users_run_is_left_alone(self, name, digits):
        network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout())
        states = torch.get_rng_state(), np.random.get_state()[1].copy()
        loader = DataLoader(TensorDataset(digits[:200]), batch_size=50, shuffle=True)
        scorer = SCORERS[name](create_extractor(network, name="mine"), value_range=SYMMETRIC).fit(loader)
        scorer(digits[:4])
        assert torch.equal(torch.get_rng_state(), states[0])
        assert (np.random.get_state()[1] == states[1]).all()
        assert torch.is_grad_enabled()
        assert int(network[1].num_batches_tracked) == 0

    def test_before_it_is_fitted(self, name, extractor, digits, tmp_path):
        scorer = SCORERS[name](extractor, value_range=SYMMETRIC)
        for call in (lambda: scorer(digits[:2]), lambda: scorer.save(tmp_path / "s.safetensors")):
            with pytest.raises(ValueError, match="is not fitted: call fit"):
                call()

    def test_features_of_another_extractor_are_refused(self, name, extractor, features, digits):
        other = extract_features(create_extractor("random", width=8, seed=1), digits[:20], value_range=SYMMETRIC)
        with pytest.raises(ValueError, match=f"fingerprint {other.fingerprint}, but .*{extractor.fingerprint}"):
            SCORERS[name](extractor).fit_features(features[:400]).score_features(other)

    def test_a_network_of_the_users_is_passed_when_loading(self, name, digits, tmp_path):
        path = tmp_path / "s.safetensors"
        scorer = SCORERS[name](create_extractor(Smooth(), name="mine")).fit(digits[:200] / 2 + 0.5)
        scorer.save(path)
        with pytest.raises(ValueError, match=r"does not fit .* network of your own"):
            load_scorer(path)
        loaded = load_scorer(path, extractor=create_extractor(Smooth(), name="mine"))
        assert torch.equal(loaded(digits[:4] / 2 + 0.5), scorer(digits[:4] / 2 + 0.5))
        with pytest.raises(ValueError, match=f"mine.*{scorer.extractor.fingerprint}.*random"):
            load_scorer(path, extractor="random")


class TestFiles:
    def test_broken_files_are_named(self, gmm, knn, tmp_path):
        from safetensors import safe_open
        from safetensors.torch import load_file, save_file

        good, bad = tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
        gmm.save(good)
        bad.write_bytes(good.read_bytes()[:-100])
        with pytest.raises(ValueError, match=r"bad\.safetensors is not a whole safetensors file"):
            load_scorer(bad)
        with safe_open(str(good), "pt") as file:
            metadata = file.metadata()
        tensors = load_file(good)
        metadata["scorer"] = metadata["scorer"].replace("GMMScorer", "KNNScorer")
        save_file(tensors, bad, metadata=metadata)
        with pytest.raises(ValueError, match=r"bad\.safetensors does not fit KNNScorer"):
            load_scorer(bad)
        knn.save(good)
        with safe_open(str(good), "pt") as file:
            metadata = file.metadata()
        save_file({"wrong": torch.zeros(1)}, bad, metadata=metadata)
        with pytest.raises(ValueError, match=r"does not fit KNNScorer: tensors \['wrong'\], expected \['bank'\]"):
            load_scorer(bad)

    def test_only_scorers_with_features_take_an_extractor(self, tmp_path):
        create_scorer("psnr").save(tmp_path / "psnr.safetensors")
        with pytest.raises(ValueError, match="takes no extractor="):
            load_scorer(tmp_path / "psnr.safetensors", extractor="random")


RANDOM = {"type": "random", "width": 8}


class TestCreate:
    @pytest.mark.parametrize("name", ["giqa-gmm", "giqa-sgm", "giqa-knn"])
    def test_fitted_in_one_call(self, name, digits):
        scorer = create_scorer(name, SYMMETRIC, fit=digits[:300], extractor=RANDOM)
        assert scorer.name == name.replace("-", "_")
        assert scorer.calibrated()(digits[300:310]).shape == (10,)
        spec = {"type": name, "fit": digits[:300], "extractor": RANDOM, "value_range": SYMMETRIC}
        again = create_scorer({**spec, "calibration": "sigmoid", "held_out": 0.1})
        assert again.calibration.method == "sigmoid"

    def test_snapshot_scorers(self, digits, tmp_path):
        images = to_uint8(damaged(digits[:60], 0.8), SYMMETRIC)
        spec = {"type": "giqa-mbc", "classifiers": 2, "steps": 3, "progress": False, "cache": tmp_path}
        sources = {"fit": (images, torch.arange(60) * 10), "real": digits[60:160]}
        first, second = (create_scorer(spec, SYMMETRIC, **sources) for _ in range(2))
        assert torch.equal(first(digits[:3]), second(digits[:3]))
        assert len(list(tmp_path.iterdir())) == 1
        with pytest.raises(ValueError, match="giqa-mbc has to be fitted: pass real=real_images"):
            create_scorer("giqa-mbc", fit=sources["fit"])
        with pytest.raises(ValueError, match="takes no extractor"):
            create_scorer("giqa-mbc", SYMMETRIC, **sources, extractor="random")

    def test_snapshots_may_be_cached_with_iterations_in_any_form(self, digits, tmp_path):
        spec = {"type": "giqa-bc", "steps": 2, "progress": False}
        images = (digits[:30] + 1) / 2
        for iterations in ([0, 100, 200] * 10, torch.tensor([0, 100, 200] * 10)):
            scorer = create_scorer(spec, fit=(images, iterations), real=images, cache=tmp_path)
            assert scorer(images[:2]).shape == (2,)
        assert len(list(tmp_path.iterdir())) == 1

    @pytest.mark.filterwarnings("ignore:a component has about:UserWarning")
    @pytest.mark.parametrize("name", ["giqa-gmm", "giqa-knn", "rank"])
    def test_a_file_that_cannot_be_read_is_left_out_with_a_warning(self, name, photographs, tmp_path):
        """Whichever scorer, and whether it is fitted here or by its own `fit`."""
        for index in range(60):
            save_image(to_uint8(photographs[index % 4, :, index : index + 40, :40]), tmp_path / f"{index}.png")
        (tmp_path / "broken.png").write_text("nothing")
        quick = {"steps": 1, "crop": 32, "crops": 1, "warn_below": 0} if name == "rank" else {}
        given = {} if name == "rank" else {"extractor": {**RANDOM, "width": 1}}
        kind = {"giqa-gmm": GMMScorer, "giqa-knn": KNNScorer, "rank": RankScorer}[name]
        own = {"components": 1} if name == "giqa-gmm" else {}
        with pytest.warns(UserWarning, match="1 image could not be read and was left out; the first: .*broken.png"):
            one = create_scorer({"type": name, "progress": False, **own, **quick}, fit=tmp_path, **given)
        with pytest.warns(UserWarning, match="1 image could not be read"):
            other = kind(*given.values(), **own).fit(tmp_path, progress=False, **quick)
        images = photographs[:2, :, :40, :40]
        assert torch.equal(one(images), other(images))

    def test_one_seed_is_for_the_model_and_for_the_choice_of_held_out_images(self, digits):
        spec = {"type": "giqa-gmm", "components": 2, "pca": 4, "seed": 3, "extractor": RANDOM}
        features = extract_features(create_extractor(RANDOM), digits[:200], value_range=SYMMETRIC)
        scorer = GMMScorer(RANDOM, 2, pca=4, seed=3, value_range=SYMMETRIC).fit_features(features, seed=3)
        assert create_scorer(spec, SYMMETRIC, fit=digits[:200]).fingerprint == scorer.fingerprint

    def test_the_device_is_where_it_is_fitted_and_stays(self, digits, monkeypatch):
        seen = []
        monkeypatch.setattr(KNNScorer, "fit", lambda self, images, **_: seen.append(self.device) or self)
        scorer = create_scorer("giqa-knn", fit=digits, extractor=RANDOM, device="meta")
        assert seen == [torch.device("meta")]
        assert scorer.device == torch.device("meta")
        assert create_scorer({"type": "niqe_bsd100", "device": "meta"}).device == torch.device("meta")

    def test_the_cache(self, digits, tmp_path, monkeypatch):
        spec = {"type": "giqa-gmm", "components": 2, "pca": 4, "extractor": RANDOM, "value_range": SYMMETRIC}
        first = create_scorer(spec, fit=digits[:200], cache=tmp_path / "new")
        (path,) = (tmp_path / "new").iterdir()
        assert path.name.startswith("giqa-gmm-")
        with monkeypatch.context() as patched:
            patched.setattr(GMMScorer, "fit_tensors", None)
            how = {"progress": False, "batch_size": 50}  # which does not change the result
            second = create_scorer({**spec, **how}, fit=digits[:200].clone(), cache=tmp_path / "new")
        assert torch.equal(first.calibrated()(digits[:5]), second.calibrated()(digits[:5]))
        others = [
            {"fit": digits[:201]},
            {"components": 3},
            {"seed": 1},
            {"calibration": "minmax"},
            {"held_out": 0.3},
            {"extractor": {**RANDOM, "seed": 1}},
        ]
        for count, other in enumerate(others, start=2):
            create_scorer({**spec, "fit": digits[:200], "cache": tmp_path / "new", **other})
            assert len(list((tmp_path / "new").iterdir())) == count, other
        path.write_bytes(path.read_bytes()[:-8])
        with pytest.raises(ValueError, match=rf"{path.name} is not a whole safetensors file"):
            create_scorer(spec, fit=digits[:200], cache=tmp_path / "new")

    def test_what_is_missing_or_too_much_is_named(self, digits, gmm, tmp_path):
        with pytest.raises(ValueError, match="giqa-gmm has to be fitted: pass fit=real_images, or fit it once"):
            create_scorer("giqa-gmm", extractor="random")
        with pytest.raises(ValueError, match=r"giqa-knn needs extractor=, .*'inception', 'dinov2_vits14', 'random'"):
            create_scorer("giqa-knn", fit=digits)
        with pytest.raises(ValueError, match="without real="):
            create_scorer("giqa-gmm", fit=digits, real=digits, extractor="random")
        with pytest.raises(ValueError, match="fit=, cache= is for scorers that are fitted here, not for psnr"):
            create_scorer("psnr", fit=digits, cache="x")
        with pytest.raises(ValueError, match="extractor= is for scorers that are fitted here"):
            create_scorer(gmm, SYMMETRIC, extractor="random")
        with pytest.raises(TypeError, match="gamma"):
            create_scorer({"type": "giqa-gmm", "gamma": 1}, fit=digits, extractor="random")
        with pytest.raises(ValueError, match="holds no image files"):
            create_scorer("giqa-gmm", fit=tmp_path, extractor="random")


class TestDataFingerprint:
    def test_loaders_in_any_order(self, digits):
        def of(images, **options):
            return data_fingerprint(DataLoader(TensorDataset(images), **options), SYMMETRIC)

        state = torch.get_rng_state()
        first = of(digits[:50], batch_size=7, shuffle=True)
        assert torch.equal(torch.get_rng_state(), state)
        assert first == of(digits[:50], batch_size=16, shuffle=True)
        assert first != of(digits[1:51], batch_size=7)
        assert first != of(torch.cat([digits[:50], digits[:1]]), batch_size=7)
        assert first != data_fingerprint(DataLoader(TensorDataset(digits[:50])), (0.0, 1.0))
        assert first == data_fingerprint(TensorDataset(digits[:50]), SYMMETRIC)

    def test_folders(self, digits, tmp_path):
        for index, image in enumerate(to_uint8(digits[:3], SYMMETRIC)):
            save_image(image, tmp_path / f"{index}.png")
        first = data_fingerprint(tmp_path)
        assert data_fingerprint(tmp_path) == first
        files = sorted(tmp_path.iterdir())
        listed = data_fingerprint(files)
        copy = shutil.copytree(tmp_path, tmp_path.parent / "copy", copy_function=shutil.copyfile)
        os.utime(copy / "1.png", ns=(1, 1))
        assert data_fingerprint(copy) == first  # on another disk, with other times
        assert data_fingerprint(sorted(copy.iterdir())) == listed
        status = (copy / "1.png").stat()
        content = bytearray((copy / "1.png").read_bytes())
        content[-20] ^= 1
        (copy / "1.png").write_bytes(content)
        os.utime(copy / "1.png", ns=(status.st_atime_ns, status.st_mtime_ns))
        changed = data_fingerprint(copy)
        assert changed != first  # with the same size and times
        (tmp_path / "1.png").rename(tmp_path / "9.png")
        assert data_fingerprint(tmp_path) not in (first, changed)

    @pytest.mark.parametrize("workers", [0, 1])
    def test_random_augmentation_is_the_same_at_each_pass(self, digits, workers):
        class Augmented(torch.utils.data.Dataset):
            def __len__(self):
                return 20

            def __getitem__(self, index):
                flipped = torch.rand(()) < 0.5, np.random.rand() < 0.5, random.random() < 0.5
                return digits[index].flip([d for d, flip in zip((0, 1, 2), flipped, strict=True) if flip])

        generator = torch.Generator().manual_seed(1)
        loader = DataLoader(Augmented(), 5, shuffle=True, num_workers=workers, generator=generator)
        seen = set()
        for seed in (1, 2):
            torch.manual_seed(seed), np.random.seed(seed), random.seed(seed)
            generator.manual_seed(seed)
            before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate(), generator.get_state()
            seen.add((data_fingerprint(Augmented(), SYMMETRIC), data_fingerprint(loader, SYMMETRIC)))
            after = torch.get_rng_state(), np.random.get_state()[1], random.getstate(), generator.get_state()
            assert torch.equal(before[0], after[0])
            assert np.array_equal(before[1], after[1])
            assert before[2] == after[2]
            assert torch.equal(before[3], after[3])
        assert len(seen) == 1

    def test_what_cannot_be_read_twice(self, digits):
        with pytest.raises(ValueError, match="an iterator can be read once only"):
            data_fingerprint(iter([digits[:5]]))

    def test_an_error_of_the_source_is_its_own(self):
        with pytest.raises(TypeError, match="images must come as"):
            data_fingerprint(3)

"""The NIQE scorer and its model: golden value, behaviour on photographs the model has not seen, files."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from scipy.io import savemat
from scipy.ndimage import gaussian_filter

from qa_hooks.functional.naturalness import image_naturalness
from qa_hooks.functional.niqe import FeatureConfig, niqe_features
from qa_hooks.images import as_tensor, load_image
from qa_hooks.scorers.niqe.model import NaturalnessModel
from qa_hooks.scorers.niqe.original import SHA256, find_original, load_original
from qa_hooks.scorers.niqe.scorer import NIQE, fit_naturalness, to_luma

FEW = pytest.mark.filterwarnings("ignore:a naturalness model wants 180 blocks:UserWarning")
PHOTOGRAPHS = ("astronaut", "camera", "chelsea", "coffee", "rocket")


def photograph(name: str) -> torch.Tensor:
    data = pytest.importorskip("skimage.data")
    return as_tensor(getattr(data, name)())  # uint8 (1, C, H, W)


def blur(image: torch.Tensor, sigma: float) -> torch.Tensor:
    filtered = gaussian_filter(image.numpy().astype(np.float32), (0, 0, sigma, sigma)) if sigma else image.numpy()
    return torch.from_numpy(filtered.round().astype(np.uint8))


def noise(image: torch.Tensor, deviation: float) -> torch.Tensor:
    field = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    return (image + deviation * field).round().clamp(0, 255).byte()


def jpeg(image: torch.Tensor, quality: int) -> torch.Tensor:
    from PIL import Image

    array = image[0].permute(1, 2, 0).numpy().squeeze()
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "jpeg", quality=quality)
    with Image.open(buffer) as picture:
        return as_tensor(picture.copy())


@pytest.fixture(scope="module")
def scorer() -> NIQE:
    return NIQE()


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_score_grows_with_blur_noise_and_jpeg(scorer, name):
    image = photograph(name)
    clean = scorer(image).item()
    series = {
        "blur": [scorer(blur(image, sigma)).item() for sigma in (1.2, 2.0, 3.0)],
        "noise": [scorer(noise(image, deviation)).item() for deviation in (10, 20, 40)],
        "jpeg": [scorer(jpeg(image, quality)).item() for quality in (30, 15, 7)],
    }
    for kind, values in series.items():
        assert clean < values[-1], f"{kind}: {clean} {values}"
        assert values == sorted(values), f"{kind}: {values}"


def test_descending_the_gradient_lowers_the_score(scorer):
    image = (photograph("chelsea")[..., :192, :192].float() / 255).requires_grad_()
    optimizer = torch.optim.Adam([image], lr=2e-3)
    before = scorer(image).item()
    for _ in range(30):
        optimizer.zero_grad()
        scorer(image).sum().backward()
        assert image.grad is not None
        assert image.grad.isfinite().all()
        optimizer.step()
    assert scorer(image).item() < 0.7 * before


def test_gradient_equals_a_finite_difference():
    image = photograph("coffee")[..., :192, :192].double() / 255
    scorer = NIQE()
    image.requires_grad_()

    def value(batch):
        features = niqe_features(to_luma(batch, "gray"), scorer.model.config)
        return image_naturalness(features, scorer.mean, scorer.covariance).sum()

    (gradient,) = torch.autograd.grad(value(image), image)
    direction = torch.randn(image.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    step = 1e-9 * direction  # photographs have many equal neighbours, hence many coefficients close to a jump
    with torch.no_grad():
        numeric = (value(image + step) - value(image - step)) / 2e-9
    assert (gradient * direction).sum().item() == pytest.approx(numeric.item(), rel=1e-3)


def test_single_image_equals_batch_and_degenerate_images_spoil_nobody(scorer):
    crops = [photograph(name)[..., :200, :200] for name in PHOTOGRAPHS]
    batch = torch.cat([crop.expand(1, 3, 200, 200) for crop in crops]).float() / 255
    alone = torch.cat([scorer(image[None]) for image in batch])
    torch.testing.assert_close(scorer(batch), alone, rtol=1e-5, atol=1e-5)
    saturated = (20 * torch.randn(1, 3, 200, 200, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    bad = torch.cat(
        [torch.zeros(1, 3, 200, 200), torch.ones(1, 3, 200, 200), torch.full((1, 3, 200, 200), 0.3), saturated]
    )
    mixed = torch.cat([batch, bad]).requires_grad_()
    scores = scorer(mixed)
    scores.sum().backward()
    assert scores.isfinite().all()
    assert mixed.grad is not None
    assert mixed.grad.isfinite().all()
    assert (mixed.grad[5:8] == 0).all()
    assert mixed.grad[:5].abs().amax((1, 2, 3)).min() > 0
    torch.testing.assert_close(scores[:5].detach(), alone, rtol=1e-5, atol=1e-5)
    assert scores[5:].min() > alone.max(), "a flat or saturated image is no natural one"


def test_one_block_works_and_less_is_a_clear_error(scorer):
    assert scorer(photograph("coffee")[..., :96, :96]).isfinite().all()
    with pytest.raises(ValueError, match=r"95 x 300.*96"):
        scorer(torch.rand(1, 3, 95, 300))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(scorer, dtype):
    image = photograph("coffee").float() / 255
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(scorer(image), scorer(image.clone()))
        inside = scorer(image)
    assert torch.equal(inside, scorer(image))
    assert scorer(image.to(dtype)).dtype == torch.float32


def test_ranges_channels_and_colours():
    image = photograph("coffee")
    scores = {color: NIQE(_model_of(color), color=color)(image).item() for color in ("gray", "y_ycbcr", "y_yiq")}
    assert len(set(scores.values())) == 3
    symmetric = NIQE(value_range=(-1, 1))(image.float() / 127.5 - 1)
    torch.testing.assert_close(symmetric, NIQE()(image), rtol=1e-4, atol=1e-4)
    grey = photograph("camera")
    assert torch.equal(NIQE()(grey), NIQE()(grey.float() / 255))
    for color in ("y_ycbcr", "y_yiq"):
        one = to_luma(grey.float() / 255, color)
        torch.testing.assert_close(one, to_luma(grey.expand(1, 3, -1, -1).float() / 255, color))
        assert torch.equal(one, one.round())
    with pytest.raises(ValueError, match="channels"):
        NIQE()(torch.rand(1, 4, 96, 96))
    with pytest.raises(ValueError, match="color"):
        NIQE(color="lab")
    with pytest.raises(ValueError, match="fitted with color='gray'"):
        NIQE(color="y_yiq")


def test_rounded_colours_pass_gradients():
    image = torch.rand(1, 3, 4, 4, requires_grad=True)
    to_luma(image, "y_ycbcr").sum().backward()
    assert image.grad is not None
    torch.testing.assert_close(image.grad[0, :, 0, 0], torch.tensor([65.481, 128.553, 24.966]))


def _model_of(color: str) -> NaturalnessModel:
    """The shipped numbers without a word about colour."""
    shipped = NIQE().model
    return NaturalnessModel(shipped.mean, shipped.covariance, shipped.config, provenance={"name": f"free_{color}"})


# Canonical values


@pytest.mark.skipif(find_original() is None, reason="no file with the original parameters (QA_HOOKS_NIQE_PARAMETERS)")
def test_original_parameters_give_the_published_value_of_baboon():
    """BasicSR's documentation: MATLAB R2021a gives 5.72957338 for the Y channel of baboon.png, crop_border 0."""
    scorer = NIQE("original", color="y_ycbcr")
    assert scorer.name == "niqe"
    path = find_original().with_name("baboon.png")  # type: ignore[union-attr]
    if not path.is_file():
        pytest.skip("test_scripts/data/baboon.png of BasicSR is not beside the parameters")
    assert scorer(load_image(path)[None]).item() == pytest.approx(5.72957338, abs=1e-4)


def test_original_is_looked_for_and_a_failure_names_every_way(monkeypatch, tmp_path):
    monkeypatch.delenv("QA_HOOKS_NIQE_PARAMETERS", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(
        RuntimeError, match=r"no route.*QA_HOOKS_NIQE_PARAMETERS.*basicsr.*niqe_pris_params.npz.*bsd100"
    ):
        load_original()
    assert len(SHA256) == 64
    NIQE().model.save(tmp_path / "other.safetensors")
    monkeypatch.setenv("QA_HOOKS_NIQE_PARAMETERS", str(tmp_path / "other.safetensors"))
    with pytest.raises(ValueError, match="does not hold the original"):
        load_original()


# Models and files


def test_shipped_model_says_where_it_comes_from(scorer):
    assert (scorer.name, scorer.higher_is_better, scorer.differentiable) == ("niqe_bsd100", False, True)
    model = scorer.model
    assert model.provenance["images"] == 80
    assert "limit=80" in model.provenance["command"]
    assert model.config == FeatureConfig(block=96, downscale="imresize")
    assert model.condition < 1e5


@FEW
def test_model_round_trip_and_statistics(tmp_path):
    images = [255 * torch.rand(size, dtype=torch.float64) for size in ((2, 1, 128, 192), (1, 224, 224))]
    config = FeatureConfig.niqe(block=32)
    model = NaturalnessModel.fit(images, config, sharpness=0.0, provenance={"name": "random"}, progress=False)
    rows = torch.cat([niqe_features(images[0], config).flatten(0, 1), niqe_features(images[1][None], config)[0]])
    assert model.count == len(rows) == 97
    torch.testing.assert_close(model.mean, rows.mean(0))
    torch.testing.assert_close(model.covariance, rows.t().cov())
    sums = NaturalnessModel.from_moments(97, rows.sum(0), rows.t() @ rows, config)
    torch.testing.assert_close(sums.covariance, model.covariance, rtol=1e-6, atol=1e-9)
    model.save(tmp_path / "model.safetensors")
    loaded = NaturalnessModel.load(tmp_path / "model.safetensors")
    assert torch.equal(loaded.mean, model.mean)
    assert torch.equal(loaded.covariance, model.covariance)
    assert (loaded.config, loaded.count, loaded.provenance) == (model.config, 97, {"name": "random"})
    assert loaded.fingerprint == model.fingerprint != NIQE().model.fingerprint
    assert NaturalnessModel.from_dict(model.to_dict()).fingerprint == model.fingerprint
    assert NIQE(loaded).name == "niqe_random"
    sharp = NaturalnessModel.fit([torch.cat([images[1], images[1] / 10], 2)], config, sharpness=0.75, progress=False)
    assert sharp.count == 49, "the half of a tenth of the contrast is left out"
    with pytest.raises(ValueError, match="two feature rows"):
        NaturalnessModel.from_moments(1, rows[0], rows[:1].t() @ rows[:1], config)


def test_too_few_blocks_are_refused_and_few_are_warned_of_with_the_number_that_is_needed(recwarn):
    config, blocks = FeatureConfig.niqe(block=32), 255 * torch.rand(200, 1, 32, 32)
    for count in (1, 2, 36):
        with pytest.raises(ValueError, match=f"needs at least 37 blocks, and 180 to be relied on: {count} sharp"):
            NaturalnessModel.fit(blocks[:count].split(1), config, sharpness=0, progress=False)
    with pytest.warns(UserWarning, match="wants 180 blocks, 5 for each feature, to be relied on: 37 sharp"):
        NaturalnessModel.fit([blocks[:37]], config, sharpness=0, progress=False)
    recwarn.clear()
    assert NaturalnessModel.fit([blocks], config, sharpness=0, progress=False).count == 200
    assert not recwarn.list


def test_two_rows_make_a_model_and_one_does_not():
    rows, config = torch.randn(2, 36, dtype=torch.float64), FeatureConfig.niqe(block=32)
    model = NaturalnessModel.from_moments(2, rows.sum(0), rows.t() @ rows, config)
    np.testing.assert_allclose(model.mean, rows.mean(0))
    np.testing.assert_allclose(model.covariance, np.cov(rows.numpy(), rowvar=False), atol=1e-12)
    with pytest.raises(ValueError, match="at least two feature rows"):
        NaturalnessModel.from_moments(1, rows[0], torch.outer(rows[0], rows[0]), config)


def test_foreign_files_load(tmp_path):
    model = NIQE().model
    mean, covariance = model.mean.numpy()[None], model.covariance.numpy()
    np.savez(tmp_path / "a.npz", mu_pris_param=mean, cov_pris_param=covariance)
    savemat(tmp_path / "b.mat", {"mu_prisparam": mean, "cov_prisparam": covariance})
    for name in ("a.npz", "b.mat"):
        loaded = NaturalnessModel.load(tmp_path / name)
        torch.testing.assert_close(loaded.covariance, model.covariance, rtol=0, atol=0)
        assert loaded.config == FeatureConfig.niqe()
        assert NIQE(tmp_path / name).name == f"niqe_{name[0]}"


def test_broken_and_foreign_files_are_refused_by_name(tmp_path):
    good = tmp_path / "good.safetensors"
    NIQE().model.save(good)
    content = good.read_bytes()
    (tmp_path / "short.safetensors").write_bytes(content[: len(content) // 2])
    (tmp_path / "empty.safetensors").write_bytes(b"")
    (tmp_path / "noise.npz").write_bytes(b"not a zip")
    (tmp_path / "noise.mat").write_bytes(b"not a mat" * 50)
    np.savez(tmp_path / "keys.npz", mean=np.zeros(36))
    np.savez(tmp_path / "shape.npz", mu_pris_param=np.zeros(18), cov_pris_param=np.eye(18))
    np.savez(tmp_path / "pickle.npz", mu_pris_param=np.array([object()]), cov_pris_param=np.eye(36))
    from safetensors.torch import save_file

    save_file({"mean": torch.zeros(36)}, tmp_path / "foreign.safetensors")
    broken = ("short.safetensors", "empty.safetensors", "noise.npz", "noise.mat", "keys.npz", "shape.npz", "pickle.npz")
    for name in (*broken, "foreign.safetensors", "missing.npz"):
        with pytest.raises(ValueError, match=rf"{name}.*expected a NaturalnessModel"):
            NIQE(tmp_path / name)


def test_impossible_models_are_refused():
    config = FeatureConfig.niqe()
    eye = torch.eye(36)
    skew = eye.clone()
    skew[0, 1] = 0.5
    for mean, covariance, message in [
        (torch.zeros(18), eye, "36 features"),
        (torch.full((36,), float("nan")), eye, "non-finite"),
        (torch.zeros(36), skew, "symmetric"),
        (torch.zeros(36), -eye, "positive semi-definite"),
    ]:
        with pytest.raises(ValueError, match=message):
            NaturalnessModel(mean, covariance, config)
    with pytest.raises(ValueError, match="gradient maps"):
        NIQE(NaturalnessModel(torch.zeros(36), eye, FeatureConfig()))
    with pytest.raises(TypeError, match="pristine"):
        NIQE(3)  # type: ignore[arg-type]


def test_scorer_keeps_float64_when_converted():
    scorer = NIQE()
    before = scorer.covariance.clone()
    scorer.half().bfloat16().to(torch.float32)
    assert scorer.covariance.dtype == torch.float64
    assert torch.equal(scorer.covariance, before)


@FEW
def test_scorer_saves_and_loads_whole(tmp_path):
    from qa_hooks.scorers.loading import load_scorer

    image = photograph("coffee")
    model = NaturalnessModel.fit([to_luma(image.double() / 255, "y_yiq")], FeatureConfig.niqe(block=64), sharpness=0.1)
    scorer = NIQE(NaturalnessModel(model.mean, model.covariance, model.config, 7, {"name": "coffee"}), color="y_yiq")
    scorer.save(tmp_path / "scorer.safetensors")
    loaded = load_scorer(tmp_path / "scorer.safetensors")
    assert isinstance(loaded, NIQE)
    assert (loaded.name, loaded.color) == ("niqe_coffee_y_yiq", "y_yiq")
    assert (loaded.model.config.block, loaded.model.count) == (64, 7)
    assert torch.equal(loaded(image), scorer(image))


@FEW
def test_fit_naturalness_on_a_folder(tmp_path):
    from qa_hooks.images import save_image

    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("astronaut", "chelsea", "coffee"):
        save_image(photograph(name)[0], folder / f"{name}.png")
    save_image(photograph("camera")[0][:, :50, :50], folder / "small.png")
    (folder / "broken.png").write_bytes(b"not a picture")
    with pytest.warns(UserWarning, match=r"1 file could not be read and was left out.*broken\.png"):
        model = fit_naturalness(folder, tmp_path / "model.safetensors", block=64, sharpness=0.2, progress=False)
    assert (model.provenance["images"], model.provenance["skipped"], model.name) == (3, 1, "photos")
    assert NIQE(tmp_path / "model.safetensors").name == "niqe_photos"
    (folder / "broken.png").unlink()
    first = fit_naturalness(folder, tmp_path / "first.safetensors", block=64, limit=1, name="one", progress=False)
    assert (first.provenance["first"], first.provenance["last"]) == ("astronaut.png", "astronaut.png")
    with pytest.raises(ValueError, match="limit"):
        fit_naturalness(folder, tmp_path / "x.safetensors", limit=0)

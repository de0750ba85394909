"""NIQE's features and distances against a float64 NumPy port with brentq, SciPy and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import convolve
from scipy.optimize import brentq
from scipy.special import gamma
from scipy.stats import gennorm

from qa_hooks.functional import mscn
from qa_hooks.functional.generalized_gaussian import aggd, shape_from_ratio
from qa_hooks.functional.naturalness import (
    feature_moments,
    image_naturalness,
    naturalness_distance,
    naturalness_distance_from_moments,
)
from qa_hooks.functional.niqe import FeatureConfig, block_sharpness, niqe_features, valid_rows
from qa_hooks.functional.resize import halve

CONFIGS = {
    "gradient maps": FeatureConfig(),
    "qagan": FeatureConfig.qagan(),
    "blocks": FeatureConfig(block=32, downscale="imresize"),
}


def rho(alpha):
    return gamma(2 / alpha) ** 2 / (gamma(1 / alpha) * gamma(3 / alpha))


def numpy_aggd(values):
    left, right = (np.sqrt(np.mean(side**2)) for side in (values[values < 0], values[values > 0]))
    ratio = left / right
    target = np.mean(np.abs(values)) ** 2 / np.mean(values**2) * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    target = np.clip(target, rho(0.2), rho(10))
    alpha = brentq(lambda a: rho(a) - target, 0.2 - 1e-9, 10 + 1e-9, xtol=1e-13)
    scale = np.sqrt(gamma(1 / alpha) / gamma(3 / alpha))
    return alpha, left * scale, right * scale


def numpy_block_features(block):
    alpha, left, right = numpy_aggd(block.ravel())
    features = [alpha, (left + right) / 2]
    for shift in ((0, 1), (1, 0), (1, 1), (1, -1)):
        alpha, left, right = numpy_aggd((block * np.roll(block, shift, axis=(0, 1))).ravel())
        features += [alpha, (right - left) * gamma(2 / alpha) / gamma(1 / alpha), left, right]
    return features


def numpy_halve(image, downscale):
    if downscale == "mean":
        return image.reshape(image.shape[0] // 2, 2, image.shape[1] // 2, 2).mean((1, 3))

    def cubic(x):
        x = abs(x)
        if x <= 1:
            return 1.5 * x**3 - 2.5 * x**2 + 1
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0

    for axis in (0, 1):
        image = np.moveaxis(image, axis, 0)
        padded = np.pad(image, ((6, 6), (0, 0)), mode="symmetric")
        weights = [cubic((position - 0.5) / 2) / 2 for position in range(-4, 6)]
        halved = [
            sum(weight * padded[6 + 2 * row - 4 + k] for k, weight in enumerate(weights))
            for row in range(len(image) // 2)
        ]
        image = np.moveaxis(np.array(halved), 0, axis)
    return image


def numpy_features(image, config):
    """One grey image -> (blocks, 36); a direct transcription of the MATLAB release with an exact alpha."""
    radius = np.arange(config.window) - config.window // 2
    window = np.exp(-(radius[:, None] ** 2 + radius[None] ** 2) / (2 * config.sigma**2))
    window /= window.sum()
    scales, block = [], config.block
    for scale in range(config.scales):
        if scale:
            image, block = numpy_halve(image, config.downscale), block and block // 2
        mean = convolve(image, window, mode="nearest")
        variance = np.abs(convolve(image**2, window, mode="nearest") - mean**2)
        normalised = (image - mean) / ((np.sqrt(variance) if config.divisor == "std" else variance) + config.constant)
        height, width = (block, block) if block else image.shape
        rows = range(0, image.shape[0] - height + 1, height)
        columns = range(0, image.shape[1] - width + 1, width)
        scales.append(
            [numpy_block_features(normalised[row : row + height, col : col + width]) for row in rows for col in columns]
        )
    return np.concatenate(scales, axis=1)


def texture(count, height, width, *, seed=0, scale=1.0):
    """Smooth plus noise, so that signs and signals differ between orientations."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 1, height // 4 + 1, width // 4 + 1, generator=generator, dtype=torch.float64)
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    return scale * (3 * smooth + torch.randn(count, 1, height, width, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_features_equal_the_numpy_port(config):
    images = texture(2, 64, 96, scale=4.0)
    expected = np.stack([numpy_features(image[0].numpy(), config) for image in images])
    np.testing.assert_allclose(niqe_features(images, config).numpy(), expected, rtol=1e-6, atol=1e-9)


def test_float32_follows_float64_at_photographic_levels():
    images = 150 + texture(2, 192, 96, scale=10.0)
    config = FeatureConfig.niqe()
    exact, single = niqe_features(images, config), niqe_features(images.float(), config)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, rtol=2e-3, atol=2e-4)


def test_alpha_step_is_the_grid_of_the_release():
    images = texture(1, 96, 96, scale=10.0)
    exact = niqe_features(images, FeatureConfig(block=96, downscale="imresize"))
    grid = niqe_features(images, FeatureConfig.niqe())
    alphas = [0, *range(2, 18, 4), 18, *range(20, 36, 4)]
    torch.testing.assert_close(grid[..., alphas], (exact[..., alphas] * 1000).round() / 1000)


def test_orientation_order_is_horizontal_vertical_diagonals():
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(1, 1, 64, 1, generator=generator).expand(1, 1, 64, 64) + 0.05 * torch.randn(
        1, 1, 64, 64, generator=generator
    )
    along_rows, along_columns = niqe_features(rows)[0, 0], niqe_features(rows.mT.contiguous())[0, 0]
    assert along_rows[3] > 2 * along_rows[7].abs(), "constant rows: horizontal neighbours agree"
    assert along_columns[7] > 2 * along_columns[3].abs(), "constant columns: vertical neighbours agree"
    # Turning the image exchanges the first two orientations and leaves the diagonal pair.
    torch.testing.assert_close(along_rows[2:6], along_columns[6:10], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(along_rows[10:14], along_columns[10:14], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("left", "right", "alpha"), [(1.0, 1.0, 2.0), (0.5, 2.0, 1.0), (3.0, 1.0, 0.5), (1.0, 1.5, 4.0)]
)
def test_aggd_recovers_the_parameters_of_samples(left, right, alpha):
    rng = np.random.default_rng(0)
    magnitudes = np.abs(gennorm.rvs(alpha, size=200_000, random_state=rng))
    is_left = rng.random(200_000) < left / (left + right)  # the sides' masses are proportional to their scales
    samples = torch.from_numpy(np.where(is_left, -left * magnitudes, right * magnitudes))
    estimate = aggd(samples)
    assert estimate.alpha.item() == pytest.approx(alpha, rel=0.05)
    assert estimate.left.item() == pytest.approx(left, rel=0.06)
    assert estimate.right.item() == pytest.approx(right, rel=0.06)
    # eta = (right - left) Gamma(2/alpha) / Gamma(1/alpha) is the mean of the density.
    assert estimate.mean.item() == pytest.approx(samples.mean().item(), abs=0.05 * (left + right))


def test_shape_inverts_rho_and_has_its_slope():
    alphas = torch.tensor([0.2001, 0.25, 0.5, 1.0, 2.0, 3.3, 6.0, 9.99], dtype=torch.float64)
    ratios = torch.from_numpy(rho(alphas.numpy()))
    found, slopes = shape_from_ratio(ratios)
    torch.testing.assert_close(found, alphas, rtol=1e-9, atol=0)
    step = 1e-5
    differences = (rho(alphas.numpy() + step) - rho(alphas.numpy() - step)) / (2 * step)
    torch.testing.assert_close(slopes, torch.from_numpy(1 / differences), rtol=1e-4, atol=0)
    limited = shape_from_ratio(ratios, max_slope=5.0)[1]
    torch.testing.assert_close(limited, slopes.clamp(max=5.0))
    assert slopes[3].item() == pytest.approx(4.0, rel=1e-3)  # rho'(1) = 1/4
    clamped, flat = shape_from_ratio(torch.tensor([0.01, 0.9]))
    torch.testing.assert_close(clamped, torch.tensor([0.2, 10.0]))
    assert (flat == 0).all()


def test_aggd_gradient_is_exact_and_an_empty_side_is_finite():
    values = torch.randn(3, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    torch.autograd.gradcheck(lambda v: torch.stack(aggd(v)), (values,), eps=1e-7, atol=1e-5)
    one_sided = torch.tensor([[0.0, 1.0, 2.0], [0.0, -1.0, -2.0], [0.0, 0.0, 0.0]], requires_grad=True)
    estimate = aggd(one_sided)
    torch.testing.assert_close(estimate.left, estimate.right)
    torch.testing.assert_close(estimate.left[0], estimate.left[1])
    assert (estimate.alpha[2].item(), estimate.left[2].item()) == (10.0, 0.0)
    torch.stack(estimate).sum().backward()
    assert one_sided.grad is not None
    assert one_sided.grad.isfinite().all()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@pytest.mark.parametrize("features", [slice(None), [0, 2, 6, 10, 14, 18, 20]], ids=["all", "alphas"])
def test_gradient_equals_finite_differences(config, features):
    images = texture(2, 36, 64, seed=3, scale=2.0).requires_grad_()
    generator = torch.Generator().manual_seed(4)
    weights = torch.randn(niqe_features(images, config)[..., features].shape, dtype=torch.float64, generator=generator)

    def value(batch):
        return (niqe_features(batch, config)[..., features] * weights).sum()

    (gradient,) = torch.autograd.grad(value(images), images)
    for _ in range(3):
        direction = torch.randn(images.shape, dtype=torch.float64, generator=generator)
        step = 1e-6 * direction  # larger steps meet the features' jumps
        with torch.no_grad():
            numeric = (value(images + step) - value(images - step)) / 2e-6
        assert (gradient * direction).sum().item() == pytest.approx(numeric.item(), rel=1e-5, abs=1e-6)


def test_max_slope_changes_gradients_but_not_values():
    maps = texture(4, 16, 16).requires_grad_()
    plain, limited = niqe_features(maps), niqe_features(maps, max_slope=1.0)
    assert torch.equal(plain, limited)
    gradients = [torch.autograd.grad(features.sum(), maps)[0] for features in (plain, limited)]
    assert gradients[1].norm() < gradients[0].norm()


@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("function", [niqe_features, aggd])
def test_second_backward_is_refused(function, linear):
    maps = texture(1, 16, 16).requires_grad_()
    values = function(maps)
    values = torch.stack(values) if isinstance(values, tuple) else values
    loss = values.sum() if linear else values.square().sum()
    (gradient,) = torch.autograd.grad(loss, maps, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        gradient.square().sum().backward()


@pytest.mark.parametrize(("window", "sigma"), [(3, 0.5), (7, 7 / 6), (41, 6.0)])
def test_small_and_large_maps_are_blurred_alike(window, sigma, monkeypatch):
    """Matrix products up to a side, shifted sums above it: the same filter, also where the window is the larger."""
    config = FeatureConfig(window=window, sigma=sigma)
    maps = texture(2, 16, 24).requires_grad_()
    results = []
    for limit in (0, 32):
        monkeypatch.setattr(mscn, "_SMALL", limit)
        features = niqe_features(maps, config)
        results.append((features.detach(), *torch.autograd.grad(features.sin().sum(), maps)))
    for shifted, product in zip(*results, strict=True):
        torch.testing.assert_close(product, shifted, rtol=1e-9, atol=1e-11)


def test_the_backward_pass_is_float32_under_autocast():
    maps = texture(2, 16, 16).float().requires_grad_()
    (expected,) = torch.autograd.grad(niqe_features(maps).sum(), maps)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (gradient,) = torch.autograd.grad(niqe_features(maps).sum(), maps)
    torch.testing.assert_close(gradient, expected)


def test_an_empty_side_has_the_gradient_of_the_other():
    """Without a negative value both deviations are the right one's: finite differences in the positive values agree."""
    values = torch.rand(4, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) ** 2 + 0.01
    signs = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]], dtype=torch.float64)
    torch.autograd.gradcheck(lambda v: torch.stack(aggd(v)), ((signs * values).requires_grad_(),), eps=1e-7, atol=1e-5)


def degenerate():
    checker = ((torch.arange(32)[:, None] + torch.arange(32)) % 2).float()
    impulse = torch.zeros(32, 32)
    impulse[16, 16] = 1
    half = torch.zeros(32, 32)
    half[:, 16:] = 1
    return {
        "black": torch.zeros(32, 32),
        "white": torch.ones(32, 32),
        "grey": torch.full((32, 32), 0.7),
        "checkerboard": checker,
        "impulse": impulse,
        "half": half,
        "ramp": torch.linspace(0, 1, 32).expand(32, 32).contiguous(),
        "saturated": (3 * torch.randn(32, 32, generator=torch.Generator().manual_seed(0))).clamp(0, 1),
        "faint": 0.5 + 1e-7 * torch.randn(32, 32, generator=torch.Generator().manual_seed(0)),
    }


@pytest.mark.parametrize("scale", [1e-20, 1e-6, 1.0, 255.0, 1e6])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_degenerate_images_are_finite_in_value_and_gradient(config, scale):
    for name, image in degenerate().items():
        images = (scale * image)[None, None].clone().requires_grad_()
        features = niqe_features(images, config)
        (gradient,) = torch.autograd.grad(features.sum(), images)
        assert features.isfinite().all(), name
        assert gradient.isfinite().all(), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("level", [0.0, 0.1, 200.3, 255.0, -77.7])
def test_flat_images_give_invalid_rows_without_gradient(level, dtype):
    images = torch.full((1, 1, 96, 96), level, dtype=dtype, requires_grad=True)
    features = niqe_features(images, FeatureConfig.niqe())
    assert not valid_rows(features).any()
    expected = torch.zeros(18, dtype=dtype)
    expected[[0, 2, 6, 10, 14]] = 10.0
    torch.testing.assert_close(features[0, 0], expected.repeat(2))
    (gradient,) = torch.autograd.grad(features.sum(), images)
    assert (gradient == 0).all()


def test_images_do_not_influence_each_other():
    images = torch.cat([texture(5, 64, 64, scale=20.0), torch.zeros(1, 1, 64, 64), 1e4 * texture(1, 64, 64)]).float()
    config = FeatureConfig(block=32, downscale="imresize")
    together = niqe_features(images, config)
    alone = torch.cat([niqe_features(image[None], config) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    order = torch.tensor([3, 6, 0, 5, 1, 4, 2])
    torch.testing.assert_close(niqe_features(images[order], config), together[order], rtol=1e-5, atol=1e-6)
    broken = images.clone()
    broken[5] = float("nan")
    torch.testing.assert_close(niqe_features(broken, config)[:5], together[:5], rtol=1e-5, atol=1e-6)


def test_crop_block_order_and_sharpness():
    config = FeatureConfig(block=32, downscale="imresize")
    images = texture(1, 70, 101, scale=20.0)
    assert torch.equal(niqe_features(images, config), niqe_features(images[..., :64, :96], config))
    images[..., :32, 32:64] *= 3  # second block of the first row
    sharpness = block_sharpness(images, config)
    assert sharpness.shape == (1, 6)
    assert sharpness.argmax() == 1
    assert niqe_features(images, config)[0, :, 1].argmax() == 1


def test_autocast_and_half_precision_inputs_are_computed_in_float32():
    images = texture(2, 32, 32).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = niqe_features(images)
    assert torch.equal(features, niqe_features(images))
    assert torch.equal(niqe_features(images.bfloat16()), niqe_features(images.bfloat16().float()))


def test_imresize_keeps_constants_and_has_the_right_adjoint():
    images = texture(2, 18, 32)[:, 0].requires_grad_()
    torch.testing.assert_close(halve(torch.ones(1, 16, 16), antialias=True), torch.ones(1, 8, 8))
    expected = numpy_halve(images[1].detach().numpy(), "imresize")
    torch.testing.assert_close(halve(images, antialias=True)[1].detach(), torch.from_numpy(expected))
    torch.autograd.gradcheck(lambda x: halve(x, antialias=True), (images,))


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.rand(1, 3, 32, 32), ValueError, "grey"),
        (torch.rand(32, 32), ValueError, "shape"),
        (torch.rand(1, 1, 15, 64), ValueError, "15 x 64.*at least 16"),
        (torch.zeros(1, 1, 32, 32, dtype=torch.uint8), TypeError, "floating"),
        (np.zeros((1, 1, 32, 32)), TypeError, "Tensor"),
    ],
)
def test_bad_images_are_refused(images, error, message):
    with pytest.raises(error, match=message):
        niqe_features(images)


def test_images_below_a_block_are_refused():
    with pytest.raises(ValueError, match=r"64 x 200.*block=96.*at least 96"):
        niqe_features(torch.rand(1, 1, 64, 200), FeatureConfig.niqe())


@pytest.mark.parametrize(
    "options",
    [
        {"window": 4}, {"window": 7.0}, {"window": True}, {"sigma": 0}, {"sigma": float("nan")}, {"constant": -1},
        {"constant": "1"}, {"divisor": "sd"}, {"downscale": "bicubic"}, {"scales": 0}, {"block": 97}, {"block": 8},
        {"alpha_step": -1},
    ],
)  # fmt: skip
def test_bad_configurations_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        FeatureConfig(**options)


def test_configurations_compare_and_travel_as_dictionaries():
    config = FeatureConfig.qagan()
    assert (config.window, config.sigma, config.divisor, config.constant) == (3, 0.5, "var", 1.0)
    assert FeatureConfig.from_dict(config.to_dict()) == config != FeatureConfig()
    with pytest.raises(ValueError, match="taps"):
        FeatureConfig.from_dict({"taps": 3})


def model(rows=2000, seed=0):
    features = niqe_features(texture(rows // 4, 64, 64, seed=seed), CONFIGS["blocks"]).flatten(0, 1)
    return features.mean(0), features.t().cov()


def test_distance_equals_numpy_and_shrinks():
    mean, covariance = model()
    rows = niqe_features(texture(12, 64, 64, seed=5, scale=1.5), CONFIGS["blocks"]).flatten(0, 1)
    own = np.cov(rows.numpy(), rowvar=False)
    own = 0.9 * own + 0.1 * np.diag(np.diag(own))
    matrix = (covariance.numpy() + own) / 2
    matrix += 1e-6 * np.trace(matrix) / 36 * np.eye(36)
    offset = rows.numpy().mean(0) - mean.numpy()
    expected = np.sqrt(offset @ np.linalg.solve(matrix, offset))
    assert naturalness_distance(rows, mean, covariance).item() == pytest.approx(expected, rel=1e-8)
    half = naturalness_distance(rows[:36], mean, covariance)
    torch.testing.assert_close(half, naturalness_distance(rows[:36], mean, covariance, shrink=0.5))
    ridge = covariance + 1e-6 * covariance.trace() / 36 * torch.eye(36, dtype=torch.float64)
    offsets = rows - mean
    sample = (offsets * torch.linalg.solve(ridge, offsets.t()).t()).sum(1).sqrt().mean()
    torch.testing.assert_close(naturalness_distance(rows, mean, covariance, variant="sample"), sample)


@pytest.mark.parametrize("variant", ["mvg", "sample"])
def test_distance_gradient_through_the_features(variant):
    mean, covariance = model()
    maps = texture(3, 64, 64, seed=6, scale=1.5).requires_grad_()

    def value(batch):
        return naturalness_distance(niqe_features(batch, CONFIGS["blocks"]), mean, covariance, variant=variant)

    (gradient,) = torch.autograd.grad(value(maps), maps)
    direction = torch.randn(maps.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        numeric = (value(maps + 1e-6 * direction) - value(maps - 1e-6 * direction)) / 2e-6
    assert (gradient * direction).sum().item() == pytest.approx(numeric.item(), rel=1e-4)


def test_moments_add_up_over_processes_and_flat_maps_do_not_count():
    mean, covariance = model()
    rows = niqe_features(texture(20, 64, 64, seed=7), CONFIGS["blocks"]).flatten(0, 1)
    flat = niqe_features(torch.zeros(1, 1, 64, 64, dtype=torch.float64), CONFIGS["blocks"])[0]
    sums = [
        sum(parts) for parts in zip(feature_moments(rows[:30], mean), feature_moments(rows[30:], mean), strict=True)
    ]
    together = naturalness_distance_from_moments(*sums, covariance)
    torch.testing.assert_close(together, naturalness_distance(rows, mean, covariance))
    for variant in ("mvg", "sample"):
        with_flat = naturalness_distance(torch.cat([flat, rows]), mean, covariance, variant=variant)
        torch.testing.assert_close(with_flat, naturalness_distance(rows, mean, covariance, variant=variant))
        only_flat = naturalness_distance(flat.requires_grad_(), mean, covariance, variant=variant)
        assert only_flat.item() == pytest.approx(1e-6)
        (gradient,) = torch.autograd.grad(only_flat, flat)
        assert (gradient == 0).all()


def test_image_scores_match_numpy_and_survive_flat_blocks_and_singular_models():
    mean, covariance = model()
    features = niqe_features(texture(3, 128, 96, seed=8), CONFIGS["blocks"])
    expected = []
    for rows in features.numpy():
        offset = rows.mean(0) - mean.numpy()
        expected.append(
            np.sqrt(offset @ np.linalg.pinv((covariance.numpy() + np.cov(rows, rowvar=False)) / 2) @ offset)
        )
    np.testing.assert_allclose(image_naturalness(features, mean, covariance).numpy(), expected, rtol=1e-8)
    padded = torch.cat([features, features.new_zeros(3, 2, 36)], 1)
    torch.testing.assert_close(
        image_naturalness(padded, mean, covariance), image_naturalness(features, mean, covariance)
    )
    assert image_naturalness(features.new_zeros(1, 4, 36), mean, covariance).isfinite().all()
    singular = covariance.clone()
    singular[-1] = singular[:, -1] = 0
    one_block = features[:, :1].clone().requires_grad_()
    scores = image_naturalness(one_block, mean, singular)
    (gradient,) = torch.autograd.grad(scores.sum(), one_block)
    assert scores.isfinite().all()
    assert gradient.isfinite().all()
    broken = features.clone()
    broken[1] = float("nan")
    assert image_naturalness(broken, mean, singular).isfinite().tolist() == [True, False, True]


def test_distance_refuses_models_that_do_not_fit():
    with pytest.raises(ValueError, match="do not fit"):
        naturalness_distance(torch.rand(4, 18), torch.zeros(36), torch.eye(36))
    with pytest.raises(ValueError, match="variant"):
        naturalness_distance(torch.rand(4, 36), torch.zeros(36), torch.eye(36), variant="mean")

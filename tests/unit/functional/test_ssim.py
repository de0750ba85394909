"""SSIM, MS-SSIM and d_Q against scikit-image, SciPy and naive float64 versions written from the papers' formulas."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d
from skimage.metrics import structural_similarity
from torch import Tensor

from qa_hooks.functional.filters import full_precision, gaussian_blur, gaussian_filter
from qa_hooks.functional.multiscale_similarity import ms_ssim
from qa_hooks.functional.structural_similarity import ssim, ssim_distance
from qa_hooks.losses import SSIMLoss
from qa_hooks.scorers import create_scorer

Metric = Callable[..., Tensor]
METRICS: list[Metric] = [ssim, ms_ssim, ssim_distance]
GREY = np.array([0.298936021293775, 0.587043074451121, 0.114020904255103])


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="images of .* have room for")
        yield


def pair(*shape: int, noise: float = 0.2, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Smooth structure and a noisy copy of it, in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(*shape[:2], -(-shape[2] // 4), -(-shape[3] // 4), generator=generator, dtype=torch.float64)
    x = coarse.repeat_interleave(4, 2).repeat_interleave(4, 3)[..., : shape[2], : shape[3]]
    y = x + noise * torch.randn(shape, generator=generator, dtype=torch.float64)
    return x.to(dtype), y.clamp(0, 1).to(dtype)


# Oracles: straight from the formulas, in float64, one window at a time or by SciPy's filters.


def window(offsets: range, sigma: float = 1.5) -> np.ndarray[Any, Any]:
    taps = np.exp(-(np.array(offsets) ** 2) / (2 * sigma**2))
    weights: np.ndarray[Any, Any] = np.outer(taps, taps) / taps.sum() ** 2
    return weights


def terms(
    x: np.ndarray[Any, Any], y: np.ndarray[Any, Any], w: np.ndarray[Any, Any], width: float = 1.0, delta: float = 0.0
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """S1 and S2 of two grey images (H, W) at each position where the window fits, with explicit loops."""
    c1, c2 = (0.01 * width) ** 2, (0.03 * width) ** 2
    size = len(w)
    shape = (x.shape[0] - size + 1, x.shape[1] - size + 1)
    s1, s2 = np.empty(shape), np.empty(shape)
    for i in range(shape[0]):
        for j in range(shape[1]):
            a, b = x[i : i + size, j : j + size], y[i : i + size, j : j + size]
            m1, m2 = (w * a).sum(), (w * b).sum()
            v1, v2 = (w * a * a).sum() - m1**2, (w * b * b).sum() - m2**2
            v12 = (w * a * b).sum() - m1 * m2
            s1[i, j] = (2 * m1 * m2 + c1) / (m1**2 + m2**2 + c1)
            s2[i, j] = (2 * v12 + c2) / (v1 + v2 + c2 + delta)
    return s1, s2


def naive_distance(x: Tensor, y: Tensor, variant: str) -> list[float]:
    results = []
    for a, b in zip(x.double().numpy(), y.double().numpy(), strict=True):
        a, b = (np.tensordot(GREY, im, 1) if len(im) == 3 else im[0] for im in (a, b))
        if variant == "metric":
            size = min(11, *a.shape)
            radius = (size - 1 if size % 2 == 0 else size) // 2
            w = window(range(-radius, radius + 1))
            s1, s2 = terms(np.pad(a, radius, mode="reflect"), np.pad(b, radius, mode="reflect"), w)
        else:
            s1, s2 = terms(np.pad(2 * a - 1, (3, 4)), np.pad(2 * b - 1, (3, 4)), window(range(-3, 5)), 2.0, 0.01)
        results.append(np.sqrt(np.maximum(2 - s1 - s2, 0)).mean())
    return results


def autograd_ssim(x: Tensor, y: Tensor) -> Tensor:
    """SSIM by its textbook formula with a two-dimensional window, differentiated by autograd."""
    channels = x.shape[1]
    w = torch.from_numpy(window(range(-5, 6))).expand(channels, 1, 11, 11)

    def blur(z: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(z, w, groups=channels)

    m1, m2 = blur(x), blur(y)
    v1, v2, v12 = blur(x * x) - m1**2, blur(y * y) - m2**2, blur(x * y) - m1 * m2
    s1 = (2 * m1 * m2 + 1e-4) / (m1**2 + m2**2 + 1e-4)
    return (s1 * (2 * v12 + 9e-4) / (v1 + v2 + 9e-4)).mean((1, 2, 3))


def naive_ms_ssim(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any], levels: int) -> float:
    """One grey pair with SciPy's filters; even sides only. Terms below 0.05 are continued as the docstring says."""
    weights = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])[:levels]
    taps = np.exp(-(np.arange(-5, 6) ** 2) / 4.5)
    taps /= taps.sum()

    def blur(z: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        blurred: np.ndarray[Any, Any] = correlate1d(correlate1d(z, taps, 0), taps, 1)[5:-5, 5:-5]
        return blurred

    result = 1.0
    if levels < 5:  # the published five add up to 1.0001, and are taken as they are
        weights = weights / weights.sum()
    for level, weight in enumerate(weights):
        m1, m2 = blur(x), blur(y)
        v1, v2, v12 = blur(x * x) - m1**2, blur(y * y) - m2**2, blur(x * y) - m1 * m2
        value = (2 * v12 + 9e-4) / (v1 + v2 + 9e-4)
        if level == levels - 1:
            value = value * (2 * m1 * m2 + 1e-4) / (m1**2 + m2**2 + 1e-4)
        mean = value.mean()
        result *= (mean if mean >= 0.05 else 0.05 * np.exp((mean - 0.05) / 0.05)) ** weight
        if level < levels - 1:
            x, y = (z.reshape(z.shape[0] // 2, 2, z.shape[1] // 2, 2).mean((1, 3)) for z in (x, y))
    return float(result)


# Values


@pytest.mark.parametrize("shape", [(2, 3, 47, 60), (1, 1, 150, 130), (3, 3, 11, 11)])
def test_ssim_equals_scikit_image(shape: tuple[int, ...]) -> None:
    x, y = pair(*shape)
    for index, value in enumerate(ssim(x, y).tolist()):
        a, b = x[index].double().numpy(), y[index].double().numpy()
        if min(shape[2:]) == 11:  # scikit-image needs room for its border
            a, b = (np.pad(im, ((0, 0), (5, 5), (5, 5))) for im in (a, b))
        _, full = structural_similarity(  # type: ignore[no-untyped-call, unused-ignore]
            a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1, channel_axis=0, full=True
        )
        crop = 10 if min(shape[2:]) == 11 else 5
        assert value == pytest.approx(full[:, crop:-crop, crop:-crop].mean(), abs=1e-5)


@pytest.mark.parametrize(("side", "size"), [(8, 7), (5, 5), (2, 1), (1, 1)])
def test_ssim_of_small_images_takes_the_largest_window_that_fits(side: int, size: int) -> None:
    x, y = pair(1, 1, side, 20)
    s1, s2 = terms(x[0, 0].double().numpy(), y[0, 0].double().numpy(), window(range(-(size // 2), size // 2 + 1)))
    assert ssim(x, y).item() == pytest.approx((s1 * s2).mean(), abs=1e-5)


@pytest.mark.parametrize("shape", [(2, 1, 176, 192), (1, 3, 352, 176), (1, 1, 32, 32), (1, 1, 64, 96)])
def test_ms_ssim_equals_a_naive_version(shape: tuple[int, ...]) -> None:
    x, y = (images.double() for images in pair(*shape))
    levels = {176: 5, 352: 5, 32: 2, 64: 3}[shape[2]]
    for index, value in enumerate(ms_ssim(x, y).tolist()):
        channels = zip(x[index].numpy(), y[index].numpy(), strict=True)
        expected = np.mean([naive_ms_ssim(a, b, levels) for a, b in channels])
        assert value == pytest.approx(expected, abs=1e-9)
        assert ms_ssim(x.float(), y.float())[index].item() == pytest.approx(expected, abs=1e-5)


def test_ms_ssim_of_an_anticorrelated_pair_is_positive_and_has_a_gradient() -> None:
    x = pair(1, 1, 176, 176)[0].requires_grad_()
    y = 1 - x.detach()
    value = ms_ssim(x, y)
    naive = naive_ms_ssim(x.detach()[0, 0].double().numpy(), y[0, 0].double().numpy(), 5)
    assert value.item() == pytest.approx(naive, rel=1e-3)
    (gradient,) = torch.autograd.grad(value.log().sum(), x)  # the log: the value itself is below 1e-6
    assert torch.isfinite(gradient).all()
    assert ms_ssim(x + 1e-3 * gradient / gradient.abs().max(), y).item() > value.item() > 0


def test_ms_ssim_says_once_that_levels_are_missing() -> None:
    x, y = pair(1, 1, 36, 33)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ms_ssim(x, y)
        ms_ssim(x, y)
    assert [str(entry.message) for entry in caught if "have room for 2 of the 5 levels" in str(entry.message)] != []
    assert len(caught) == 1


def test_ssim_says_once_that_its_window_is_smaller() -> None:
    x, y = pair(1, 1, 10, 37)
    scorer, loss = create_scorer("ssim"), SSIMLoss()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for measure in (ssim, loss, scorer):
            measure(x, y)
    assert [str(entry.message)[:61] for entry in caught] == [
        "images of 10x37 have room for 9 of the 11 pixels of SSIM's win"[:61]
    ]
    assert caught[0].filename == __file__


@pytest.mark.parametrize("variant", ["metric", "official"])
@pytest.mark.parametrize("shape", [(2, 3, 20, 17), (1, 1, 6, 12), (1, 1, 1, 1), (1, 1, 3, 2), (1, 1, 70, 66)])
def test_distance_equals_a_loop(variant: str, shape: tuple[int, ...]) -> None:
    x, y = pair(*shape)
    value = ssim_distance(x, y, variant=variant)  # type: ignore[arg-type]
    assert value.tolist() == pytest.approx(naive_distance(x, y, variant), abs=1e-5)
    value = ssim_distance(x.double(), y.double(), variant=variant)  # type: ignore[arg-type]
    assert value.tolist() == pytest.approx(naive_distance(x, y, variant), abs=1e-6)


def test_distance_is_zero_between_equal_images_and_symmetric() -> None:
    x, y = pair(2, 3, 32, 32)
    assert ssim_distance(x, x).max() < 1e-5
    assert ssim_distance(x, y).tolist() == pytest.approx(ssim_distance(y, x).tolist(), abs=1e-6)


def test_distance_obeys_the_triangle_inequality_at_every_position() -> None:
    x, y, z = torch.rand(3, 2000, 1, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 1.5
    assert (ssim_distance(x, z) <= ssim_distance(x, y) + ssim_distance(y, z) + 3e-6).all()  # one position: luminance
    x, y, z = torch.rand(3, 500, 1, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert (ssim_distance(x, z) <= ssim_distance(x, y) + ssim_distance(y, z) + 3e-6).all()  # and so the mean


def test_distance_between_constants_is_the_luminance_term() -> None:
    a, b = 0.3, 0.8
    x = torch.full((1, 1, 32, 32), a)
    expected = np.sqrt(1 - (2 * a * b + 1e-4) / (a * a + b * b + 1e-4))
    assert ssim_distance(x, torch.full_like(x, b)).item() == pytest.approx(expected, abs=1e-6)


def test_official_distance_has_its_floor_on_flat_images() -> None:
    grey = torch.full((1, 1, 64, 64), 0.5)  # 0 in [-1, 1], so that the padding does not show
    assert ssim_distance(grey, grey, variant="official").item() == pytest.approx(0.8575, abs=1e-4)


@pytest.mark.parametrize("metric", METRICS)
def test_symmetric_and_independent_of_the_range(metric: Metric) -> None:
    x, y = pair(2, 3, 45, 50)
    expected = metric(x, y).tolist()
    assert metric(y, x).tolist() == pytest.approx(expected, abs=1e-6)
    assert metric(2 * x - 1, 2 * y - 1, value_range=(-1, 1)).tolist() == pytest.approx(expected, abs=2e-6)
    assert metric(255 * x, 255 * y, value_range=(0, 255)).tolist() == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_each_image_is_on_its_own_whatever_the_chunks(metric: Metric) -> None:
    x, y = pair(5, 2, 240, 200) if metric is not ssim_distance else pair(5, 3, 100, 80)
    singly = torch.cat([metric(x[i : i + 1], y[i : i + 1]) for i in range(5)])
    assert metric(x, y).tolist() == pytest.approx(singly.tolist(), abs=1e-6)
    strided = x.to(memory_format=torch.channels_last)
    assert metric(strided, y).tolist() == pytest.approx(singly.tolist(), abs=1e-6)


def test_bright_flat_images_keep_their_digits() -> None:
    x, y = pair(1, 3, 64, 64)
    x, y = 0.97 + 0.004 * x, 0.97 + 0.004 * y
    for metric in METRICS:
        assert metric(x, y).item() == pytest.approx(metric(x.double(), y.double()).item(), abs=2e-6)
    assert ssim(x, y).item() == pytest.approx(autograd_ssim(x.double(), y.double()).item(), abs=1e-6)


# Gradients


def test_gradient_equals_that_of_the_textbook_formula() -> None:
    x, y = pair(3, 3, 150, 141)
    weights = torch.tensor([1.0, -2.0, 0.5])
    leaves = [image.clone().requires_grad_() for image in (x, y)]
    (ssim(*leaves) * weights).sum().backward()
    exact = [image.double().requires_grad_() for image in (x, y)]
    (autograd_ssim(*exact) * weights.double()).sum().backward()
    for leaf, reference in zip(leaves, exact, strict=True):
        assert leaf.grad is not None
        assert reference.grad is not None
        assert (leaf.grad - reference.grad).abs().max() < 1e-5 * reference.grad.abs().max()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("value_range", [(0.0, 1.0), (-1.0, 1.0)])
def test_gradcheck(metric: Metric, value_range: tuple[float, float]) -> None:
    x, y = pair(2, 1, 8, 7, dtype=torch.float64)
    window = {} if metric is ssim_distance else {"window_size": 3}  # so that there are positions to average

    def check(needs: tuple[bool, bool], **options: bool) -> None:
        a, b = (image.clone().requires_grad_(need) for image, need in zip((x, y), needs, strict=True))
        assert torch.autograd.gradcheck(lambda *z: metric(*z, value_range=value_range, **window, **options), (a, b))

    for needs in ((True, False), (False, True), (True, True)):
        check(needs)
    if metric is not ssim_distance:
        check((True, True), second_order=True)


def test_official_gradcheck() -> None:
    x, y = (image.requires_grad_() for image in pair(1, 3, 7, 6, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda *z: ssim_distance(*z, variant="official"), (x, y))


@pytest.mark.parametrize("metric", [ssim, ms_ssim])
def test_second_order(metric: Metric) -> None:
    x, y = (image.requires_grad_() for image in pair(1, 1, 6, 7, dtype=torch.float64))
    assert torch.autograd.gradgradcheck(lambda *z: metric(*z, window_size=5, second_order=True), (x, y))
    assert metric(x, y, second_order=True).item() == pytest.approx(metric(x, y).item(), abs=1e-12)
    for needs in ((x, y), (x, y.detach())):
        (gradient,) = torch.autograd.grad(metric(*needs).sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="second_order=True"):
            gradient.square().sum().backward()


def test_create_graph_alone_is_no_error() -> None:
    x, y = pair(1, 1, 16, 16)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad((ssim(x, y) ** 2).sum(), x, create_graph=True)
    expected = torch.autograd.grad((ssim(x, y) ** 2).sum(), x)[0]
    assert torch.equal(gradient, expected)


def test_no_adjoint_without_need(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the adjoint was computed")

    monkeypatch.setattr("qa_hooks.functional._ssim_fast._adjoint", refuse)
    x, y = pair(1, 1, 16, 16)
    ssim(x, y)
    with torch.no_grad():
        ssim(x.requires_grad_(), y)
    with pytest.raises(AssertionError, match="adjoint"):
        ssim(x, y)


# Precision, edge cases, errors


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_exact_under_autocast_and_with_half_precision_images(metric: Metric, dtype: torch.dtype) -> None:
    x, y = pair(2, 3, 48, 48, noise=0.02)
    exact = x.clone().requires_grad_()
    expected = metric(exact, y)
    expected.sum().backward()
    assert exact.grad is not None
    leaf = x.clone().requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        value = metric(leaf, y)
        value.sum().backward()
    assert leaf.grad is not None
    assert value.dtype == torch.float32
    assert torch.equal(value, expected)
    assert torch.equal(leaf.grad, exact.grad)

    half_x, half_y = x.to(dtype).requires_grad_(), y.to(dtype)
    reference = half_x.detach().float().requires_grad_()
    value, expected = metric(half_x, half_y), metric(reference, half_y.float())
    value.sum().backward()
    expected.sum().backward()
    assert half_x.grad is not None
    assert reference.grad is not None
    assert value.dtype == torch.float32
    assert half_x.grad.dtype == dtype
    assert torch.equal(value, expected)
    assert torch.allclose(half_x.grad.float(), reference.grad, rtol=0.01, atol=1e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_chosen_product_precision_is_ignored_and_restored(metric: Metric) -> None:
    x, y = pair(1, 3, 96, 96)
    expected = metric(x, y)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert torch.equal(metric(x, y), expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_products_are_float32_inside_whatever_the_run_has_chosen() -> None:
    """A CPU without bfloat16 products would give the right numbers anyway."""

    def products() -> str:
        if hasattr(torch.backends.mkldnn, "matmul"):
            return str(torch.backends.mkldnn.matmul.fp32_precision)
        return torch.get_float32_matmul_precision()

    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        chosen = products()
        with full_precision(torch.device("cpu")):
            assert products() in ("ieee", "highest")
        assert products() == chosen != "ieee"
    finally:
        torch.set_float32_matmul_precision(before)


EDGE_SHAPES = [(1, 3, 1, 1), (2, 1, 2, 3), (2, 3, 9, 40), (2, 3, 40, 33)]
EDGE_PAIRS: dict[str, Callable[[tuple[int, ...]], tuple[Tensor, Tensor]]] = {
    "constant": lambda shape: (torch.full(shape, 0.5), torch.full(shape, 0.25)),
    "black": lambda shape: (torch.zeros(shape), torch.zeros(shape)),
    "saturated": lambda shape: (torch.ones(shape), torch.ones(shape)),
    "opposite": lambda shape: (torch.zeros(shape), torch.ones(shape)),
    "identical": lambda shape: (pair(*shape)[0], pair(*shape)[0]),
    "negative": lambda shape: (pair(*shape)[0], 1 - pair(*shape)[0]),
    "random": lambda shape: (torch.rand(shape), torch.rand(shape)),
    "overshoot": lambda shape: (3 * torch.rand(shape) - 1, torch.rand(shape)),
}


@pytest.mark.parametrize("kind", EDGE_PAIRS)
@pytest.mark.parametrize("options", [{}, {"second_order": True}, {"variant": "metric"}, {"variant": "official"}])
def test_values_and_gradients_are_finite(kind: str, options: dict[str, Any]) -> None:
    for shape in EDGE_SHAPES:
        for metric in [ssim_distance] if "variant" in options else [ssim, ms_ssim]:
            x, y = (image.requires_grad_() for image in EDGE_PAIRS[kind](shape))
            value = metric(x, y, **options)
            assert value.shape == shape[:1]
            assert torch.isfinite(value).all()
            for gradient in torch.autograd.grad(value.sum(), (x, y)):
                assert torch.isfinite(gradient).all()
            if kind in ("black", "saturated", "identical") and "variant" not in options:
                assert value.tolist() == pytest.approx([1.0] * shape[0], abs=1e-6)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(3, 8, 8)}, ValueError, "x must have the shape"),
        ({"y": torch.zeros(1, 3, 8, 8, dtype=torch.uint8)}, TypeError, "y must be floating point"),
        ({"y": torch.zeros(1, 3, 8, 9)}, ValueError, "x and y must have the same shape"),
        ({"x": torch.zeros(0, 3, 8, 8)}, ValueError, "x is empty"),
        ({"x": np.zeros((1, 3, 8, 8))}, TypeError, "x must be a torch.Tensor"),
        ({"value_range": (1, 0)}, ValueError, "value_range"),
        ({"value_range": 255}, ValueError, "value_range"),
        ({"window_size": 4}, ValueError, "window_size"),
        ({"window_size": -1}, ValueError, "window_size"),
        ({"window_size": 3.0}, TypeError, "window_size"),
        ({"sigma": 0}, ValueError, "sigma"),
        ({"sigma": float("nan")}, ValueError, "sigma"),
        ({"variant": "paper"}, ValueError, "variant"),
    ],
)
def test_bad_inputs(metric: Metric, change: dict[str, Any], error: type[Exception], message: str) -> None:
    if ({"window_size", "sigma"} & change.keys() and metric is ssim_distance) or (
        "variant" in change and metric is not ssim_distance
    ):
        pytest.skip("not an option of this function")
    arguments = {"x": torch.zeros(1, 3, 8, 8), "y": torch.zeros(1, 3, 8, 8), **change}
    with pytest.raises(error, match=message):
        metric(arguments.pop("x"), arguments.pop("y"), **arguments)


@pytest.mark.parametrize(("padding", "mode"), [("reflect", "mirror"), ("replicate", "nearest"), ("zero", "constant")])
def test_filter_equals_scipy(padding: Any, mode: str) -> None:
    x = torch.rand(2, 150, 9, dtype=torch.float64)
    kernel = gaussian_filter(
        150, 9, window_size=7, sigma=2.0, padding=padding, dtype=torch.float64, device=torch.device("cpu")
    )
    taps = np.exp(-(np.arange(-3, 4) ** 2) / 8)
    taps /= taps.sum()
    expected = correlate1d(correlate1d(x.numpy(), taps, 1, mode=mode), taps, 2, mode=mode)
    assert np.allclose(gaussian_blur(x, kernel).permute(2, 0, 1).numpy(), expected, atol=1e-12)


def test_filter_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match="window_size=11 does not fit"):
        gaussian_filter(
            8, 8, window_size=11, sigma=1.5, padding="valid", dtype=torch.float32, device=torch.device("cpu")
        )


def test_a_filter_made_in_inference_mode_can_be_trained_with() -> None:
    gaussian_filter.cache_clear()
    x, y = pair(1, 1, 21, 23)
    with torch.inference_mode():
        for metric in METRICS:
            metric(x, y)
    for metric in METRICS:
        metric(x.clone().requires_grad_(), y).sum().backward()

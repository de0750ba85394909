"""The model behind the NIQE penalty: features of a critic's gradient maps on real images.

    m = grey(grad_x D(x)) / RMS;  mean and covariance of features(m) over at least 360 real images

The maps are brought to unit RMS, in fitting and in the penalty alike: a gradient penalty makes them so small that the
normalisation of NIQE would be a no-op. Source: Kancharla and Channappayya 2019.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from qa_hooks._base.checks import check_count
from qa_hooks._base.isolation import isolated
from qa_hooks._base.processes import gather_rows, world_size
from qa_hooks._base.progress import Progress
from qa_hooks.features.moments import Moments
from qa_hooks.functional.input_gradients import Critic, OutputFn, input_gradient
from qa_hooks.functional.naturalness import naturalness_distance
from qa_hooks.functional.niqe import FeatureConfig, niqe_features, valid_rows
from qa_hooks.images import Range, RangeGuard, check_images, check_range, to_grey
from qa_hooks.scorers.niqe.scorer import NaturalnessModel

MIN_MAPS = 360  # ten for each of the 36 features
MAX_CONDITION = 1e10
MAX_SLOPE = 100.0  # of the AGGD shape against its ratio; unlimited it reaches about 500 at alpha = 10
HINGE_BATCH = 64
MODES = ("mvg", "sample")


def map_features(gradient: Tensor, config: FeatureConfig) -> Tensor:
    """Features of gradient maps `(N, C, H, W)`: grey, unit RMS, `(N * blocks, 36)`."""
    grey = to_grey(gradient)
    rms = torch.linalg.vector_norm(grey, dim=(1, 2, 3), keepdim=True) * grey[0].numel() ** -0.5
    return niqe_features(grey / (rms + 1e-8), config, max_slope=MAX_SLOPE).flatten(0, 1)


def gradient_features(
    critic: Critic,
    batches: Iterable[Any],
    *,
    config: FeatureConfig,
    max_maps: int,
    guard: RangeGuard | None = None,
    output_fn: OutputFn | None = None,
    progress: bool = False,
) -> Tensor:
    """Features `(n, 36)` of the critic's gradient maps on this process's images; flat maps are left out."""
    rows: list[Tensor] = []
    count = 0
    with Progress("gradient maps", max_maps, unit="map", shown=progress) as bar:
        for batch in batches:
            images = batch[0] if isinstance(batch, (tuple, list)) else batch  # a loader that also gives labels
            check_images("batches", images)
            if guard is not None:
                guard(data={"batches": images})
            gradient = input_gradient(critic, images[: max_maps - count], output_fn=output_fn, create_graph=False)
            with torch.no_grad():
                features = map_features(gradient, config)
                rows.append(features[valid_rows(features)].cpu())
            count += gradient.shape[0]
            bar.update(gradient.shape[0])
            if count >= max_maps:
                break
    return torch.cat([torch.zeros(0, config.features, dtype=torch.float32, device="cpu"), *rows])


def gradient_model(rows: Tensor, config: FeatureConfig) -> NaturalnessModel:
    """The model of gradient-map features `(n, 36)` of all processes.

    Raises:
        ValueError: fewer than 360 rows, or a covariance with a condition number above 1e10.
    """
    if rows.shape[0] < MIN_MAPS:
        raise ValueError(f"a gradient model needs at least {MIN_MAPS} maps that are not flat, got {rows.shape[0]}")
    moments = Moments(rows.shape[1])
    moments.update(rows)
    if not float(moments.covariance().diagonal().max()) > 1e-12:
        raise ValueError("all gradient maps are alike: is the critic linear, or untrained?")
    mean, covariance = moments.mean().cpu(), moments.covariance().cpu()
    condition = float(torch.linalg.cond(covariance))
    if not condition <= MAX_CONDITION:
        raise ValueError(
            f"the covariance of the gradient maps has a condition number of {condition:.2g} > {MAX_CONDITION:g}: "
            "more maps, or a critic that has trained longer"
        )
    batches = [batch for batch in rows.split(HINGE_BATCH) if batch.shape[0] == HINGE_BATCH]
    own = {mode: [naturalness_distance(batch, mean, covariance, variant=mode) for batch in batches] for mode in MODES}
    level = {f"{mode}_distance": float(torch.stack(values).mean()) for mode, values in own.items()}
    return NaturalnessModel(
        mean,
        covariance,
        config,
        count=rows.shape[0],
        provenance={"kind": "critic gradient maps", "batch": HINGE_BATCH, **level},
    )


def fit_gradient_model(
    critic: Critic,
    batches: Iterable[Tensor],
    *,
    config: FeatureConfig | None = None,
    max_maps: int = 50_000,
    value_range: Range | None = None,
    output_fn: OutputFn | None = None,
    progress: bool = True,
) -> NaturalnessModel:
    """Fit the model of natural gradient maps: the critic's gradients on real images, in eval mode, unit RMS.

    With several processes each gives its own batches and all get one model.

    Args:
        critic: a trained critic, any callable.
        batches: real images `(N, C, H, W)` in the critic's range, on its device; the official advice is 50,000 images.
        config: of the features; `FeatureConfig()` by default, `FeatureConfig.qagan()` for the paper's.
        max_maps: stop after that many.
        value_range: what the numbers of the images mean; the first batches are checked against it when it is given.
        output_fn: picks the scores from a tuple or dict.
        progress: show a bar when stderr is a terminal.

    Returns:
        A `NaturalnessModel` for `NIQEPenalty(model=...)`; it has `save(path)`.

    Raises:
        ValueError: fewer than 360 maps, or a covariance with a condition number above 1e10.

    Example:
        >>> layers = torch.nn.Conv2d(1, 8, 3), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.Linear(1568, 1)
        >>> critic = torch.nn.Sequential(*layers)
        >>> fit_gradient_model(critic, [torch.rand(400, 1, 16, 16)], progress=False).count
        400
    """
    config = config or FeatureConfig()
    check_count("max_maps", max_maps, least=MIN_MAPS)
    share = -(-max_maps // world_size())
    guard = RangeGuard(check_range(value_range)) if value_range is not None else None
    with isolated():
        rows = gradient_features(
            critic, batches, config=config, max_maps=share, guard=guard, output_fn=output_fn, progress=progress
        )
    return gradient_model(gather_rows(rows), config)

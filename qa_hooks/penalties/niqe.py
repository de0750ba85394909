"""QAGAN's NIQE penalty: the critic's gradient map should look like those on real images (Kancharla, Channappayya 2019).

    g = grad_x^ D(x^);  m = grey(g) / RMS(grey(g));  P = NIQE distance of features(m) from a model of real images' maps

This is the correct version of a method whose published code is broken: it rolls the batch and height axes where
height and width are meant, pools the features of the whole batch into one row whose covariance is zero, inverts the
AGGD shape with the wrong one of four approximations, mixes up scale factors, sides and orientations, stores a model
fitted on the last batch only, and uses maps whose scale makes the normalisation a no-op. Here features are per image,
the shape is exact with its true gradient, and maps have unit RMS, in fitting and in the penalty alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qa_hooks.functional.gradient_penalty import Critic, OutputFn, input_gradient
from qa_hooks.functional.naturalness import feature_moments, naturalness_distance, naturalness_distance_from_moments
from qa_hooks.functional.niqe import FeatureConfig, niqe_features, valid_rows
from qa_hooks.images import Range, check_images, to_grey
from qa_hooks.isolation import isolated, modules_of
from qa_hooks.penalties.penalty import CriticPass, CriticPenalty
from qa_hooks.scorers.niqe import NaturalnessModel
from qa_hooks.stats import Moments, gather_rows, global_sum, world_size

MIN_MAPS = 360  # ten for each of the 36 features
MAX_CONDITION = 1e10
MAX_SLOPE = 100.0  # of the AGGD shape against its ratio; unlimited it reaches about 500 at alpha = 10
WARMUP_MAPS = 4096
HINGE_BATCH = 64


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
    output_fn: OutputFn | None = None,
    progress: bool = False,
) -> Tensor:
    """Features `(n, 36)` of the critic's gradient maps on this process's images; flat maps are left out."""
    from tqdm import tqdm

    rows: list[Tensor] = []
    count = 0
    bar = tqdm(total=max_maps, desc="gradient maps", unit="map", disable=None if progress else True)
    for batch in batches:
        images = batch[0] if isinstance(batch, (tuple, list)) else batch  # a loader that also gives labels
        check_images("batches", images)
        gradient = input_gradient(critic, images[: max_maps - count], output_fn=output_fn, create_graph=False)
        with torch.no_grad():
            features = map_features(gradient, config)
            rows.append(features[valid_rows(features)].cpu())
        count += gradient.shape[0]
        bar.update(gradient.shape[0])
        if count >= max_maps:
            break
    bar.close()
    return torch.cat(rows) if rows else torch.zeros(0, config.features)


def gradient_model(rows: Tensor, config: FeatureConfig) -> NaturalnessModel:
    """The model of gradient-map features `(n, 36)` of all processes.

    Raises:
        ValueError: fewer than 360 rows, or a covariance with a condition number above 1e10.
    """
    if rows.shape[0] < MIN_MAPS:
        raise ValueError(f"a gradient model needs at least {MIN_MAPS} maps that are not flat, got {rows.shape[0]}")
    moments = Moments(rows.shape[1])
    moments.update(rows)
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


MODES = ("mvg", "sample")


def fit_gradient_model(
    critic: Critic,
    batches: Iterable[Tensor],
    *,
    config: FeatureConfig | None = None,
    max_maps: int = 50_000,
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
    share = -(-max_maps // world_size())
    with isolated(*modules_of(critic)):
        rows = gradient_features(critic, batches, config=config, max_maps=share, output_fn=output_fn, progress=progress)
    return gradient_model(gather_rows(rows), config)


class NIQEPenalty(CriticPenalty):
    """The NIQE distance of the critic's gradient maps at interpolated images from those at real ones; see the
    module's top.

    The model can be given, fitted on a trained critic (`fit_gradient_model`), or gathered in this very run
    (`warmup=2000`: the term is zero and logged as inactive for that many calls, the last of which gather). It costs a
    double backward through the critic unless a gradient penalty shares it (`QAGANPenalty`).

    Args:
        weight: 0.1 in the authors' code; weight 1 over-optimised the distance below that of real maps.
        model: a `NaturalnessModel` or the path of a saved one.
        warmup: calls before the term acts, when there is no model.
        mode: "mvg" compares the Gaussian of the batch's features (global over processes), "sample" averages the
            Mahalanobis distances of single maps.
        hinge: penalise only what lies above the mean distance of real maps.
        config: of the features during a warm-up; a given model brings its own.

    Raises:
        ValueError: neither model nor warm-up; a model whose config differs; a warm-up too short for 360 maps.

    Example:
        >>> penalty = NIQEPenalty(value_range=(-1, 1), warmup=50)
        >>> critic = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 1))
        >>> float(penalty(critic, torch.zeros(64, 1, 16, 16), torch.ones(64, 1, 16, 16)))
        0.0
    """

    name = "niqe"

    def __init__(
        self,
        *,
        value_range: Range,
        weight: float = 0.1,
        model: NaturalnessModel | str | Path | None = None,
        warmup: int = 0,
        mode: str = "mvg",
        hinge: bool = False,
        config: FeatureConfig | None = None,
        **options: Any,
    ) -> None:
        super().__init__(value_range=value_range, weight=weight, **options)
        if mode not in MODES:
            raise ValueError(f"mode must be one of {MODES}, got {mode!r}")
        if warmup < 0:
            raise ValueError(f"warmup must not be negative, got {warmup}")
        if model is None and warmup == 0:
            raise ValueError(
                "a NIQE penalty needs a model of natural gradient maps; one of: "
                "model=fit_gradient_model(critic, batches) on a trained critic; model='file.safetensors'; "
                "warmup=2000 to gather it during the first 2000 calls"
            )
        self.mode, self.hinge, self.warmup = mode, hinge, int(warmup)
        self.config = config or FeatureConfig()
        self._model: NaturalnessModel | None = None
        self._rows: list[Tensor] = []
        self._waited = 0
        if model is not None:
            loaded = model if isinstance(model, NaturalnessModel) else NaturalnessModel.load(model)
            if config is not None and loaded.config != config:
                raise ValueError(f"the model was fitted with {loaded.config}, but config={config} was given")
            self.config = loaded.config
            self.model = loaded

    @property
    def model(self) -> NaturalnessModel | None:
        """The model of natural gradient maps; None during a warm-up."""
        return self._model

    @model.setter
    def model(self, model: NaturalnessModel) -> None:
        if model.config != self.config:
            raise ValueError(f"the model was fitted with {model.config}, this penalty uses {self.config}")
        if self.hinge and f"{self.mode}_distance" not in model.provenance:
            raise ValueError("hinge=True needs the distance of real maps; fit the model with fit_gradient_model")
        self._model = model

    def term(self, shared: CriticPass) -> Tensor:
        if self._model is None:
            self._gather(shared)
            shared.log["niqe_active"] = shared.real.new_zeros(())
            return shared.real.new_zeros((), dtype=torch.float32)
        distance = self._distance(map_features(shared.gradient(), self.config), self._model).float()
        shared.log["niqe_active"] = torch.ones_like(distance.detach())
        if self.hinge:
            return (distance - float(self._model.provenance[f"{self.mode}_distance"])).relu()
        return distance

    def get_extra_state(self) -> dict[str, Any]:
        state = {
            **super().get_extra_state(),
            "waited": self._waited,
            "rows": torch.cat([torch.zeros(0, self.config.features), *self._rows]),
        }
        if self._model is not None:
            state["model"] = self._model.to_dict()
        return state

    def set_extra_state(self, state: dict[str, Any]) -> None:
        super().set_extra_state(state)
        self._waited = int(state["waited"])
        self._rows = [state["rows"]] if len(state["rows"]) else []
        self._model = NaturalnessModel.from_dict(state["model"]) if "model" in state else self._model

    def _distance(self, features: Tensor, model: NaturalnessModel) -> Tensor:
        mean, covariance = model.mean.to(features.device), model.covariance.to(features.device)
        if self.mode == "sample":
            return naturalness_distance(features, mean, covariance, variant="sample")
        moments = feature_moments(features, mean)
        sums = global_sum(torch.cat([part.flatten() for part in moments]))
        count, total, outer = sums.split([part.numel() for part in moments])
        return naturalness_distance_from_moments(count.squeeze(), total, outer.view(covariance.shape), mean, covariance)

    def _gather(self, shared: CriticPass) -> None:
        batch = shared.real.shape[0] * world_size()
        calls = min(self.warmup, -(-WARMUP_MAPS // batch))
        if calls * batch < MIN_MAPS:
            raise ValueError(
                f"warmup={self.warmup} calls of {batch} images give {calls * batch} maps; a model needs at least "
                f"{MIN_MAPS}: warmup={-(-MIN_MAPS // batch)} or more"
            )
        self._waited += 1
        if self._waited > self.warmup - calls:
            with torch.no_grad():
                self._rows.append(
                    gradient_features(
                        shared.critic, [shared.real], config=self.config, max_maps=batch, output_fn=shared.output_fn
                    )
                )
        if self._waited >= self.warmup:
            self.model = gradient_model(gather_rows(torch.cat(self._rows)), self.config)
            self._rows = []

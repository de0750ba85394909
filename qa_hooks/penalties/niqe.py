"""QAGAN's NIQE penalty: the critic's gradient map should look as on real images (Kancharla, Channappayya 2019).

    g = grad_x^ D(x^);  m = grey(g) / RMS(grey(g));  P = NIQE distance of features(m) from a model of real images' maps

This is the correct version of a method whose published code is broken: it rolls the batch and height axes where
height and width are meant, pools the features of the whole batch into one row whose covariance is zero, inverts the
AGGD shape with the wrong one of four approximations, mixes up scale factors, sides and orientations, stores a model
fitted on the last batch only, and uses maps whose scale makes the normalisation a no-op. Here features are per image,
the shape is exact with its true gradient, and maps have unit RMS, in fitting and in the penalty alike.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qa_hooks._base.checks import check_count, warn
from qa_hooks._base.processes import gather_rows, global_sum, world_size
from qa_hooks.functional.naturalness import feature_moments, naturalness_distance, naturalness_distance_from_moments
from qa_hooks.functional.niqe import FeatureConfig
from qa_hooks.images import Range
from qa_hooks.penalties.gradient_model import MIN_MAPS, MODES, gradient_features, gradient_model, map_features
from qa_hooks.penalties.penalty import CriticPass, CriticPenalty, Term
from qa_hooks.scorers.niqe.scorer import NaturalnessModel

WARMUP_MAPS = 4096


class NIQETerm(Term):
    """The NIQE distance of the critic's gradient maps from natural ones; options and errors as in `NIQEPenalty`."""

    name = "niqe"

    def __init__(
        self,
        *,
        model: NaturalnessModel | str | Path | None = None,
        warmup: int = 0,
        mode: str = "mvg",
        hinge: bool = True,
        config: FeatureConfig | None = None,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"mode must be one of {MODES}, got {mode!r}")
        self.warmup = check_count("warmup", warmup, least=0)
        if model is None and self.warmup == 0:
            raise ValueError(
                "a NIQE penalty needs a model of natural gradient maps; one of: "
                "model=fit_gradient_model(critic, batches) on a trained critic; model='file.safetensors'; "
                "warmup=2000 to gather it during the first 2000 calls"
            )
        self.mode, self.hinge = mode, hinge
        self.config = config or FeatureConfig()
        self._model: NaturalnessModel | None = None
        self._rows: list[Tensor] = []
        self._waited = self._gather_calls = 0
        self._failed = False
        self._on_device: tuple[Tensor, Tensor] | None = None
        if model is not None:
            if not isinstance(model, (NaturalnessModel, str, Path)):
                raise TypeError(f"model must be a NaturalnessModel or a path, got {type(model).__name__}")
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
        if model.config.block is not None:
            raise ValueError(
                f"this model describes photographs (block={model.config.block}), not gradient maps; "
                "fit one with fit_gradient_model(critic, batches)"
            )
        if model.config != self.config:
            raise ValueError(f"the model was fitted with {model.config}, this penalty uses {self.config}")
        if self.hinge and f"{self.mode}_distance" not in model.provenance:
            raise ValueError(
                "the hinge needs the distance of real maps, which this model does not state: fit it with "
                "fit_gradient_model(critic, batches), or write hinge=False"
            )
        self._model, self._on_device = model, None

    def term(self, shared: CriticPass) -> Tensor | None:
        if self._model is None:
            self._gather(shared)
            shared.log["niqe_active"] = shared.zero()
            return None
        distance = self._distance(map_features(shared.gradient(), self.config), self._model).float()
        shared.log["niqe_active"] = torch.ones_like(distance.detach())
        if self.hinge:
            return (distance - float(self._model.provenance[f"{self.mode}_distance"])).relu()
        return distance

    def run_state(self) -> dict[str, Any]:
        state = {
            **super().run_state(),
            "waited": self._waited,
            "gather_calls": self._gather_calls,
            "failed": self._failed,
            "rows": torch.cat([torch.zeros(0, self.config.features, dtype=torch.float32, device="cpu"), *self._rows]),
        }
        if self._model is not None:
            state["model"] = self._model.to_dict()
        return state

    def load_run_state(self, state: dict[str, Any]) -> None:
        super().load_run_state(state)
        self._waited, self._gather_calls = int(state["waited"]), int(state["gather_calls"])
        self._failed = bool(state["failed"])
        self._rows = [state["rows"]] if len(state["rows"]) else []
        if "model" in state:
            self.model = NaturalnessModel.from_dict(state["model"])

    def _distance(self, features: Tensor, model: NaturalnessModel) -> Tensor:
        if self._on_device is None or self._on_device[0].device != features.device:
            self._on_device = model.mean.to(features.device), model.covariance.to(features.device)
        mean, covariance = self._on_device
        if self.mode == "sample":
            return naturalness_distance(features, mean, covariance, variant="sample")
        moments = feature_moments(features, mean)
        sums = global_sum(torch.cat([part.flatten() for part in moments]))
        count, total, outer = sums.split([part.numel() for part in moments])
        return naturalness_distance_from_moments(count.squeeze(), total, outer.view(covariance.shape), covariance)

    def _gather(self, shared: CriticPass) -> None:
        batch = shared.real.shape[0] * world_size()
        if not self._waited:
            self._gather_calls = min(self.warmup, -(-WARMUP_MAPS // batch))
            if self._gather_calls * batch < MIN_MAPS:
                raise ValueError(
                    f"warmup={self.warmup} calls of {batch} images give {self._gather_calls * batch} maps; a model "
                    f"needs at least {MIN_MAPS}: warmup={-(-MIN_MAPS // batch)} or more"
                )
            with torch.no_grad():
                map_features(shared.real[:1], self.config)  # what cannot have features is told now, not after the wait
        self._waited += 1
        if self._waited > self.warmup - self._gather_calls:
            with torch.no_grad():
                self._rows.append(
                    gradient_features(
                        shared.critic, [shared.real], config=self.config, max_maps=batch, output_fn=shared.output_fn
                    )
                )
        if self._waited >= self.warmup:
            rows, self._rows = gather_rows(torch.cat(self._rows)), []
            try:
                self.model = gradient_model(rows, self.config)
            except ValueError as error:
                if self._failed:
                    raise
                self._failed, self._waited = True, 0
                warn(f"{error}; the warm-up of the NIQE penalty starts again, once, for {self.warmup} calls")


class NIQEPenalty(NIQETerm, CriticPenalty):
    """NIQE's distance of the critic's gradient maps at interpolated images from its maps at real ones.

    The formula is at the top of `qa_hooks.penalties.niqe`. The model can be given, fitted on a trained critic
    (`fit_gradient_model`), or gathered in this very run (`warmup=2000`: the term is left out and "niqe_active" is 0 for
    that many calls, the last of which gather; when they give no usable model it waits as long again, then raises).
    It costs a double backward through the critic unless a gradient penalty shares it (`QAGANPenalty`).

    Args:
        weight: 0.1 in the authors' code; at weight 1 the images got worse (docs/penalties.md).
        model: a `NaturalnessModel` or the path of a saved one.
        warmup: calls before the term acts, when there is no model.
        mode: "mvg" compares the Gaussian of the batch's features (global over processes), "sample" averages the
            Mahalanobis distances of single maps.
        hinge: penalise only what lies above the mean distance of real maps (of batches of 64). False, as published: the
            distance ends far below the distance of real maps, and the images were no better at weight 0.1 and
            clearly worse at weight 1, on digits and on CIFAR-10 (docs/penalties.md).
        config: of the features during a warm-up; a given model brings its own.

    Raises:
        ValueError: neither model nor warm-up; a model whose config differs; a warm-up too short for 360 maps.

    Example:
        >>> penalty = NIQEPenalty(value_range=(-1, 1), warmup=50)
        >>> critic = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 1))
        >>> float(penalty(critic, torch.zeros(64, 1, 16, 16), torch.ones(64, 1, 16, 16)))
        0.0
    """

    def __init__(
        self,
        *,
        value_range: Range,
        weight: float = 0.1,
        model: NaturalnessModel | str | Path | None = None,
        warmup: int = 0,
        mode: str = "mvg",
        hinge: bool = True,
        config: FeatureConfig | None = None,
        **options: Any,
    ) -> None:
        CriticPenalty.__init__(self, value_range=value_range, weight=weight, **options)
        NIQETerm.__init__(self, model=model, warmup=warmup, mode=mode, hinge=hinge, config=config)

"""Scorers that are fitted in a feature space: what the GMM and the nearest-neighbour scorer of GIQA have in common.

Images go through a feature extractor, a model fitted on features of real images gives each vector a number, and a share
of the real images that the model never saw calibrates that number to [0, 1].

Source: Gu, Bao, Chen, Wen, "GIQA: Generated Image Quality Assessment", 2020.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from qa_hooks._base.checks import check_count
from qa_hooks._base.processes import broadcast_tensors, rank, together
from qa_hooks.features import FeatureExtractor, Features, create_extractor, extract_features
from qa_hooks.features.rebuilding import saved_extractor
from qa_hooks.functional.filters import full_precision
from qa_hooks.images import Range
from qa_hooks.scorers.calibration import Calibration, check_method
from qa_hooks.scorers.scorer import Scorer
from qa_hooks.sources.batches import Source, warn_left_out

Own = TypeVar("Own", bound="FeatureScorer")
ROWS = 4096  # features scored at a time
EXTRACTOR = ("name", "dim", "fingerprint", "spec")


class FeatureScorer(Scorer):
    """Base of scorers that are fitted on features of real images; higher is better, unbounded.

    A subclass names its tensors in `fitted`, computes them in `fit_tensors`, uses them in `score_rows`. Under several
    processes all of them see all features, rank 0 fits, and the others receive its tensors: they never differ.

    Args:
        extractor: from `create_extractor`, or its name.
        value_range: what the numbers of the images mean.
    """

    takes_extractor = True
    fitted: tuple[str, ...] = ()
    higher_is_better = True
    score_range = None
    keeps_float64 = True

    def __init__(
        self, extractor: FeatureExtractor | str | Mapping[str, Any], *, value_range: Range = (0.0, 1.0)
    ) -> None:
        super().__init__(value_range=value_range)
        self.extractor = self.keep(create_extractor(extractor))
        for name in self.fitted:
            self.register_buffer(name, None, persistent=False)

    def fit_tensors(self, values: Tensor, like: FeatureScorer | None) -> dict[str, Tensor]:
        """What a subclass writes: `(n, dim)` float32 on the CPU -> its tensors; `like` gives the basis of a refit."""
        raise NotImplementedError(f"{type(self).__name__} must define fit_tensors(values, like)")

    def shapes(self, tensors: dict[str, Tensor], dim: int) -> dict[str, tuple[int, ...]]:
        """What a subclass writes: the shapes that the tensors of a file must have, for `dim` features."""
        raise NotImplementedError(f"{type(self).__name__} must define shapes(tensors, dim)")

    def score_rows(self, features: Tensor) -> Tensor:
        """What a subclass writes: `(n, dim)` -> `(n,)` raw scores, differentiable."""
        raise NotImplementedError(f"{type(self).__name__} must define score_rows(features)")

    def own_options(self) -> dict[str, Any]:
        """The constructor's options besides extractor and range, as JSON can hold them."""
        return {}

    def fit(
        self: Own,
        images: Source,
        *,
        held_out: float = 0.2,
        calibration: str | None = "ecdf",
        batch_size: int = 64,
        progress: bool = True,
        seed: int = 0,
    ) -> Own:
        """Fit on real images.

        Args:
            images: a tensor in `value_range`, a folder, files, a dataset or a loader. Files that cannot be read are
                left out with a warning. Where all have one size, it is kept: see `other_sizes`.
            held_out: share of the images, chosen by `seed`, that calibrate the scorer and take no part in the fit.
            calibration: "ecdf", "minmax", "sigmoid", or None for none: the model is then fitted on all images.
            batch_size: images at a time.
            progress: show a bar where there is a terminal.
            seed: of the choice.

        Returns:
            The scorer itself.

        Raises:
            ValueError: too few images, constant ones, features that are not finite.
        """
        _check_split(held_out, calibration)
        failures: dict[int, str] = {}
        reading: dict[str, Any] = {"batch_size": batch_size, "progress": progress, "failures": failures}
        features = extract_features(self.extractor, images, value_range=self.value_range, **reading)
        warn_left_out(failures)
        return self.fit_features(features, held_out=held_out, calibration=calibration, seed=seed)

    def fit_features(
        self: Own,
        features: Features | Tensor,
        *,
        held_out: float = 0.2,
        calibration: str | None = "ecdf",
        seed: int = 0,
    ) -> Own:
        """`fit`, on features that have been extracted: `Features` or `(n, dim)`, the same on every process."""
        _check_split(held_out, calibration)
        values = self._checked(features).float().cpu()
        order = torch.randperm(len(values), generator=torch.Generator().manual_seed(int(seed)), device="cpu")
        count = round(held_out * len(values)) if calibration is not None else 0
        if calibration is not None and count < 10:
            raise ValueError(
                f"the calibration needs at least 10 held-out images, but held_out={held_out:g} of {len(values)} is "
                f"{count}; give more images, a larger held_out, or calibration=None"
            )
        # In the order of the source: what is fitted must not depend on more than which images were held out.
        self._fit(values[order[count:].sort().values], None)
        self.fitted_size = features.size if isinstance(features, Features) else None
        self.calibration = None
        if calibration is not None:
            fitted = Calibration.fit(self.score_features(values[order[:count]]), method=calibration)
            self.calibration = Calibration(calibration, broadcast_tensors({"points": fitted.points})["points"])
        return self

    def refit(self: Own, features: Features | Tensor) -> Own:
        """A new scorer with these options, fitted on all of other features, in the basis of this one's projection.

        It has no calibration. For the diversity score, whose model is fitted on generated images.
        """
        self._check_fitted()
        self._check_size(features)
        other = type(self)(self.extractor, **self.own_options(), value_range=self.value_range)
        other.fitted_size = features.size if isinstance(features, Features) else None
        other._fit(self._checked(features).float().cpu(), self)
        return other.to(self.device)

    def score(self, images: Tensor, **inputs: Any) -> Tensor:
        self._check_fitted()
        features = self.extractor(self._at_fitted_size(images))
        with full_precision(features.device):
            return self.score_rows(features)

    def score_features(self, features: Features | Tensor) -> Tensor:
        """Raw scores `(n,)` float32 of features; `ValueError` for those of another extractor."""
        self._check_fitted()
        self._check_size(features)
        values = self._checked(features)
        device = self.extractor.mean.device
        with full_precision(device):
            scores = [self.score_rows(part.to(device)).to(values.device) for part in values.split(ROWS)]
        return torch.cat(scores).float()

    def extra_repr(self) -> str:
        own = "".join(f", {name}={value!r}" for name, value in self.own_options().items())
        fitted = "" if self._is_fitted else ", not fitted"
        return f"{super().extra_repr()}, extractor={self.extractor.name}{own}{fitted}"

    def options(self) -> dict[str, Any]:
        return {**self.own_options(), "extractor": {name: getattr(self.extractor, name) for name in EXTRACTOR}}

    def tensors(self) -> dict[str, Tensor]:
        self._check_fitted()
        return {name: getattr(self, name).detach().cpu().contiguous() for name in self.fitted}

    @classmethod
    def from_saved(
        cls: type[Own],
        options: dict[str, Any],
        tensors: dict[str, Tensor],
        value_range: Range,
        extractor: FeatureExtractor | nn.Module | str | None = None,
    ) -> Own:
        """Rebuild, with the extractor of the file or one that is given and has the same fingerprint."""
        options = dict(options)
        saved = options.pop("extractor")
        made = saved_extractor(saved, extractor)
        scorer = cls(made, **options, value_range=value_range)
        if set(tensors) != set(cls.fitted):
            raise ValueError(f"tensors {sorted(tensors)}, expected {sorted(cls.fitted)}")
        for name, shape in scorer.shapes(tensors, check_count("dim", saved["dim"])).items():
            tensor = tensors[name]
            if tensor.shape != shape or not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
                raise ValueError(f"{name} must hold finite numbers of the shape {shape}, got {tuple(tensor.shape)}")
        scorer._set(tensors)
        return scorer

    def _fit(self, values: Tensor, like: FeatureScorer | None) -> None:
        tensors = None
        with together():
            if rank() == 0:
                tensors = self.fit_tensors(values, like)
        self._set(broadcast_tensors(tensors))

    def _set(self, tensors: dict[str, Tensor]) -> None:
        device = self.extractor.mean.device
        with torch.inference_mode(False):  # tensors made in it could take no part in a graph
            for name, tensor in tensors.items():
                setattr(self, name, tensor.to(device, copy=True))

    @property
    def _is_fitted(self) -> bool:
        return bool(self.fitted) and getattr(self, self.fitted[0]) is not None

    def _check_fitted(self) -> None:
        if not self._is_fitted:
            raise ValueError(f"{self.name} is not fitted: call fit(real_images) first")

    def _check_size(self, features: Features | Tensor) -> None:
        odd = self._other_size(features.size) if isinstance(features, Features) else ""
        if odd:
            raise ValueError(odd)

    def _checked(self, features: Features | Tensor) -> Tensor:
        """Rows of features of this extractor."""
        if isinstance(features, Features):
            if features.fingerprint != self.extractor.fingerprint:
                raise ValueError(
                    f"the features have the fingerprint {features.fingerprint}, but {self.name} works in those of "
                    f"{self.extractor.name} ({self.extractor.fingerprint}): extract them with its extractor"
                )
            features = features.values
        if not isinstance(features, Tensor) or features.ndim != 2 or features.shape[1] != self.extractor.dim:
            shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(f"features must be (n, {self.extractor.dim}) of {self.extractor.name}, got {shape}")
        if not len(features):
            raise ValueError("there are no features: the source of images was empty")
        if not bool(torch.isfinite(features).all()):
            raise ValueError("the features hold non-finite values: look at the images and at the extractor")
        return features


def _check_split(held_out: float, calibration: str | None) -> None:
    check_method(calibration)
    if not 0 <= held_out < 1:
        raise ValueError(f"held_out must be a share in [0, 1), got {held_out!r}")

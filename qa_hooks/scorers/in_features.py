"""Scorers that stand on a feature extractor: what GIQA's and a scorer of people's opinions have in common.

Images go through a feature extractor, and something that was fitted gives each vector a number. A file has the fitted
tensors and says which extractor they belong to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from qa_hooks._base.checks import arrived, check_count
from qa_hooks.features import FeatureExtractor, Features, create_extractor
from qa_hooks.features.rebuilding import saved_extractor
from qa_hooks.functional.filters import full_precision
from qa_hooks.images import Range
from qa_hooks.scorers.scorer import Scorer

Own = TypeVar("Own", bound="ScorerInFeatures")
ROWS = 4096  # features scored at a time
EXTRACTOR = ("name", "dim", "fingerprint", "spec")


class ScorerInFeatures(Scorer):
    """Base of scorers that score an extractor's features; unbounded.

    A subclass names its tensors in `fitted`, says in `shapes` how they must look, and uses them in `score_rows`.

    Args:
        extractor: from `create_extractor`, or its name.
        value_range: what the numbers of the images mean.
    """

    takes_extractor = True
    fitted: tuple[str, ...] = ()
    fit_call = "fit(images)"  # for messages
    score_range = None
    keeps_float64 = True

    def __init__(
        self, extractor: FeatureExtractor | str | Mapping[str, Any], *, value_range: Range = (0.0, 1.0)
    ) -> None:
        super().__init__(value_range=value_range)
        self.extractor = self.keep(create_extractor(extractor))
        for name in self.fitted:
            self.register_buffer(name, None, persistent=False)

    def shapes(self, tensors: dict[str, Tensor], dim: int) -> dict[str, tuple[int, ...]]:
        """What a subclass writes: the shapes that the tensors of a file must have, for rows of `dim` numbers."""
        raise NotImplementedError(f"{type(self).__name__} must define shapes(tensors, dim)")

    def score_rows(self, features: Tensor) -> Tensor:
        """What a subclass writes: `(n, dim)` -> `(n,)` raw scores, differentiable."""
        raise NotImplementedError(f"{type(self).__name__} must define score_rows(features)")

    def width(self, dim: int) -> int:
        """How many numbers it scores where the extractor gives `dim`."""
        return dim

    def rows(self, images: Tensor, **inputs: Any) -> Tensor:
        """The rows `(N, width)` of images, with a gradient."""
        features: Tensor = self.extractor(images)
        return features

    def own_options(self) -> dict[str, Any]:
        """The constructor's options besides extractor and range, as JSON can hold them."""
        return {}

    def score(self, images: Tensor, **inputs: Any) -> Tensor:
        self._check_fitted()
        rows = self.rows(self._at_fitted_size(images), **inputs)
        with full_precision(rows.device):
            return self.score_rows(rows)

    def score_features(self, features: Features | Tensor) -> Tensor:
        """Raw scores `(n,)` float32 of features; `ValueError` for features of another extractor."""
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
        for name, shape in scorer.shapes(tensors, scorer.width(check_count("dim", saved["dim"]))).items():
            tensor = tensors[name]
            if tensor.shape != shape or not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
                raise ValueError(f"{name} must hold finite numbers of the shape {shape}, got {tuple(tensor.shape)}")
        scorer._set(tensors)
        return scorer

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
            raise ValueError(f"{self.name} is not fitted: call {self.fit_call} first, or load a saved one")

    def _check_size(self, features: Features | Tensor) -> None:
        odd = self._other_size(features.size) if isinstance(features, Features) else ""
        if odd:
            raise ValueError(odd)

    def _checked(self, features: Features | Tensor) -> Tensor:
        """Rows of features of this extractor."""
        if isinstance(features, Features):
            if features.fingerprint != self.extractor.fingerprint:
                raise ValueError(
                    f"the features have the fingerprint {features.fingerprint}, but {self.name} works in features "
                    f"of {self.extractor.name} ({self.extractor.fingerprint}): extract them with its extractor"
                )
            features = features.values
        width = self.width(self.extractor.dim)
        if not isinstance(features, Tensor) or features.ndim != 2 or features.shape[1] != width:
            raise ValueError(f"features must be (n, {width}) of {self.extractor.name}, got {arrived(features)}")
        if not len(features):
            raise ValueError("there are no features: the source of images was empty")
        if not bool(torch.isfinite(features).all()):
            raise ValueError("the features hold non-finite values: look at the images and at the extractor")
        return features

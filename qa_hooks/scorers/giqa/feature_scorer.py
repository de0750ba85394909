"""Scorers that are fitted in a feature space: what the GMM and the nearest-neighbour scorer of GIQA have in common.

Images go through a feature extractor, a model fitted on features of real images gives each vector a number, and a share
of the real images that the model never saw calibrates that number to [0, 1].

Source: Gu, Bao, Chen, Wen, "GIQA: Generated Image Quality Assessment", 2020.
"""

from __future__ import annotations

from typing import Any, TypeVar

from torch import Tensor

from qa_hooks._base.checks import check_share
from qa_hooks._base.processes import broadcast_tensors, rank, together
from qa_hooks._base.random import permutation
from qa_hooks.features import Features, FeatureSums, extract_features
from qa_hooks.scorers.calibration import Calibration, check_method
from qa_hooks.scorers.in_features import ScorerInFeatures
from qa_hooks.sources.batches import Source, warn_left_out

Own = TypeVar("Own", bound="FeatureScorer")


class FeatureScorer(ScorerInFeatures):
    """Base of scorers that are fitted on features of real images; higher is better, unbounded.

    A subclass names its tensors in `fitted`, computes them in `fit_tensors`, uses them in `score_rows`. Under several
    processes all of them see all features, rank 0 fits, and the others receive its tensors: they never differ.

    Args:
        extractor: from `create_extractor`, or its name.
        value_range: what the numbers of the images mean.
    """

    fit_call = "fit(real_images)"
    higher_is_better = True

    def fit_tensors(self, values: Tensor, like: FeatureScorer | None) -> dict[str, Tensor]:
        """What a subclass writes: `(n, dim)` float32 on the CPU -> its tensors; `like` gives the basis of a refit."""
        raise NotImplementedError(f"{type(self).__name__} must define fit_tensors(values, like)")

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
        order = permutation(len(values), int(seed))
        count = round(held_out * len(values)) if calibration is not None else 0
        if calibration is not None and count < 10:
            raise ValueError(
                f"the calibration needs at least 10 held-out images, and a share of {held_out:g} of {len(values)} "
                f"images is {count}: give more images, a larger held_out=, or calibration=None"
            )
        # In the order of the source: what is fitted must not depend on more than which images were held out.
        self._fit(values[order[count:].sort().values], None)
        self.fitted_size = features.size if isinstance(features, Features) else None
        self.calibration = None
        if calibration is not None:
            fitted = Calibration.fit(self.score_features(values[order[:count]]), method=calibration)
            self.calibration = Calibration(calibration, broadcast_tensors({"points": fitted.points})["points"])
        return self

    def fit_sums(self: Own, sums: FeatureSums, *, calibration: str | None = "ecdf") -> Own:
        """`fit`, on sums over more features than memory holds, as `qa_hooks.integrations.ray.fit_dataset` gathers them.

        One Gaussian comes from the moments of all; mixtures and neighbours are fitted on the sample, and calibrations
        on the sample of those held out.
        """
        check_method(calibration)
        if sums.dim != self.extractor.dim:
            raise ValueError(f"the sums are of {sums.dim} features, {self.extractor.name} has {self.extractor.dim}")
        if calibration is not None and len(sums.held) < 10:
            raise ValueError(
                f"the calibration needs at least 10 held-out images, got {len(sums.held)}: give more images, a larger "
                "held_out, or calibration=None"
            )
        self._set(self.sums_tensors(sums))
        self.fitted_size = next(iter(sums.sizes)) if len(sums.sizes) == 1 else None
        self.calibration = None
        if calibration is not None:
            self.calibration = Calibration.fit(self.score_features(sums.held), method=calibration)
        return self

    def sums_tensors(self, sums: FeatureSums) -> dict[str, Tensor]:
        """The fitted tensors; a subclass that needs no more than the moments overrides it."""
        return self.fit_tensors(self._checked(sums.fitted), None)

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

    def _fit(self, values: Tensor, like: FeatureScorer | None) -> None:
        tensors = None
        with together():
            if rank() == 0:
                tensors = self.fit_tensors(values, like)
        self._set(broadcast_tensors(tensors))


def _check_split(held_out: float, calibration: str | None) -> None:
    check_method(calibration)
    check_share("held_out", held_out, zero=True)

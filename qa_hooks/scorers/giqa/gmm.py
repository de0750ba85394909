"""GMM-GIQA: the log-likelihood of an image's features under a mixture of Gaussians fitted on real images.

    score = log sum_m w_m N(V^T (f - c); mu_m, Sigma_m)

c and V are the centre and the principal components of the real features. Higher is better; the value depends on the
number of dimensions and means something only in comparison, so calibrate it. One component is the paper's baseline of a
single Gaussian (SGM). Fitted by scikit-learn, scored by our own code, differentiable through the extractor.

Source: GIQA (Gu et al. 2020), Eq. 6, and its code, which takes the logarithm.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qa_hooks._base.checks import check_count, check_weight, warn
from qa_hooks.features import FeatureExtractor, FeatureSums
from qa_hooks.functional.mixture import MAX_FLOAT32_DIM, mixture_log_density
from qa_hooks.images import Range
from qa_hooks.scorers.giqa.feature_scorer import FeatureScorer

WANTED = 10  # images of a component with a diagonal covariance
COVARIANCES = ("full", "diag")


class GMMScorer(FeatureScorer):
    """Log-likelihood under a Gaussian mixture of real features.

    SRCC .56 with people's ratings of five distortions together in `efficientnet_lite0-middle`, the features to
    take for photographs, and .33 in six stages: docs/judges.md.

    Args:
        extractor: from `create_extractor`, or its name.
        components: Gaussians; 7 for LSUN and Cityscapes, 70 for FFHQ in the paper; 1 is the SGM baseline.
        pca: share of the variance to keep, between 0 and 1; or a number of dimensions; or None for all features. Full
            covariances need more images per component than dimensions.
        covariance: "full" or "diag".
        reg_covar: added to the diagonal of each covariance; scikit-learn's default.
        seed: of the initialisation.
        value_range: what the numbers of the images mean.

    Attributes:
        name: "giqa_gmm", or "giqa_sgm" for one component.

    Raises:
        ValueError: unknown options; when fitting: fewer images than components, constant or non-finite features.

    Example:
        >>> scorer = GMMScorer("random", components=2, pca=4).fit(torch.rand(80, 3, 16, 16))
        >>> scorer(torch.rand(5, 3, 16, 16)).shape
        torch.Size([5])
    """

    fitted = ("log_weights", "means", "factors", "center", "basis")
    log_weights: Tensor
    means: Tensor
    factors: Tensor
    center: Tensor
    basis: Tensor

    def __init__(
        self,
        extractor: FeatureExtractor | str | Mapping[str, Any],
        components: int = 7,
        *,
        pca: float | int | None = 0.95,
        covariance: str = "full",
        reg_covar: float = 1e-6,
        seed: int = 0,
        value_range: Range = (0.0, 1.0),
    ) -> None:
        super().__init__(extractor, value_range=value_range)
        if covariance not in COVARIANCES:
            raise ValueError(f"covariance must be one of {COVARIANCES}, got {covariance!r}")
        share = isinstance(pca, float) and 0 < pca < 1
        if pca is not None and not share and (isinstance(pca, (bool, float)) or pca < 1):
            raise ValueError(f"pca must be a share between 0 and 1, a number of dimensions, or None, got {pca!r}")
        self.components, self.pca, self.covariance = check_count("components", components), pca, covariance
        self.reg_covar, self.seed = check_weight("reg_covar", reg_covar), check_count("seed", seed, least=0)
        self.name = "giqa_gmm" if components > 1 else "giqa_sgm"

    def own_options(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in ("components", "pca", "covariance", "reg_covar", "seed")}

    def fit_tensors(self, values: Tensor, like: FeatureScorer | None) -> dict[str, Tensor]:
        from sklearn.mixture import GaussianMixture

        if len(values) < self.components:
            raise ValueError(f"{self.components} components need as many images, got {len(values)}")
        features = values.double().numpy()
        if isinstance(like, GMMScorer):
            center, basis = like.center.cpu(), like.basis.cpu()
        else:
            center, basis = (tensor.float() for tensor in self._principal(features))
        rows = features - center.double().numpy()  # with what will be saved
        rows = rows @ basis.double().numpy() if basis.numel() else rows
        mixture = GaussianMixture(
            self.components, covariance_type=self.covariance, reg_covar=self.reg_covar, random_state=self.seed
        )
        try:
            mixture.fit(rows)
        except ValueError as error:
            raise ValueError(
                f"the mixture could not be fitted on {len(rows)} images in {rows.shape[1]} dimensions: {error}; give "
                "more images, fewer components, a smaller pca or a larger reg_covar"
            ) from error
        self._warn_of_few(float(mixture.weights_.min()) * len(rows), rows.shape[1])
        dtype = torch.float32 if rows.shape[1] <= MAX_FLOAT32_DIM else torch.float64
        arrays = {
            "log_weights": np.log(mixture.weights_),
            "means": mixture.means_,
            "factors": mixture.precisions_cholesky_,
        }
        tensors = {name: torch.from_numpy(array).to(dtype) for name, array in arrays.items()}
        return {**tensors, "center": center, "basis": basis}

    def sums_tensors(self, sums: FeatureSums) -> dict[str, Tensor]:
        """One component from the moments alone, up to rounding as `fit_tensors` fits it on all rows."""
        moments = sums.moments
        if self.components > 1:
            return super().sums_tensors(sums)
        if moments.count < 2:
            raise ValueError(f"one Gaussian needs at least 2 images, got {moments.count}")
        mean, covariance = moments.mean().cpu(), moments.scatter().cpu() / moments.count
        self._check_spread(covariance.diagonal().sqrt().numpy(), float(mean.abs().max()), moments.count)
        basis = torch.eye(sums.dim, dtype=torch.float64, device="cpu")
        if self.pca is not None:
            values, vectors = (part.flip(-1) for part in torch.linalg.eigh(covariance))
            basis = vectors[:, : self._kept(values.clamp_min(0), moments.count)]
            basis = basis * basis.gather(0, basis.abs().argmax(0, keepdim=True)).sign()  # the sign is free
        center, basis = mean.float(), basis.float()
        across = basis.double().T @ covariance @ basis.double()
        across += self.reg_covar * torch.eye(len(across), dtype=torch.float64, device="cpu")
        self._warn_of_few(float(moments.count), len(across))
        if self.covariance == "full":
            root = torch.linalg.cholesky(across)
            unit = torch.eye(len(across), dtype=torch.float64, device="cpu")
            factor = torch.linalg.solve_triangular(root, unit, upper=False).T
        else:
            factor = across.diagonal().rsqrt()
        dtype = torch.float32 if len(across) <= MAX_FLOAT32_DIM else torch.float64
        rows = (mean - center.double())[None] @ basis.double()
        weights = torch.zeros(1, device="cpu", dtype=dtype)
        tensors = {"log_weights": weights, "means": rows, "factors": factor[None].contiguous()}
        tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        empty = torch.zeros(0, 0, dtype=torch.float32, device="cpu")
        return {**tensors, "center": center, "basis": empty if self.pca is None else basis.contiguous()}

    def _kept(self, variances: Tensor, count: int) -> int:
        """How many principal components of these variances, the largest first, `pca` asks for."""
        if self.pca is None or self.pca < 1:
            reached = (variances / variances.sum()).cumsum(0)
            return min(int((reached <= float(self.pca or 1)).sum()) + 1, len(variances))
        self._check_pca(count, len(variances))
        return int(self.pca)

    def _check_pca(self, count: int, dim: int) -> None:
        if self.pca is not None and self.pca >= 1 and self.pca > min(count, dim):
            raise ValueError(f"pca={self.pca} dimensions need as many images and features, got {count} and {dim}")

    def _check_spread(self, spread: np.ndarray[Any, Any], largest: float, count: int) -> None:
        if spread.max() <= 1e-6 * max(largest, 1e-30):
            raise ValueError(f"the features of all {count} images are the same: there is nothing to fit")

    def _warn_of_few(self, smallest: float, dims: int) -> None:
        """Warn where the smallest component has too few images for its dimensions."""
        full = self.covariance == "full"
        least = dims + 1 if full else WANTED
        if smallest < least:
            why = "so its covariance is singular but for reg_covar" if full else "so its variances are uncertain"
            instead = "a smaller pca=, or covariance='diag'" if full else "or a smaller pca="
            warn(
                f"a component has about {smallest:.0f} images for {dims} dimensions, {why} and likelihoods "
                f"will be erratic: it needs {least}, about {least * self.components} images in all; give more images, "
                f"fewer components=, {instead}"
            )

    def shapes(self, tensors: dict[str, Tensor], dim: int) -> dict[str, tuple[int, ...]]:
        count, kept = self.components, tensors["means"].shape[-1]
        return {
            "log_weights": (count,),
            "means": (count, kept),
            "factors": (count, kept, kept) if self.covariance == "full" else (count, kept),
            "center": (dim,),
            "basis": (0, 0) if self.pca is None else (dim, kept),
        }

    def score_rows(self, features: Tensor) -> Tensor:
        rows = features - self.center
        rows = rows @ self.basis.to(rows.dtype) if self.basis.numel() else rows
        return mixture_log_density(rows, self.log_weights, self.means, self.factors)

    def _principal(self, features: np.ndarray[Any, Any]) -> tuple[Tensor, Tensor]:
        """Centre `(dim,)` and principal components `(dim, d)`, the latter empty without PCA; float64."""
        from sklearn.decomposition import PCA

        count, dim = features.shape
        center = torch.from_numpy(features.mean(0))
        self._check_spread(features.std(0), float(abs(features).max()), count)
        if self.pca is None:
            return center, torch.zeros(0, 0, dtype=torch.float64, device="cpu")
        self._check_pca(count, dim)
        principal = PCA(self.pca, random_state=self.seed).fit(features)
        return torch.from_numpy(principal.mean_), torch.from_numpy(principal.components_.T.copy())

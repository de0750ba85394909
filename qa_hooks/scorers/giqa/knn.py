"""KNN-GIQA: how near an image's features lie to the features of its nearest real images.

    paper:          score = 1/k sum_k 1 / (|f - f_k|^2 + 1e-12)
    official code:  score =     sum_k 1 / sum_i |f_i - f_k,i + 1e-6|

Higher is better; positive and unbounded. The two forms rank alike only for one k and one norm. In the paper's form a
real image that is in the bank would score 1e12, or less by what the rounding of its features in another batch makes of
its distance 0. So a neighbour that is the image itself, or a copy of it, is left out here, as in `own_scores`.

Source: GIQA (Gu et al. 2020), Eq. 7, and its code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from qa_hooks._base.checks import check_count, warn
from qa_hooks.features import FeatureExtractor
from qa_hooks.functional.neighbours import Bank, nearest_neighbours, prepare_bank
from qa_hooks.images import Range
from qa_hooks.scorers.giqa.feature_scorer import FeatureScorer

WANTED = 40  # images in the bank
COPIES = 3  # of an image, itself counted, that the bank may hold
SAME = 1e-4  # of the distance to the next image: features of one image in two batches differ by less
VARIANTS = {"paper": "euclidean", "official_code": "l1"}


class KNNScorer(FeatureScorer):
    """Inverse squared distances to the k nearest real images; the further an image is from all of them, the lower.

    An image that is one of the real images is scored without itself.

    SRCC .58 with people's ratings of five distortions together in `efficientnet_lite0-middle`, the features to
    take for photographs, and .17 in six stages: docs/judges.md.

    Args:
        extractor: from `create_extractor`, or its name.
        k: neighbours; 1 for FFHQ and Cityscapes, 3500 for 200,000 images of LSUN in the paper.
        variant: "paper" (Eq. 7), or "official_code", whose distances are L1 and not squared.
        value_range: what the numbers of the images mean.

    Raises:
        ValueError: unknown options; when fitting: fewer images than neighbours, non-finite features.

    Example:
        >>> scorer = KNNScorer("random").fit(torch.rand(60, 3, 16, 16))
        >>> bool((scorer(torch.rand(5, 3, 16, 16)) > 0).all())
        True
    """

    name = "giqa_knn"
    fitted = ("bank",)
    bank: Tensor

    def __init__(
        self,
        extractor: FeatureExtractor | str | Mapping[str, Any],
        k: int = 1,
        *,
        variant: str = "paper",
        value_range: Range = (0.0, 1.0),
    ) -> None:
        super().__init__(extractor, value_range=value_range)
        if variant not in VARIANTS:
            raise ValueError(f"variant must be one of {tuple(VARIANTS)}, got {variant!r}")
        self.k, self.variant = check_count("k", k), variant
        self._prepared: Bank | None = None

    def own_options(self) -> dict[str, Any]:
        return {"k": self.k, "variant": self.variant}

    def fit_tensors(self, values: Tensor, like: FeatureScorer | None) -> dict[str, Tensor]:
        if len(values) < self.k:
            raise ValueError(f"k={self.k} neighbours need as many images in the bank, got {len(values)}")
        wanted = max(WANTED, 2 * self.k)
        if len(values) < wanted:
            warn(
                f"{self.name} has {len(values)} real images for k={self.k}, and wants at least {wanted}: with fewer "
                "their distances say little of how real images lie"
            )
        if like is None and len(values) > 1 and bool((values == values[0]).all()):
            raise ValueError(f"the features of all {len(values)} images are the same: there is nothing to fit")
        return {"bank": values.clone()}

    def shapes(self, tensors: dict[str, Tensor], dim: int) -> dict[str, tuple[int, ...]]:
        return {"bank": (max(self.k, len(tensors["bank"])), dim)}

    def score_rows(self, features: Tensor) -> Tensor:
        return self._scores(features, exclude_self=False)

    def own_scores(self) -> Tensor:
        """Scores `(m,)` of the bank's images, each without itself; what real images score."""
        self._check_fitted()
        return self._scores(self.bank, exclude_self=True)

    def _scores(self, features: Tensor, *, exclude_self: bool) -> Tensor:
        if self._prepared is None or self._prepared.values is not self.bank:
            self._prepared = prepare_bank(self.bank)
        asked = max(self.k, min(self.k + COPIES, len(self.bank) - exclude_self))
        distances, indices = nearest_neighbours(
            features, self._prepared, asked, metric=VARIANTS[self.variant], exclude_self=exclude_self
        )
        copies = distances.detach() < SAME * distances.detach()[:, -1:]
        order = torch.argsort(copies.int(), dim=1, stable=True)[:, : self.k]
        distances, indices, counted = (part.gather(1, order) for part in (distances, indices, ~copies))
        if self.variant == "paper":
            inverse = 1 / (distances.square() + 1e-12)
        else:
            step = max(1, (1 << 22) // (self.k * features.shape[1]))
            parts = zip(features.split(step), indices.split(step), strict=True)
            sums = [(part[:, None] - self.bank[found] + 1e-6).abs().sum(2) for part, found in parts]
            inverse = self.k / torch.cat(sums)
        return (counted * inverse).sum(1) / counted.sum(1)

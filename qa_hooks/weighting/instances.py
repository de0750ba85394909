"""Instance selection: train a GAN on the dense part of the data only (DeVries, Drozdzal, Taylor, NeurIPS 2020).

    subset = select_instances(dataset, GMMScorer(extractor, components=1).fit(dataset), keep=0.5)
    print(subset.report.after.recall)       # what is left of the data's variety

Real images that lie where few others do are dropped: a generator of limited size gains more on the rest than it loses.
"""

from __future__ import annotations

from typing import Any

from torch.utils.data import Dataset, Subset

from qa_hooks._base.checks import warn
from qa_hooks._base.isolation import isolated
from qa_hooks._base.random import seed_everything
from qa_hooks._base.text import plural
from qa_hooks.features import FeatureExtractor, Features
from qa_hooks.scorers.scorer import Scorer
from qa_hooks.weighting.picker import Picked, pick


class SelectedInstances(Subset[Any]):
    """The kept part of a dataset, as a `Subset`.

    Attributes:
        dataset, indices: as in `Subset`; the indices ascend.
        report: scores of all images and what the selection does to recall; see `Picked`.
    """

    def __init__(self, dataset: Dataset[Any], report: Picked) -> None:
        super().__init__(dataset, report.indices.tolist())
        self.report = report


def select_instances(
    dataset: Dataset[Any],
    scorer: Scorer,
    *,
    keep: float = 0.5,
    features: Features | None = None,
    extractor: FeatureExtractor | None = None,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = True,
) -> SelectedInstances:
    """Keep the images of a training set that score best.

    Images are read through the dataset's own transforms. Random ones are drawn from `seed`, and the caller's random
    state stays as it is; a dataset without augmentation gives cleaner scores, and its indices fit the other.

    Args:
        dataset: map-style; items are images in the scorer's `value_range`, or tuples or mappings that hold one.
        scorer: the paper uses the log-likelihood of one Gaussian in ImageNet features, `GMMScorer(..., components=1)`.
        keep: share in (0, 1]; the paper's best lie between 0.4 and 0.6.
        features, extractor: for the recall; the scorer's own extractor is the default.
        batch_size, progress: as in `pick`.
        seed: of random transforms and of the random draw in the report.

    Raises:
        TypeError: a dataset without positions.
        ValueError: as in `pick`.

    Example:
        >>> import torch
        >>> from qa_hooks.scorers import FunctionScorer
        >>> brightness = FunctionScorer(lambda x: x.mean((1, 2, 3)), name="brightness", higher_is_better=True)
        >>> dataset = torch.utils.data.TensorDataset(torch.linspace(0, 1, 4)[:, None, None, None].expand(4, 3, 8, 8))
        >>> select_instances(dataset, brightness, keep=0.5).indices
        [2, 3]
    """
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise TypeError(
            f"dataset must have positions (__getitem__ and __len__), {type(dataset).__name__} has none; of a "
            "DataLoader pass its .dataset"
        )
    with isolated():
        seed_everything(seed)
        report = pick(
            dataset,
            scorer,
            keep=keep,
            features=features,
            extractor=extractor,
            batch_size=batch_size,
            seed=seed,
            progress=progress,
        )
    best = report.scores[report.order[0]]
    tied = int((report.scores == best).sum())
    if tied > max(1, len(report.scores) // 10):
        warn(
            f"{tied} of {plural(len(report.scores), 'image')} have the same best score, so among them position "
            "decides: take a score that has no largest value, such as the raw one for a calibrated scorer"
        )
    return SelectedInstances(dataset, report)

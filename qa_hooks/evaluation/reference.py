"""Statistics of the real images: moments of their features and some feature rows, on disk if wanted."""

from __future__ import annotations

import functools
import weakref
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qa_hooks._base.checks import warn
from qa_hooks._base.files import check_writable, read_safetensors, write_safetensors
from qa_hooks._base.processes import any_rank, broadcast_tensors, rank, together
from qa_hooks._base.random import permutation
from qa_hooks.evaluation.comparable import shapes_seen
from qa_hooks.features import FeatureExtractor, extract_features
from qa_hooks.features.moments import Moments
from qa_hooks.functional.frechet import frechet_factor
from qa_hooks.functional.kid import kernel_sums
from qa_hooks.images import Range
from qa_hooks.sources.batches import Source, warn_left_out
from qa_hooks.sources.fingerprint import data_fingerprint, fixed_random

FORMAT = "qa_hooks.reference"
FEWEST_KEPT = 2048  # features of real images that are kept, of data that has so many

# What somebody in this process holds: monitors of the same images and features share it.
_KNOWN: weakref.WeakValueDictionary[tuple[str, str, int], Reference] = weakref.WeakValueDictionary()


@dataclass(frozen=True, eq=False)
class Reference:
    """Statistics of the real images.

    Attributes:
        count: real images.
        mean, covariance: of all their features, `(d,)` and `(d, d)` float64.
        rows: `(m, d)` float32, the features of some of them, drawn with a fixed seed and in random order, so that the
            first ones are a random choice too.
        data: the fingerprint of the images.
        extractor: the fingerprint of the extractor.
        shapes: `(k, 4)` int64: channels, height, width, and how many images have them; empty where it is not known.
    """

    count: int
    mean: Tensor
    covariance: Tensor
    rows: Tensor
    data: str
    extractor: str
    shapes: Tensor = field(default_factory=lambda: torch.zeros(0, 4, dtype=torch.int64, device="cpu"))

    @classmethod
    def of(cls, features: Tensor, *, rows: Tensor | None = None, extractor: str = "", **facts: Any) -> Reference:
        """The statistics of features `(n, d)`; `rows` are the rows to keep, by default all.

        Raises:
            ValueError: fewer than two rows.
        """
        if len(features) < 2:
            raise ValueError(f"the statistics of real images need at least 2 of them, got {len(features)}")
        moments = Moments.of(features)
        kept = features if rows is None else rows
        facts.setdefault("data", "")
        return cls(len(features), moments.mean(), moments.covariance(), kept, extractor=extractor, **facts)

    @functools.cached_property
    def factor(self) -> Tensor:
        """A factor of the covariance, computed once for `frechet_distance`."""
        return frechet_factor(self.covariance)

    def kernel_sums(self, count: int) -> Tensor:
        """`functional.kid.kernel_sums` of the first `count` rows, computed once for each count."""
        if count not in self._sums:
            self._sums[count] = kernel_sums(self.rows[:count])
        return self._sums[count]

    @functools.cached_property
    def _sums(self) -> dict[int, Tensor]:
        return {}

    def to(self, device: torch.device) -> Reference:
        """The same on another device (covariances stay where float64 is)."""
        double = torch.device("cpu") if device.type == "mps" else device
        moments = self.mean.to(double), self.covariance.to(double)
        return replace(self, mean=moments[0], covariance=moments[1], rows=self.rows.to(device))

    def save(self, path: Path) -> None:
        """Write safetensors; the file appears whole or not at all. `OSError` says why it cannot."""
        metadata = {"format": FORMAT, "count": str(self.count), "data": self.data, "extractor": self.extractor}
        write_safetensors(path, self._tensors(), metadata)

    def _check_shapes(self) -> None:
        """`ValueError` where the parts do not fit each other."""
        d = self.rows.shape[-1]
        found = [tuple(part.shape) for part in (self.mean, self.covariance, self.rows, self.shapes)]
        if found != [(d,), (d, d), (len(self.rows), d), (len(self.shapes), 4)] or not len(self.rows) <= self.count > 1:
            raise ValueError(f"{self.count} images, and a mean, covariance, rows and shapes of {found}")

    def _tensors(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "covariance": self.covariance, "rows": self.rows, "shapes": self.shapes}

    @classmethod
    def load(cls, path: Path) -> Reference:
        """Read what `save` wrote; `ValueError` names a file that is something else, or broken."""
        tensors, facts = read_safetensors(path, "does not hold a reference", format=FORMAT)
        try:
            no_shapes = torch.zeros(0, 4, dtype=torch.int64, device="cpu")
            tensors.setdefault("shapes", no_shapes)  # files of before have none
            loaded = cls(int(facts["count"]), data=facts["data"], extractor=facts["extractor"], **tensors)
            loaded._check_shapes()
            return loaded
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} does not hold a reference: {error}") from error


def kept_rows(n: int) -> int:
    """How many real images' features n generated images are compared with by KID, where there are so many.

    Example:
        >>> kept_rows(60), kept_rows(10_000)
        (2048, 10000)
    """
    return max(n, FEWEST_KEPT)


def make_reference(
    extractor: FeatureExtractor,
    real: Source,
    *,
    rows: int = FEWEST_KEPT,
    value_range: Range = (0.0, 1.0),
    batch_size: int = 64,
    cache: str | Path | None = None,
    progress: bool = True,
) -> Reference:
    """Statistics of the real images, from the folder `cache` where they are there already.

    The file's name holds the fingerprints of images and extractor, so other images are another file. Statistics that
    somebody in this process still holds (another monitor of the same images) are not computed again. On several
    processes the work is shared, all of them must call it, and all get the same. While it is computed the features of
    all real images are in memory, `4 d` bytes each.

    Args:
        extractor: from `create_extractor`.
        real: anything that `image_batches` takes, except an iterator, which could be read only once. Of a loader that
            shuffles or divides a dataset the dataset is taken, once and on every process alike.
        rows: how many images' features to keep besides the moments, `kept_rows(n)` for n generated images: KID is
            against no more than these.
        value_range: what the numbers of floating images mean.
        batch_size: images at a time.
        cache: the folder; None keeps nothing.
        progress: show a bar (rank 0, terminals only).

    Raises:
        ValueError: fewer than two images, broken ones, a folder that cannot be written.

    Example:
        >>> from qa_hooks.features import create_extractor
        >>> make_reference(create_extractor("random"), torch.rand(5, 3, 16, 16)).rows.shape
        torch.Size([5, 448])
    """
    source, path = _dataset_of(real), None
    with together():
        data = data_fingerprint(source, value_range)
        if cache is not None:
            check_writable(cache, name="cache")
            path = Path(cache) / f"reference-{extractor.name}-{data}-{extractor.fingerprint}-{rows}.safetensors"
    found = _from_cache(path, data, extractor.fingerprint)
    if found is not None:
        return found
    reference = _KNOWN.get((data, extractor.fingerprint, rows))
    missing = any_rank(reference is None)
    if reference is None or missing:
        reference = _computed(
            extractor, source, data, rows, value_range=value_range, batch_size=batch_size, progress=progress
        )
        _KNOWN[data, extractor.fingerprint, rows] = reference
    if path is not None and rank() == 0:
        try:
            reference.save(path)
        except OSError as error:
            warn(f"the statistics of the real images cannot be kept: {error}")
    return reference


def _computed(extractor: FeatureExtractor, source: Source, data: str, rows: int, **options: Any) -> Reference:
    failures: dict[int, str] = {}
    with fixed_random(source), shapes_seen(extractor) as shapes:  # the images that the fingerprint is of
        features = extract_features(extractor, source, quantised=True, failures=failures, **options)
    warn_left_out(failures, "real image")
    if len(features) > 1 and not bool((features.values != features.values[:1]).any()):
        raise ValueError(
            f"the features of all {len(features)} real images are the same: are they one image, or does "
            f"{extractor.name} not look at them? No distance can be told from them"
        )
    order = permutation(len(features), 0)
    chosen = features.values[order[:rows]]
    return Reference.of(features.values, rows=chosen, data=data, extractor=extractor.fingerprint, shapes=shapes[0])


def _from_cache(path: Path | None, data: str, extractor: str) -> Reference | None:
    """What rank 0 finds, on every process."""
    found = None
    if path is not None and rank() == 0 and path.is_file():
        try:
            found = Reference.load(path)
        except ValueError as error:
            warn(f"{error}; it is computed again")
        else:
            found = found if len(found.shapes) else None  # of before: it is made again, with the sizes
    if not any_rank(found is not None):
        return None
    own = (
        {}
        if found is None
        else {**found._tensors(), "count": torch.tensor(found.count, device="cpu", dtype=torch.int64)}
    )
    got = broadcast_tensors(own)
    return Reference(int(got.pop("count")), data=data, extractor=extractor, **got)


def _dataset_of(real: Source) -> Source:
    """A loader's dataset, unless its sampler chooses: of a distributed one each process sees a part, padded."""
    from torch.utils.data import DataLoader, DistributedSampler, RandomSampler, SequentialSampler

    everything = (SequentialSampler, RandomSampler, DistributedSampler)
    if isinstance(real, DataLoader) and isinstance(real.sampler, everything) and hasattr(real.dataset, "__len__"):
        return real.dataset
    return real

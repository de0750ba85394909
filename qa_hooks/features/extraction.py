"""Features of many images: streamed, shared out over the processes, kept with the fingerprint of what made them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from qa_hooks._base.files import check_writable, read_safetensors, write_safetensors
from qa_hooks.features.extractor import FeatureExtractor
from qa_hooks.images import Range, RangeGuard, check_range, to_uint8, to_unit
from qa_hooks.sources.batches import Source, has_positions
from qa_hooks.sources.measuring import measure_source

FORMAT = "qa_hooks.features"


@dataclass(frozen=True, eq=False)
class Features:
    """Rows of features and where they come from.

    Attributes:
        values: `(n, dim)` float32 on the CPU.
        fingerprint: of the extractor.
        indices: `(n,)` positions in the source, ascending; images that could not be read are missing.
    """

    values: Tensor
    fingerprint: str
    indices: Tensor

    def __len__(self) -> int:
        return int(self.values.shape[0])

    def __getitem__(self, rows: Tensor | slice) -> Features:
        """Some of the rows."""
        return Features(self.values[rows], self.fingerprint, self.indices[rows])

    def save(self, path: str | Path) -> None:
        """Write safetensors; the file appears whole or not at all."""
        check_writable(Path(path).parent, name="path")
        tensors = {"values": self.values, "indices": self.indices}
        write_safetensors(path, tensors, {"format": FORMAT, "fingerprint": self.fingerprint})

    @classmethod
    def load(cls, path: str | Path) -> Features:
        """Read what `save` wrote; `ValueError` names a file that is something else, or broken."""
        tensors, metadata = read_safetensors(path, "does not hold features", format=FORMAT)
        try:
            return cls(tensors["values"], metadata["fingerprint"], tensors["indices"])
        except KeyError as error:
            raise ValueError(f"{path} does not hold features: it lacks {error}") from error


def extract_features(
    extractor: FeatureExtractor,
    source: Source,
    *,
    batch_size: int = 64,
    value_range: Range = (0.0, 1.0),
    generated: bool = False,
    quantised: bool = False,
    progress: bool = True,
    failures: dict[int, str] | None = None,
) -> Features:
    """Features of every image of a source, in its order, on every process.

    The work on a tensor, a folder or a dataset is divided among the processes; of a loader each process works through
    its own and the parts follow one another by rank. With torch's `DistributedSampler` the order is the dataset's, and
    images that pad the last batch count once; padding that other loaders add cannot be told, so give their dataset.
    The caller's random state, gradient mode and networks are left as they are.

    Args:
        extractor: from `create_extractor`.
        source: anything that `image_batches` takes.
        batch_size: images at a time.
        value_range: what the numbers of floating images mean; uint8 images are [0, 255].
        generated: the images come from a model, so values outside the range are clamped and warned of at most; real
            images outside the range raise.
        quantised: round floating images to 8 bits first, as files would: FID is defined on those.
        progress: show a bar (rank 0, terminals only).
        failures: collects `{position: message}` of files that cannot be read (of this process's share); without it
            the first one raises.

    Raises:
        ValueError: nothing in the source, broken files, images outside the range, features that are not finite.
        RuntimeError: another process failed; the message is its own.

    Example:
        >>> from qa_hooks.features import create_extractor
        >>> len(extract_features(create_extractor("random"), torch.rand(5, 3, 16, 16)))
        5
    """
    to_clamped = _guard(check_range(value_range), generated, quantised)

    def measure(images: Tensor) -> Tensor:
        features: Tensor = extractor(to_clamped(images.to(extractor.mean.device)))
        if not bool(torch.isfinite(features).all()):
            raise ValueError(f"{extractor.name} gives features that are not finite")
        return features

    found = measure_source(
        source,
        measure,
        what=f"features ({extractor.name})",
        nothing=torch.zeros(0, extractor.dim, dtype=torch.float32, device="cpu"),
        batch_size=batch_size,
        progress=progress,
        failures=failures,
    )
    indices = found.positions if has_positions(source) else torch.arange(len(found.rows), device="cpu")
    return Features(found.rows, extractor.fingerprint, indices)


def _guard(value_range: Range, generated: bool, quantised: bool) -> Callable[[Tensor], Tensor]:
    """Checks the first batches and maps all of them to [0, 1], or to uint8."""
    check = RangeGuard(value_range)

    def to_clamped(images: Tensor) -> Tensor:
        check(**{"predictions" if generated else "data": {"images": images}})
        return to_uint8(images, value_range) if quantised else to_unit(images, value_range).clamp(0, 1)

    return to_clamped

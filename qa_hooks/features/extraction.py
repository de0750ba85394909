"""Features of many images: streamed, shared out over the processes, kept with the fingerprint of what made them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from qa_hooks._base.checks import check_size, warn
from qa_hooks._base.files import check_writable, read_safetensors, write_safetensors
from qa_hooks._base.headers import parse_header
from qa_hooks._base.processes import gather_rows
from qa_hooks.features.extractor import FeatureExtractor
from qa_hooks.images import Range, RangeGuard, check_range, to_uint8, to_unit
from qa_hooks.sources.batches import Source, has_positions
from qa_hooks.sources.measuring import measure_source

FORMAT = "qa_hooks.features"
UNSTEADY = 0.05  # of a vector's length: far above what half precision rounds


@dataclass(frozen=True, eq=False)
class Features:
    """Rows of features and where they come from.

    Attributes:
        values: `(n, dim)` float32 on the CPU.
        fingerprint: of the extractor.
        indices: `(n,)` positions in the source, ascending; images that could not be read are missing.
        size: (height, width) of the images, where all had one.
    """

    values: Tensor
    fingerprint: str
    indices: Tensor
    size: tuple[int, int] | None = None

    @classmethod
    def of(cls, values: Tensor, fingerprint: str) -> Features:
        """The rows `(n, dim)` of images 0 to n - 1."""
        return cls(values.cpu(), fingerprint, torch.arange(len(values), device="cpu"))

    def __len__(self) -> int:
        return int(self.values.shape[0])

    def __getitem__(self, rows: Tensor | slice) -> Features:
        """Some of the rows."""
        return Features(self.values[rows], self.fingerprint, self.indices[rows], self.size)

    def save(self, path: str | Path) -> None:
        """Write safetensors; the file appears whole or not at all."""
        check_writable(Path(path).parent, name="path")
        tensors = {"values": self.values, "indices": self.indices}
        metadata = {"format": FORMAT, "fingerprint": self.fingerprint}
        if self.size is not None:
            metadata["size"] = json.dumps(self.size)
        write_safetensors(path, tensors, metadata)

    @classmethod
    def load(cls, path: str | Path) -> Features:
        """Read what `save` wrote; `ValueError` names a file that is something else, or broken."""
        tensors, metadata = read_safetensors(path, "does not hold features", format=FORMAT)
        try:
            values, indices = tensors["values"], tensors["indices"]
            size = check_size(parse_header(metadata["size"])) if "size" in metadata else None
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} does not hold features: {error!r} in its header") from error
        if values.ndim != 2 or indices.shape != values.shape[:1] or not bool(values.isfinite().all()):
            raise ValueError(f"{path} does not hold features: expected finite values (n, dim) and indices (n,)")
        return cls(values, metadata["fingerprint"], indices, size)


def extract_features(
    extractor: FeatureExtractor,
    source: Source,
    *,
    batch_size: int = 64,
    value_range: Range = (0.0, 1.0),
    generated: bool = False,
    quantised: bool = False,
    size: tuple[int, int] | None = None,
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
        quantised: round floating images to 8 bits first, as files would: FID is defined on 8 bits.
        size: (height, width) that images are brought to before; None leaves theirs.
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
    to_clamped, sizes = _guard(check_range(value_range), generated, quantised, size), set[tuple[int, int]]()

    def measure(images: Tensor) -> Tensor:
        images = to_clamped(images.to(extractor.mean.device))
        first = not sizes
        sizes.add((images.shape[2], images.shape[3]))
        features: Tensor = extractor(images)
        if not bool(torch.isfinite(features).all()):
            raise ValueError(f"{extractor.name} gives features that are not finite")
        if first and extractor.spec is None and len(images) > 1:  # a network of the user's
            _look_at_one_alone(extractor, images, features)
        return features

    found = measure_source(
        source,
        measure,
        what=f"features ({extractor.name})",
        nothing=lambda: torch.zeros(0, extractor.dim, dtype=torch.float32, device="cpu"),
        batch_size=batch_size,
        progress=progress,
        failures=failures,
    )
    indices = found.positions if has_positions(source) else torch.arange(len(found.rows), device="cpu")
    seen = gather_rows(torch.tensor(sorted(sizes), dtype=torch.int64, device="cpu").reshape(-1, 2)).unique(dim=0)
    one = (int(seen[0, 0]), int(seen[0, 1])) if len(seen) == 1 else None
    return Features(found.rows, extractor.fingerprint, indices, one)


def _look_at_one_alone(extractor: FeatureExtractor, images: Tensor, features: Tensor) -> None:
    """Warn when an image has other features alone than in its batch."""
    alone, among = extractor(images[:1])[0], features[0]
    if float((alone - among).norm()) > UNSTEADY * float(among.norm()):
        warn(
            f"{extractor.name} gives an image other features alone than in a batch: it draws random numbers, or mixes "
            "the images of a batch, so numbers made of its features depend on chance or on batch_size"
        )


def _guard(
    value_range: Range, generated: bool, quantised: bool, size: tuple[int, int] | None
) -> Callable[[Tensor], Tensor]:
    """Checks the first batches and maps all of them to [0, 1] or to uint8, at the given size."""
    check = RangeGuard(value_range)

    def to_clamped(images: Tensor) -> Tensor:
        check(**{"predictions" if generated else "data": {"images": images}})
        if size is not None and images.shape[2:] != size:
            unit = F.interpolate(to_unit(images, value_range), size, mode="bilinear", antialias=True).clamp(0, 1)
            return to_uint8(unit) if quantised else unit
        return to_uint8(images, value_range) if quantised else to_unit(images, value_range).clamp(0, 1)

    return to_clamped

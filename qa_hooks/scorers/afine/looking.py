"""Statistics of pictures in an extractor's stages: all that the heads see, taken once, before they are trained."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from qa_hooks._base.files import check_writable, read_safetensors, write_safetensors
from qa_hooks._base.hashing import fingerprint
from qa_hooks._base.progress import counted
from qa_hooks.features import FeatureExtractor
from qa_hooks.images import load_image
from qa_hooks.scorers.afine.comparisons import Comparisons, Picture
from qa_hooks.scorers.afine.heads import Level, similarities

FORMAT = "qa_hooks.afine_statistics"
KEPT = 8  # pictures whose levels stay in memory


class Statistics(NamedTuple):
    """Of each item: mean and variance of its levels `(n, 2 C)`, and its similarities to its reference `(n, 2 C)`."""

    moments: Tensor
    similar: Tensor
    widths: tuple[int, ...]


def levels_of(extractor: FeatureExtractor, images: Tensor) -> list[Level]:
    """The image itself and the extractor's stages, as levels."""
    unit = images.expand(-1, 3, -1, -1)
    return [Level.of(unit.flatten(2)), *(Level.of(maps.flatten(2)) for maps in extractor.stages(images))]


def moments(levels: list[Level]) -> Tensor:
    """Means of all levels, then variances, `(N, 2 C)`."""
    return torch.cat([*(level.mean for level in levels), *(level.variance for level in levels)], 1)


@torch.no_grad()
def look(
    extractor: FeatureExtractor, items: Comparisons, *, cache: str | Path | None = None, progress: bool = True
) -> Statistics:
    """Take the statistics of all items, one reference at a time.

    Args:
        extractor: with stages.
        items: the comparisons.
        cache: a folder that keeps what was taken; a run that was cut off goes on from there.
        progress: show a bar when stderr is a terminal.

    Raises:
        ValueError: a picture that cannot be read, or has another size than its reference.
    """
    groups: dict[int, list[int]] = {}
    for item, reference in enumerate(items.reference.tolist()):
        groups.setdefault(reference, []).append(item)
    if cache is not None:
        check_writable(cache, name="cache")
    rows: dict[int, tuple[Tensor, Tensor]] = {}
    widths: tuple[int, ...] = ()
    looked, what = _Looked(extractor, items.pictures), f"statistics ({extractor.name})"
    for reference, members in counted(groups.items(), what, unit="reference", shown=progress):
        tests = items.test[members].tolist()
        shown = [_name(items.pictures[place]) for place in (reference, *tests)]
        with _kept(cache, fingerprint(extractor.fingerprint, *shown)) as found:
            if not found:
                found.update(_one(looked, reference, tests))
            widths = tuple(found["widths"].tolist())
            for row, item in enumerate(members):
                rows[item] = found["moments"][row], found["similar"][row]
    ordered = [rows[item] for item in range(len(items.test))]
    return Statistics(torch.stack([row[0] for row in ordered]), torch.stack([row[1] for row in ordered]), widths)


class _Looked:
    """Levels of the pictures that were looked at last: the references of one ladder share theirs."""

    def __init__(self, extractor: FeatureExtractor, pictures: Sequence[Picture]) -> None:
        self.extractor, self.pictures = extractor, pictures
        self.kept: dict[int, list[Level]] = {}

    def __getitem__(self, place: int) -> list[Level]:
        found = self.kept.pop(place, None)
        if found is None:
            image = _read(self.pictures[place])[None].to(self.extractor.mean.device)
            found = levels_of(self.extractor, image.float() / 255)
        self.kept[place] = found
        if len(self.kept) > KEPT:
            self.kept.pop(next(iter(self.kept)))
        return found


def _one(looked: _Looked, reference: int, tests: list[int]) -> dict[str, Tensor]:
    own = looked[reference]
    rows: list[tuple[Tensor, Tensor]] = []
    for test in tests:
        levels = looked[test]
        if any(a.centred.shape != b.centred.shape for a, b in zip(own, levels, strict=True)):
            called = [str(looked.pictures[place]) for place in (reference, test)]
            sizes = [tuple(_read(looked.pictures[place]).shape) for place in (reference, test)]
            raise ValueError(f"{called[0]} {sizes[0]} and {called[1]} {sizes[1]} are compared: bring them to one size")
        rows.append((moments(levels).cpu(), similarities(own, levels).cpu()))
    widths = torch.tensor([level.mean.shape[1] for level in own], dtype=torch.int64, device="cpu")
    return {"moments": torch.cat([r[0] for r in rows]), "similar": torch.cat([r[1] for r in rows]), "widths": widths}


def _read(picture: Picture) -> Tensor:
    """uint8 `(3, H, W)`."""
    image = load_image(picture) if isinstance(picture, Path) else picture
    if image.ndim != 3 or image.dtype != torch.uint8 or image.shape[0] not in (1, 3):
        raise ValueError(f"a picture must be uint8 (3, H, W), got {image.dtype} {tuple(image.shape)}")
    return image.expand(3, -1, -1)


def _name(picture: Picture) -> str | Tensor:
    if not isinstance(picture, Path):
        return picture
    status = picture.stat()
    return f"{picture.resolve()} {status.st_size} {status.st_mtime_ns}"


@contextlib.contextmanager
def _kept(cache: str | Path | None, key: str) -> Iterator[dict[str, Tensor]]:
    """What is kept under a key, to be filled where there is nothing yet; written at the end."""
    if cache is None:
        yield {}
        return
    path = Path(cache) / f"{key}.safetensors"
    found = dict(read_safetensors(path, "holds no statistics", format=FORMAT)[0]) if path.is_file() else {}
    new = not found
    yield found
    if new:
        write_safetensors(path, found, {"format": FORMAT})

"""One crop out of all candidates of a sample, and the low-resolution image of the same place."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from qa_hooks.data.candidates import CandidateSet
from qa_hooks.data.low_resolution import Degradation
from qa_hooks.images import load_image

# Low-resolution pixels around a crop that the degradation sees too, so that crops have no edges of their own.
MARGIN = 4


class AlignedCrop:
    """A set of candidates cut to one place; files are read when they are needed.

    Args:
        candidates: the set.
        scale: of the super-resolution; crops begin at its multiples.
        crop: side of the crop, a multiple of `scale`; None for the whole image.
        place: `(2,)` in [0, 1), where the crop lies: from the top and from the left.

    Raises:
        ValueError: sizes that do not fit; the messages name the files.
    """

    def __init__(self, candidates: CandidateSet, scale: int, crop: int | None, place: Tensor) -> None:
        self.set, self.scale = candidates, scale
        self.original = _read(candidates.paths[0])
        self._enhanced: dict[int, Tensor] = {}
        height, width = self.original.shape[-2:]
        if crop is None:
            if height % scale or width % scale:
                raise ValueError(
                    f"{candidates.paths[0]} is {height}x{width}, which scale={scale} does not divide: pass crop="
                )
            self.top = self.left = 0
            self.height, self.width = height, width
            return
        if crop > height // scale * scale or crop > width // scale * scale:
            raise ValueError(f"{candidates.paths[0]} is {height}x{width}, too small for crop={crop} with scale={scale}")
        steps = [(side // scale - crop // scale + 1) for side in (height, width)]
        self.top, self.left = (
            min(int(at * step), step - 1) * scale for at, step in zip(place.tolist(), steps, strict=True)
        )
        self.height = self.width = crop

    def image(self, number: int) -> Tensor:
        """`(3, H, W)`: a candidate's crop."""
        path = self.set.paths[number]
        whole = self.original
        if number and path is not None:
            if number not in self._enhanced:
                self._enhanced[number] = _read(path)
            whole = self._enhanced[number]
            if whole.shape != self.original.shape:
                raise ValueError(
                    f"the candidates of one set must have one size: {self.set.paths[0]} is {_size(self.original)}, "
                    f"{path} is {_size(whole)}"
                )
        return _to_float(whole[:, self.top : self.top + self.height, self.left : self.left + self.width])

    def low_resolution(self, source: Path | Degradation, generator: torch.Generator) -> Tensor:
        """`(3, h, w)`: cut out of a file, or made from the original."""
        scale = self.scale
        height, width = self.height // scale, self.width // scale
        top, left = self.top // scale, self.left // scale
        if isinstance(source, Path):
            whole = _read(source)
            if tuple(side // scale for side in self.original.shape[-2:]) != tuple(whole.shape[-2:]):
                raise ValueError(
                    f"{source} is {_size(whole)}, but {self.set.paths[0]} is {_size(self.original)} and scale={scale}"
                )
            return _to_float(whole[:, top : top + height, left : left + width])
        above, before = min(MARGIN, top), min(MARGIN, left)
        below = min(MARGIN, self.original.shape[-2] // scale - top - height)
        after = min(MARGIN, self.original.shape[-1] // scale - left - width)
        rows = slice((top - above) * scale, (top + height + below) * scale)
        columns = slice((left - before) * scale, (left + width + after) * scale)
        made = source(_to_float(self.original[:, rows, columns]), scale, generator)
        expected = (3, above + height + below, before + width + after)
        if not isinstance(made, Tensor) or tuple(made.shape) != expected:
            got = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
            raise ValueError(f"the degradation must give {expected} for scale={scale}, got {got}")
        return made[:, above : above + height, before : before + width]


def _read(path: Path | None) -> Tensor:
    """`(3, H, W)` uint8."""
    if path is None:
        raise ValueError("a set must have its original")
    return load_image(path).expand(3, -1, -1)


def _to_float(image: Tensor) -> Tensor:
    return image.float() / 255


def _size(image: Tensor) -> str:
    return "x".join(map(str, image.shape[-2:]))

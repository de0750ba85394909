"""What the published A-FINE and the ones that are trained here have in common: a score with its terms, and a cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qa_hooks._base.hashing import fingerprint
from qa_hooks.images import Range, as_tensor, check_images, check_pair
from qa_hooks.scorers.afine.heads import BOTTOM, TOP, Heads, Level, Terms
from qa_hooks.scorers.scorer import Scorer

PARTS: dict[str, Range | None] = {
    "score": (0.0, 100.0),
    "distance": None,
    "fidelity": (BOTTOM, TOP),
    "naturalness": (BOTTOM, TOP),
    "log_lambda": None,
    "better_than_reference": (0.0, 1.0),
}


class Described(NamedTuple):
    """References that were looked at once.

    Attributes:
        levels: their feature levels.
        naturalness: `(N,)`.
        shape: `(C, H, W)` of each reference.
        whose: fingerprint of the networks that looked at them; those of another scorer mean nothing to this one.
    """

    levels: list[Level]
    naturalness: Tensor
    shape: tuple[int, ...]
    whose: str

    def rows(self, keep: slice | Tensor) -> Described:
        """Some of the references, by a slice, a mask or indices."""
        return self._replace(levels=[level.rows(keep) for level in self.levels], naturalness=self.naturalness[keep])


class AdaptiveScorer(Scorer):
    """Base of the A-FINE scorers: fidelity to the reference and naturalness, weighed by which of the two is better.

    A subclass writes `levels` and `heads`.

    Args:
        part: what a call returns: "score" (0 to 100), "distance" (D, unbounded), "fidelity" and "naturalness" (-2 to 2;
            naturalness needs no reference), "log_lambda", or "better_than_reference" (1 or 0, whose mean a monitor
            shows as a share). The first four are lower for better images.
        value_range: what the numbers of the images mean.
    """

    higher_is_better = False
    score_range: Range | None = (0.0, 100.0)
    inputs = frozenset({"reference"})

    def __init__(self, *, part: str = "score", value_range: Range = (0.0, 1.0)) -> None:
        super().__init__(value_range=value_range)
        self._whose: tuple[Any, str] = (None, "")
        self.choose(part)

    def choose(self, part: str) -> None:
        """Return this part of the score from now on.

        Raises:
            ValueError: an unknown part.
        """
        if part not in PARTS:
            raise ValueError(f"part must be one of {', '.join(PARTS)}, got {part!r}")
        self.part, self.score_range = part, PARTS[part]
        self.higher_is_better = part in ("log_lambda", "better_than_reference")
        self.differentiable = part != "better_than_reference"
        self.inputs = frozenset() if part == "naturalness" else frozenset({"reference"})

    @property
    def heads(self) -> Heads:
        """What a subclass writes: the heads, trained."""
        raise NotImplementedError(f"{type(self).__name__} must define heads")

    def levels(self, images: Tensor) -> list[Level]:
        """What a subclass writes: images `(N, C, H, W)` in [0, 1] -> feature levels."""
        raise NotImplementedError(f"{type(self).__name__} must define levels(images)")

    @torch.no_grad()
    def describe(self, reference: Tensor) -> Described:
        """Look at references once, for many calls of `terms` or `against`; there is no gradient to them.

        Args:
            reference: `(N, C, H, W)` in `value_range`.
        """
        reference = check_images("reference", as_tensor(reference), floating=False)
        self._guard(data={"reference": reference})
        levels = self.levels(self._to_unit(reference))
        return Described(levels, self.heads.naturalness(levels), tuple(reference.shape[1:]), self._networks())

    def against(self, images: Tensor, described: Described) -> Tensor:
        """The scores `(N,)` of images in `value_range` against described references: half the work of a plain call.

        Raises:
            TypeError, ValueError: as `terms`.
        """
        return self._part(self.terms(images, described)).float()

    def terms(self, images: Tensor, reference: Tensor | Described) -> Terms:
        """All that the score is made of.

        Args:
            images: `(N, C, H, W)` in `value_range`, with a gradient where they need one.
            reference: like `images`, or from `describe`.

        Raises:
            TypeError, ValueError: no images, or references of another number or size, or described by another scorer.
        """
        images = check_images("images", as_tensor(images), floating=False)
        if isinstance(reference, Described):
            self._check_described(images, reference)
            self._guard(predictions={"images": images})
        else:
            reference = check_images("reference", as_tensor(reference), floating=False)
            check_pair("images", images, "reference", reference)
            self._guard(data={"reference": reference}, predictions={"images": images})
        with torch.autocast(images.device.type, enabled=False):
            if not isinstance(reference, Described):
                return self._compared(self._to_unit(images), self._to_unit(reference))
            return self.heads.terms(self.levels(self._to_unit(images)), reference.levels, reference.naturalness)

    def score(self, images: Tensor, **inputs: Any) -> Tensor:
        if self.part == "naturalness":
            return self.heads.naturalness(self.levels(images))
        return self._part(self._compared(images, inputs["reference"]))

    def options(self) -> dict[str, Any]:
        return {} if self.part == "score" else {"part": self.part}

    def _check_described(self, images: Tensor, described: Described) -> None:
        if len(described.naturalness) != len(images):
            raise ValueError(f"{len(images)} images need as many references, got {len(described.naturalness)}")
        if tuple(images.shape[1:]) != described.shape:
            raise ValueError(
                f"images and their references must have the same shape, got {tuple(images.shape[1:])} and described "
                f"references {described.shape}"
            )
        if not torch.compiler.is_compiling() and described.whose != self._networks():
            raise ValueError(
                f"the references were described by another scorer ({described.whose}) than this {self.name} "
                f"({self._networks()}): call describe(reference) of the scorer that compares"
            )

    def _networks(self) -> str:
        """Fingerprint of all networks, made anew only when one of their tensors is another or has changed."""
        tensors = [value for network in (*self._frozen, self.heads) for value in network.state_dict().values()]
        state = [(value.data_ptr(), 0 if value.is_inference() else value._version) for value in tensors]
        if self._whose[0] != state:
            self._whose = state, fingerprint(*tensors)
        return self._whose[1]

    def _part(self, terms: Terms) -> Tensor:
        found: Tensor = getattr(terms, self.part)
        return found

    def _compared(self, images: Tensor, reference: Tensor) -> Terms:
        if torch.is_grad_enabled() and images.requires_grad and not reference.requires_grad:
            with torch.no_grad():  # what needs no gradient keeps no memory
                other: Sequence[Level] = self.levels(reference)
            test: Sequence[Level] = self.levels(images)
        else:  # one pass of twice the size
            both = self.levels(torch.cat([images, reference]))
            test, other = ([level.rows(part) for level in both] for part in _halves(len(images)))
        return self.heads.terms(test, other, self.heads.naturalness(other))


def _halves(count: int) -> tuple[slice, slice]:
    return slice(0, count), slice(count, None)

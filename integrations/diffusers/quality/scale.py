"""Notices scores of another scale than the training images' had, where no fingerprint tells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from qa_hooks._base.checks import warn

UNLIKE = 10.0  # times larger or smaller than in training


class Units(Protocol):
    """What is known of the training images' scores."""

    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def fingerprints(self) -> tuple[str, ...]: ...
    @property
    def low(self) -> Tensor: ...
    @property
    def high(self) -> Tensor: ...
    @property
    def reference(self) -> bool: ...


def warn_of_scale(known: Units, middle: Tensor, spread: Tensor, fingerprints: Sequence[str]) -> None:
    """One warning where scores without a fingerprint lie or vary as the training images' do not: another scale?

    Scores of [0, 1] where [0, 100] was trained on may well lie within the range of the dial. Then they hardly vary.

    Args:
        known: the units of the dial.
        middle: `(D,)`, the q in the middle of the images that are looked at.
        spread: `(D,)`, the deviation of their q, which is 1 in training; NaN where they are too few.
        fingerprints: of their scorers; where both sides have one, it was compared.
    """
    if known.reference:
        return
    odd = []
    for i, (name, mark) in enumerate(zip(known.names, fingerprints, strict=True)):
        low, high, q, varies = (float(values[i]) for values in (known.low, known.high, middle, spread))
        reach = (high - low) / 2
        if mark and known.fingerprints[i]:
            continue
        if q < low - reach or q > high + reach:
            odd.append(f"{name} lies far outside (q = {q:+.3g} in the middle, {low:+.3g} to {high:+.3g} in training)")
        elif not math.isnan(varies) and not 1 / UNLIKE <= varies <= UNLIKE:
            odd.append(f"{name} has a deviation of {varies:.2g} of the training images'")
    if odd:
        warn(
            f"the scores are unlike those of the training images: {', '.join(odd)}. No fingerprint says that they are "
            "of the same scorer: is their scale another one, or are they raw scores where q is expected, which "
            "adapter.of_images(table, keys) gives?"
        )

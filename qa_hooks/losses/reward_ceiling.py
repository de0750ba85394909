"""A ceiling for a reward: what real images get. Beyond it an image can only become stranger, not better."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from qa_hooks._base.processes import gather_rows, together
from qa_hooks.scorers.scorer import Scorer

REAL_IMAGES = 64


class Ceiling:
    """A level of goodness: given, known by the scorer, or the median of the first real images of all ranks.

    Args:
        ceiling: "real", or a score in the scorer's own direction and numbers.
        scorers: of several, the level is on their common scale.

    Attributes:
        level: a scalar, or None while nothing has been measured.
        seen: `(n,)` the goodness of the real images so far, on the CPU.
    """

    def __init__(self, ceiling: Any, scorers: Sequence[Scorer]) -> None:
        self._given: Tensor | None = None
        self.seen = torch.empty(0, dtype=torch.float32, device="cpu")
        alone = scorers[0] if len(scorers) == 1 else None
        if ceiling == "real" and alone is not None:
            known = getattr(alone, "real_level", None)
            ceiling = ceiling if known is None else float(known)
        if ceiling == "real":
            compared = [s.name for s in scorers if "reference" in s.inputs]
            if compared:
                raise ValueError(
                    f'ceiling="real" has no meaning for {compared[0]}, which compares with a target; give a number'
                )
        elif isinstance(ceiling, bool) or not isinstance(ceiling, Real) or not abs(float(ceiling)) < float("inf"):
            raise ValueError(f'ceiling must be a finite score, "real" or None, got {ceiling!r}')
        else:
            falling = alone is not None and not alone.higher_is_better
            level = -float(ceiling) if falling else float(ceiling)
            self._given = torch.tensor(level, dtype=torch.float32, device="cpu")

    @property
    def level(self) -> Tensor | None:
        if self._given is not None:
            return self._given
        return self.seen.median() if len(self.seen) else None

    @property
    def open(self) -> bool:
        """Whether more real images are wanted."""
        return self._given is None and len(self.seen) < REAL_IMAGES

    def measure(self, goodness: Callable[[], Tensor]) -> None:
        """Take in the goodness `(N,)` of real images; all ranks call it, and all fail when one does."""
        own = torch.empty(0, dtype=torch.float32, device="cpu")
        with together(), torch.no_grad():
            own = goodness().float().cpu()
            if not bool(own.isfinite().all()):
                raise ValueError("the score of a real image is not finite, so it cannot set the ceiling")
        self.seen = torch.cat([self.seen, gather_rows(own)])

"""Where the dial stands: what the next calls of the denoiser are conditioned on."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from qa_hooks._base.checks import check_weight


class Setting(NamedTuple):
    """One setting of the dial.

    Attributes:
        q: `(k, D)`, NaN for missing; one row is for all images.
        scale: of the branch; 0 skips it.
        negative: s of the unconditional rows, which get -s q; None gives them the missing quality.
        guidance: whether half of the rows are unconditional; None reads it off the pipeline.
        once: for the next call alone, as in a training loop.
    """

    q: Tensor
    scale: float = 1.0
    negative: float | None = None
    guidance: bool | None = None
    once: bool = False


class Dial:
    """The settings in force. A plain object that the network's hooks and processors lead to, so that a call which is
    made again in the backward pass finds the setting of its first time.
    """

    def __init__(self) -> None:
        self.next: Setting | None = None
        self.now: Setting | None = None

    def take(self) -> Setting | None:
        """The setting of this call; what was given for one call is used up. None leaves the network as it is."""
        setting, self.next = self.next or self.now, None
        return setting if setting is not None and setting.scale else None


def check_setting(setting: Setting) -> Setting:
    """The setting itself; `ValueError` where its numbers make no sense together."""
    setting = setting._replace(scale=check_weight("scale", setting.scale))
    if setting.guidance not in (None, True, False):
        raise ValueError(f"guidance must be True, False or None, got {setting.guidance!r}")
    if setting.negative is not None:
        check_weight("negative", setting.negative)
        if not setting.scale:
            raise ValueError("negative= needs the branch, and scale=0 switches it off: leave one of the two out")
        if setting.guidance is False:
            raise ValueError("negative= is of the unconditional rows, and guidance=False says that there are none")
        if bool(setting.q.isnan().all()):
            raise ValueError("negative= needs a q to turn round, and none is given")
    return setting


def check_drop(drop: Any) -> tuple[float, float, float]:
    """Three probabilities that add up to at most 1; `ValueError` otherwise."""
    parts = tuple(drop) if isinstance(drop, list | tuple) else ()
    if len(parts) != 3:
        raise ValueError(f"drop must be three probabilities (quality, text, both), got {drop!r}")
    alone, text, both = (check_weight("drop", part) for part in parts)
    if alone + text + both > 1:
        raise ValueError(f"drop must add up to at most 1, got {drop!r}")
    return alone, text, both


def draw_drops(count: int, drop: tuple[float, float, float], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Which rows lose their quality, and which their text: two `(count,)` bool.

    Args:
        count: rows.
        drop: probabilities of losing quality alone, the text alone, and both.
        generator: of the one number that decides for a row.
    """
    alone, text, both = drop
    draw = torch.rand(count, generator=generator, device="cpu", dtype=torch.float32)
    first, second, third = draw < alone, draw < alone + text, draw < alone + text + both
    return first | (third & ~second), third & ~first

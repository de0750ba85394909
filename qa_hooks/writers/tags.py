"""The one place where tags are made."""

from __future__ import annotations

import re

GROUPS = ("train", "eval", "loss", "weight", "images", "perf")


def make_tag(group: str, name: str, stat: str) -> str:
    """`qa_{group}/{name}/{stat}`; characters that tools trip over become underscores.

    TensorBoard's charts of values with bands draw nothing for a tag with parentheses or brackets.

    Example:
        >>> make_tag("eval", "niqe bsd100", "mean")
        'qa_eval/niqe_bsd100/mean'
    """
    if group not in GROUPS:
        raise ValueError(f"group must be one of {GROUPS}, got {group!r}")
    return "/".join([f"qa_{group}", *(re.sub(r"[^\w.\-=,@]+", "_", part).strip("_") or "_" for part in (name, stat))])

"""Which ground truth belongs to a sample that a run has written: the file of its name, without the step.

step_1000/0003.png        0003.png
baby/baby_1000.png        baby/baby.png, or baby.png     as BasicSR and KAIR name validation images
Set5/baby-iter_1000.png   Set5/baby.png, or baby.png
step_1000/baby_x2_SR.png  baby.png, where all names of the step end so (`References`)
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from qa_hooks.sources.snapshots import WORDS

HOLE, SEPARATORS = "\0", " _.=-"  # inside [...] of a regular expression
Find = Callable[[str], Path | None]


def truth_of(name: str, step: int, find: Find) -> Path:
    """The ground truth of a sample.

    Args:
        name: of the sample, below the folder of the run.
        step: that its name says.
        find: a name -> the ground truth of this name (`References`).

    Raises:
        ValueError: there is none under the names that it could have.
    """
    names = names_without_step(name, step)
    for other in names:
        if (found := find(other)) is not None:
            return found
    raise ValueError(f"it has no reference called {' or '.join(names[:3])}")


def names_without_step(name: str, step: int) -> list[str]:
    """What a file is called when the step is taken out of its name, the likeliest name first.

    Where the number stands several times it is taken out where a word marks it, then of folders, then of the file, then
    everywhere; folders may be missing from the left.

    Example:
        >>> names_without_step("step_100/0100.png", 100)
        ['0100.png', 'step_100.png']
        >>> names_without_step("baby/baby_1000.png", 1000)
        ['baby/baby.png', 'baby.png']
    """
    path = PurePosixPath(name)
    whole = str(path.with_suffix(""))
    number = re.compile(rf"(?P<word>(?<![a-z])(?:{'|'.join(WORDS)})[ _.=-]*)?(?<!\d)0*{step}(?!\d)", re.IGNORECASE)
    places, of_file = list(number.finditer(whole)), whole.rfind("/")
    places.sort(key=lambda found: (found["word"] is None, found.start() > of_file, -found.start()))
    cuts = [whole[: found.start()] + HOLE + whole[found.end() :] for found in places]
    cuts += [number.sub(HOLE, whole)] if len(places) > 1 else []
    names = []
    for cut in cuts:
        kept = [part for part in map(_closed, cut.split("/")) if part]
        names += ["/".join(kept[start:]) + path.suffix for start in range(len(kept))]
    return list(dict.fromkeys(names)) or [name]


def _closed(part: str) -> str:
    """A part of a path without the holes that the step has left in it; a separator stays between what is beside one."""
    if HOLE not in part:
        return part
    narrow = re.sub(f"[{SEPARATORS}]*{HOLE}[{SEPARATORS}]*", lambda hole: HOLE + hole[0].replace(HOLE, "")[:1], part)
    return re.sub(f"^{HOLE}[{SEPARATORS}]?|{HOLE}[{SEPARATORS}]?$|{HOLE}", "", narrow)

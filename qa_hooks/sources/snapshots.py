"""Folders of images that a run wrote as it went, and the training step that each of them shows.

The step is read from names, as the trainers in the field write them: `step_00001000/0003.png`, `00001000.png`,
`fakes000200.png`, `epoch005_fake_A.png`, `validation/step-100_0.png`, `baboon/baboon_5000.png`,
`name_000500_00_20260102030405_42.png`.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path, PurePath

from qa_hooks.images import list_images

PATTERN = "a name such as step_1000/0003.png, 00001000.png or fakes000200.png"

# A number after one of these words is the step; words of an earlier line win: epoch=3-step=1000 is step 1000.
_WORDS = (
    r"steps?|iterations?|iters?|it",
    r"kimg|snapshot|fakes|checkpoint|ckpt",
    r"epochs?",
)


# Whole names as trainers write them, in which a time, a seed or the number of a prompt stands beside the step.
_NAMES = (
    r"(?:.*_)?e?(\d{6,})_\d{2,}_\d{14}(?:_\d+)*",  # sd-scripts, musubi-tuner: name_000500_00_20260102030405_42
    r".*-training-sample-(\d+)-\d+-\d+",  # OneTrainer: step, epoch, step of the epoch
    r"\d{13}__(\d{9,})_\d+",  # ai-toolkit: milliseconds, step, prompt
    r"step_(\d+)_.*_\d+x\d+",  # SimpleTuner: step, name of the prompt, number, size
)


def step_of(path: str | Path) -> int:
    """The training step that an image shows, from its path below the folder of the run.

    In this order: the step in a name as sd-scripts, musubi-tuner, OneTrainer, ai-toolkit and SimpleTuner write it
    (sd-scripts and musubi-tuner can name samples by the epoch, `e000010`: then that is the step); the number after a
    word such as step, iter, snapshot or epoch, in the file's name, then in its folders' from the inside out; a folder
    whose whole name is a number (but `0801/0801_5000.png` is a picture named 0801 at step 5000); the last number of the
    file's name; the last of its folder's.

    Raises:
        ValueError: no number, or one in the file's name and another in the folder's and nothing to tell them apart.

    Example:
        >>> [step_of(name) for name in ("step_00001000/0003.png", "fakes000200.png", "epoch=3-step=1000.png")]
        [1000, 200, 1000]
    """
    relative = PurePath(path)
    stem, folders = relative.stem, [part for part in reversed(relative.parts[:-1]) if part not in ("/", "..")]
    for pattern in _NAMES:
        if whole := re.fullmatch(pattern, stem):
            return int(whole[1])
    for words in _WORDS:
        for name in (stem, *folders):
            found = re.findall(rf"(?<![a-z])(?:{words})[ _.=-]*(\d+)", name, re.IGNORECASE)
            if found:
                return int(found[-1])
    if folders and stem.startswith(folders[0]) and stem != folders[0]:
        stem, folders = stem[len(folders[0]) :], []
    for name in folders:
        if name.isdecimal():
            return int(name)
    own, outer = _last_number(stem), [number for number in map(_last_number, folders) if number is not None]
    if own is not None and outer:
        raise ValueError(
            f"{path} has a number in the file's name and another in the folder's: which is the step? Expected {PATTERN}"
        )
    if own is None and not outer:
        raise ValueError(f"{path} has no step in its name; expected {PATTERN}")
    return own if own is not None else outer[0]


def list_snapshots(folder: str | Path) -> tuple[list[Path], list[int]]:
    """The images below `folder` and the step of each, by path; names that start with a dot are work in progress.

    Files without a step in their names are left out with a warning.

    Raises:
        ValueError: no folder, no images, or a step in none of their names.
    """
    root = Path(folder)
    paths, steps, unreadable = [], [], []
    for path in list_images(root):
        relative = path.relative_to(root)
        if any(part.startswith(".") for part in relative.parts):
            continue
        try:
            steps.append(step_of(relative))
            paths.append(path)
        except ValueError as error:
            unreadable.append(str(error))
    if not paths:
        raise ValueError(unreadable[0] if unreadable else f"{folder} holds no finished snapshots")
    if unreadable:
        warnings.warn(f"{len(unreadable)} images of {folder} were left out, the first because {unreadable[0]}")
    return paths, steps


def _last_number(name: str) -> int | None:
    numbers = re.findall(r"\d+", name)
    return int(numbers[-1]) if numbers else None

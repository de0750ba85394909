"""Folders of images that a run wrote as it went, and the training step that each of them shows.

The step is read from names, as the trainers in the field write them: `step_00001000/0003.png`, `00001000.png`,
`fakes000200.png`, `epoch005_fake_A.png`, `validation/step-100_0.png`, `baboon/baboon_5000.png`,
`name_000500_00_20260102030405_42.png`.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePath

from qa_hooks._base.checks import warn
from qa_hooks._base.text import plural
from qa_hooks.images import list_images
from qa_hooks.sources.doubts import looks_like
from qa_hooks.sources.windows import evenly

LOOKED_AT = 256  # names, for doubts
PATTERN = "a name such as step_1000/0003.png, 00001000.png or fakes000200.png"

# A number after one of these words is the step; words of an earlier line win: epoch=3-step=1000 is step 1000.
WORDS = (
    r"steps?|iterations?|iters?|it",
    r"kimg|snapshot|fakes|checkpoint|ckpt",
    r"epochs?",
)

# Samples of other weights or between others, which trainers write beside the plain ones of the same step.
_VARIANTS = re.compile(
    r"(?<![a-z])(ema|swa|averaged?|avg|polyak|interp(?:olat\w*)?|slerp|lerp|mr)(?![a-z])", re.IGNORECASE
)

# Whole names as trainers write them, in which a time, a seed or the number of a prompt stands beside the step.
_NAMES = (
    r"(?:.*_)?e?(\d{6,})_\d{2,}_\d{14}(?:_\d+)*",  # sd-scripts, musubi-tuner: name_000500_00_20260102030405_42
    r".*-training-sample-(\d+)-\d+-\d+",  # OneTrainer: step, epoch, step of the epoch
    r"\d{13}__(\d{9,})_\d+",  # ai-toolkit: milliseconds, step, prompt
    r"step_(\d+)_.*_\d+x\d+",  # SimpleTuner: step, name of the prompt, number, size
)


def step_pattern(pattern: str) -> re.Pattern[str]:
    """A regular expression with a group for the step; `ValueError` where it is none, or has no group."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"step={pattern!r} is no regular expression: {error}") from error
    if not compiled.groups:
        raise ValueError(f"step={pattern!r} has no group: put the step in brackets, as in 'img_(\\d+)'")
    return compiled


def step_of(path: str | Path, pattern: str | None = None) -> int:
    """The training step that an image shows, from its path below the folder of the run.

    Args:
        path: below the folder, with forward slashes.
        pattern: a regular expression whose first group, or the group called `step`, is the step, such as `iter(\\d+)`;
            None goes by the rules below.

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
    if pattern is not None:
        match = step_pattern(pattern).search(relative.as_posix())
        found = [] if match is None else [match.groupdict().get("step"), *match.groups()]
        number = next((group for group in found if group is not None), "")
        if not number.isdecimal():
            where = f"where {pattern!r} looks for it" + (f", but {number!r}" if number else "")
            raise ValueError(f"{path} has no step {where}")
        return int(number)
    stem, folders = relative.stem, [part for part in reversed(relative.parts[:-1]) if part not in ("/", "..")]
    for form in _NAMES:
        if whole := re.fullmatch(form, stem):
            return int(whole[1])
    for words in WORDS:
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


def list_snapshots(folder: str | Path, pattern: str | None = None) -> tuple[list[Path], list[int]]:
    """The images below `folder` and the step of each, by path; names that start with a dot are work in progress.

    Files without a step in their names are left out with a warning, and so are the other variants of the samples
    (of the averaged weights, of interpolations) where there are plain ones, or else all but the most frequent variant:
    they are not of one step. A number that looks like a date, a part of a hash, a size, a version or a seed is read
    all the same, and warned of.

    Args:
        folder: of the run.
        pattern: as in `step_of`; what does not match is left out in silence, for that is what it is for.

    Raises:
        ValueError: no folder, no images, a step in none of their names, or a number that may be none: all names have
            it, while another number differs.
    """
    root = Path(folder)
    paths, steps, unreadable = [], [], []
    for path in list_images(root):
        try:
            steps.append(step_of(path.relative_to(root).as_posix(), pattern))
            paths.append(path)
        except ValueError as error:
            unreadable.append(str(error))
    if not paths:
        raise ValueError(unreadable[0] if unreadable else f"{folder} holds no finished snapshots")
    if pattern is not None:
        return paths, steps
    if unreadable:
        warn(f"{plural(len(unreadable), 'image')} of {folder} left out, the first because {unreadable[0]}")
    names = [path.relative_to(root).as_posix() for path in paths]
    variants = [_variant(name) for name in names]
    taken = "" if "" in variants else max(sorted(set(variants)), key=variants.count)
    if set(variants) != {taken}:
        others = ", ".join(sorted(set(variants) - {taken}))
        warn(
            f"{plural(len(names) - variants.count(taken), 'image')} of {folder} left out, whose names say {others}; a "
            "pattern such as step='(\\d+)-ema' takes them instead"
        )
    chosen = [row for row, variant in enumerate(variants) if variant == taken]
    _check_step([names[row] for row in chosen], [steps[row] for row in chosen])
    _say_doubts([names[row] for row in chosen], [steps[row] for row in chosen])
    return [paths[row] for row in chosen], [steps[row] for row in chosen]


def _variant(name: str) -> str:
    """What kind of sample a name says it is; "" for plain ones.

    Example:
        >>> _variant("1000-ema.png"), _variant("1000.png"), _variant("cinema/1000.png")
        ('ema', '', '')
    """
    return " ".join(sorted({word.lower() for word in _VARIANTS.findall(name)}))


def _check_step(names: list[str], steps: list[int]) -> None:
    """Refuse a step that no word marks, that all files have, while another number in their names differs."""
    if len(names) < 2 or len(set(steps)) > 1 or any(is_marked(name) for name in names):
        return
    numbers = [re.findall(r"\d+", PurePath(name).stem) for name in names]
    if len({tuple(found) for found in numbers}) > 1 and all(len(found) > 1 for found in numbers):
        raise ValueError(
            f"is {steps[0]} the step? All {len(names)} files have it, such as {names[0]}, while another number in "
            "their names differs: say which number it is with a regular expression, step='img_(\\d+)'"
        )


def _say_doubts(names: list[str], steps: list[int]) -> None:
    """Warn of the first name whose step is probably none, of at most `LOOKED_AT`, evenly taken."""
    for name, step in evenly(list(zip(names, steps, strict=True)), LOOKED_AT):
        what = "" if _has_word(name) else looks_like(name, step)
        if what:
            warn(
                f"{name} is read as step {step}, but that looks like {what}: if it is no step, say where the step is "
                "with a regular expression whose first group it is, step='img_(\\d+)'"
            )
            return


def is_marked(name: str) -> bool:
    """Whether a trainer's way to write names, a word, or a folder that is a number, says what the step is."""
    return _has_word(name) or any(part.isdecimal() for part in PurePath(name).parts[:-1])


def _has_word(name: str) -> bool:
    if any(re.fullmatch(form, PurePath(name).stem) for form in _NAMES):
        return True
    return any(re.search(rf"(?<![a-z])(?:{words})[ _.=-]*\d", name, re.IGNORECASE) for words in WORDS)


def _last_number(name: str) -> int | None:
    numbers = re.findall(r"\d+", name)
    return int(numbers[-1]) if numbers else None

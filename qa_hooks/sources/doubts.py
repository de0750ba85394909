"""Numbers in names that are probably no training steps: dates, hashes, sizes, versions, seeds."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from pathlib import PurePath

_DATE = re.compile(r"(?<!\d)(?:19|20)\d\d([-_.]?)(?:0[1-9]|1[0-2])\1(?:0[1-9]|[12]\d|3[01])(?!\d)")
_CLOCK = re.compile(r"(?<!\d)(?:[01]\d|2[0-3])([-_.:]?)[0-5]\d\1[0-5]\d(?:[-_.:]\d{1,6})?(?!\d)")
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_SIZE = re.compile(r"(?<!\d)\d{2,5} ?[x\u00d7] ?\d{2,5}(?!\d)|(?<!\d)\d{2,5} ?px(?![a-z])", re.IGNORECASE)
_OTHER = re.compile(
    r"(?<![a-z])(?:v|ver|version|seed|cfg|scale|rank|gpu|fold)[ _.=-]*\d+$|(?<![a-z])x\d{1,2}$|(?<![a-z\d])\d+x$",
    re.IGNORECASE,
)


def looks_like(name: str, step: int) -> str:
    """What the number that was read from a name probably is instead of a step; "" where it looks like one.

    Args:
        name: the file's path below the folder.
        step: the number that was read from it, in a name where no word such as "step" marks it.

    Example:
        >>> looks_like("20260102.png", 20260102), looks_like("cat_512x512.png", 512), looks_like("00002000.png", 2000)
        ('a date', 'a size', '')
    """
    path = PurePath(name)
    for part in (path.stem, *reversed(path.parts[:-1])):
        numbers = re.findall(r"\d+", part)
        if str(step) not in [str(int(number)) for number in numbers]:
            continue
        last = re.search(r"(\d+)\D*$", part)
        end = last.end(1) if last else 0
        if _is_date(part, end):
            return "a date"
        if _is_hash(part):
            return "a part of a hash"
        if any(found.start() < end <= found.end() for found in _SIZE.finditer(part)):
            return "a size"
        if _OTHER.search(part):
            return "a version, a seed or a scale"
        return ""
    return ""


def _is_date(part: str, end: int) -> bool:
    """Whether the number that ends at `end` belongs to a date, a time of day after one, or a count of seconds."""
    date = _DATE.search(part)
    if date is not None and date.start() < end <= date.end():
        return True
    if date is not None and any(date.end() <= c.start() < end <= c.end() for c in _CLOCK.finditer(part)):
        return True
    number = re.search(r"\d+$", part[:end])
    digits = "" if number is None else number[0]
    if len(digits) == 14 and _DATE.match(digits[:8]) and _CLOCK.match(digits[8:]):
        return True
    if len(digits) in (10, 13) and digits[0] != "0":
        year = datetime.fromtimestamp(int(digits[:10]), tz=timezone.utc).year
        return 2000 <= year <= 2100
    return False


def _is_hash(part: str) -> bool:
    """Whether there is a UUID, or six and more hexadecimal digits in which letters and digits change places often."""
    if _UUID.search(part):
        return True
    for word in re.findall(r"[0-9a-f]{6,}", part, re.IGNORECASE):
        switches = len(re.findall(r"(?<=[a-f])(?=\d)|(?<=\d)(?=[a-f])", word, re.IGNORECASE))
        if switches >= 3:
            return True
    return False

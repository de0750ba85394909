"""Words for messages, and text from outside made harmless for a terminal and a spreadsheet."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

_RUN_BY_SPREADSHEETS = re.compile(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")


def printable(text: object, *, one_line: bool = False) -> str:
    r"""What control characters a text has, as `\x1b`; line ends and tabs stay, unless it must be one line.

    Example:
        >>> print(printable("a\x1b[2Jb"), printable("a\nb", one_line=True))
        a\x1b[2Jb a\nb
    """
    kept = "" if one_line else "\n\t"
    return "".join(
        letter if letter.isprintable() or letter in kept else letter.encode("unicode_escape").decode()
        for letter in str(text)
    )


def plural(count: int, noun: str) -> str:
    """A count with its noun, whose plural is regular.

    Example:
        >>> plural(1, "image"), plural(0, "image"), plural(12, "pair")
        ('1 image', '0 images', '12 pairs')
    """
    return f"{count} {noun}{'s' * (count != 1)}"


def meant(name: str, known: Iterable[str]) -> str:
    """What somebody who wrote a name probably meant, for an error; "" where nothing is near.

    Example:
        >>> meant("niqe_bsd10", ["psnr", "niqe_bsd100"]), meant("knn", ["giqa-knn"]), meant("x", ["psnr"])
        (' (did you mean niqe_bsd100?)', ' (did you mean giqa-knn?)', '')
    """
    names = list(known)
    close = difflib.get_close_matches(name, names, 1) or [
        longer for longer in names if len(name) > 2 and name in longer
    ]
    return f" (did you mean {close[0]}?)" if close else ""


def safe_cell(text: str) -> str:
    """A cell of a CSV that no spreadsheet runs as a formula: an apostrophe stands before one that it would.

    Example:
        >>> safe_cell("=1+1.png"), safe_cell("a=b.png"), true_cell(safe_cell("'=x"))
        ("'=1+1.png", 'a=b.png', "'=x")
    """
    return "'" + text if _RUN_BY_SPREADSHEETS.match(text) else text


def true_cell(cell: str) -> str:
    """The text that `safe_cell` was given: the inverse of `safe_cell`."""
    return cell[1:] if cell.startswith("'") and _RUN_BY_SPREADSHEETS.match(cell) else cell


def listed(names: Sequence[str], most: int = 8) -> str:
    """Names for a message, the first few of them.

    Example:
        >>> listed(["a", "b", "c"], most=2)
        'a, b and 1 more'
    """
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")

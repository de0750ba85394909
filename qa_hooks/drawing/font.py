"""The one font of every picture: DejaVu Sans, which matplotlib's charts have too; Pillow's own without matplotlib."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

LETTERS = 13  # pixels of a letter's height, at which text is read at full size


class Font(NamedTuple):
    """A font at one size.

    Attributes:
        face: Pillow's font.
        known: the code points that it has.
    """

    face: Any
    known: frozenset[int]

    @property
    def line(self) -> int:
        """Pixels from one line of text to the next."""
        return int(self.face.getbbox("0g|")[3]) + 4

    def width(self, text: str) -> int:
        """Pixels of one line."""
        return int(self.face.getlength(text) + 1)

    def plain(self, text: str) -> str:
        """One line of letters that the font has; others are question marks."""
        return "".join(letter if ord(letter) in self.known else "?" for letter in " ".join(str(text).split()))

    def cut(self, text: str, width: int) -> str:
        """As much of both ends as fits: names of files differ at their ends."""
        if self.width(text) <= width:
            return text
        for kept in range(len(text) - 1, 0, -1):
            head = (kept + 1) // 2
            short = f"{text[:head]}..{text[len(text) - (kept - head) :]}"
            if self.width(short) <= width:
                return short
        return ""

    def wrapped(self, text: str, width: int) -> list[str]:
        """Lines that fit, broken between words, and inside those that are too wide."""
        lines = [""]
        for word in text.split():
            joined = f"{lines[-1]} {word}".strip()
            if self.width(joined) <= width:
                lines[-1] = joined
                continue
            lines += [""] if lines[-1] else []
            for letter in word:
                if lines[-1] and self.width(lines[-1] + letter) > width:
                    kept = _break(lines[-1])
                    lines += [lines[-1][kept:]]
                    lines[-2] = lines[-2][:kept]
                lines[-1] += letter
        return lines

    def fitted(self, text: str, width: int, lines: int = 2) -> list[str]:
        """At most so many lines that fit; of longer texts both ends are shown."""
        found = self.wrapped(text, width)
        if len(found) > lines:
            found = [*found[: lines - 1], self.cut("".join(found[lines - 1 :]), width)]
        return found


def _break(line: str) -> int:
    """Where a word is broken: after a sign that parts names of files, where one stands in the second half."""
    return max(
        (place + 1 for place, letter in enumerate(line) if letter in "/_-." and place > len(line) // 2),
        default=len(line),
    )


@cache
def load_font(size: int = LETTERS, *, bold: bool = False) -> Font:
    """The font at a size in pixels; bold where matplotlib brings that.

    Example:
        >>> load_font(20).line > load_font(13).line
        True
        >>> load_font(13).plain("two\\nlines")
        'two lines'
    """
    from PIL import ImageFont

    try:
        import matplotlib
        from matplotlib.ft2font import FT2Font
    except ImportError:
        return Font(ImageFont.load_default(size), frozenset(range(32, 127)))
    path = str(Path(matplotlib.get_data_path()) / f"fonts/ttf/DejaVuSans{'-Bold' * bold}.ttf")
    return Font(ImageFont.truetype(path, size), frozenset(FT2Font(path).get_charmap()))

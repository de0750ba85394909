"""What the numbers of a tag are: words for a person, and apart from these what a program has to know of them."""

from __future__ import annotations

from typing import Any, NamedTuple

BETTER = {True: "higher", False: "lower", None: ""}  # by what a monitor says of a value


class Meaning(NamedTuple):
    """Of a tag's numbers.

    Attributes:
        words: what they are.
        spec: how they are made: values of other specs are not to be compared; "" where there is nothing to tell.
        better: "higher" or "lower"; "" where nobody knows.
        change: each is compared with the one before it, so that none is the best.
        doubt: what is to be said beside each of them where the features are untrained; else "".

    Example:
        >>> print(Meaning("mean score", spec="niqe[12ab]", better="lower"))
        niqe[12ab]: mean score; lower is better
    """

    words: str
    spec: str = ""
    better: str = ""
    change: bool = False
    doubt: str = ""

    def __str__(self) -> str:
        """All of it in words, for a card of TensorBoard."""
        head = f"{self.spec}: {self.words}" if self.spec else self.words
        return "; ".join([head, *filter(None, [self.doubt, f"{self.better} is better" * bool(self.better)])])

    def to_json(self) -> dict[str, Any]:
        """What is not empty, by its name."""
        return {key: value for key, value in self._asdict().items() if value}

    @classmethod
    def from_json(cls, found: Any) -> Meaning | None:
        """What `to_json` wrote; None of something else."""
        if not isinstance(found, dict) or not isinstance(found.get("words"), str):
            return None
        kinds = {key: type(default) for key, default in cls._field_defaults.items()}
        known = {key: found[key] for key, kind in kinds.items() if isinstance(found.get(key), kind)}
        meaning = cls(found["words"], **known)
        return meaning if meaning.better in BETTER.values() else meaning._replace(better="")

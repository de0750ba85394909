"""One rater's questions: which pair is next, on which sides, when an earlier one comes again, and what is kept."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from qa_hooks.ratings.asking.answers import AnswerFile, self_agreement
from qa_hooks.ratings.asking.choosing import Answer, gains, posterior
from qa_hooks.ratings.tables import Preference, Preferences

CHOICES = ("left", "same", "right")
MOST = 200  # images of a content whose pairs are weighed up at a time: those that were judged least
APART = 5  # questions at least between a pair and its repeat
Pair = tuple[int, int]


class Question(NamedTuple):
    """What is shown: positions of two images, a on the left or not, and the reference's where one stands between."""

    number: int
    a: int
    b: int
    a_is_left: bool
    content: str
    reference: int | None


class Session:
    """Chooses the questions and keeps the answers.

    Args:
        names: of the images, as the file has them.
        pairs: which may be asked about, by content: positions of images that are all compared with each other, or a
            list of pairs of positions.
        answers: the file; what this rater has answered in it is not asked again, but for repeats.
        rater: who answers.
        references: the position of each content's reference, which is shown beside the pair.
        repeats: the share of the questions that are earlier pairs again.
        count: the end after so many different pairs of this rater; None asks about all.
        seed: of sides, repeats and the choice among equals.

    Attributes:
        question: the one that is open; None at the end.
        unknown: rows of the file about images that are not here.
    """

    def __init__(
        self,
        names: Sequence[str],
        pairs: Mapping[str, Sequence[int] | Sequence[Pair]],
        answers: AnswerFile,
        rater: str,
        *,
        references: Mapping[str, int] | None = None,
        repeats: float = 0.1,
        count: int | None = None,
        seed: int | None = None,
    ) -> None:
        self.names, self.pairs, self.answers, self.rater = names, pairs, answers, rater
        self.references, self.repeats = dict(references or {}), repeats
        self.random = np.random.default_rng(seed)
        every = sum(len(own) if _listed(own) else len(own) * (len(own) - 1) // 2 for own in pairs.values())
        self.total = every if count is None else min(count, every)
        self.said: dict[str, list[Answer]] = {content: [] for content in pairs}  # everybody's
        self.done: dict[str, set[Pair]] = {content: set() for content in pairs}  # this rater's
        self.asked: list[tuple[Pair, str]] = []  # this rater's, in order
        self.best: dict[str, tuple[float, Pair] | None] = {}
        self.here = self.unknown = 0  # answers of this run, which can be taken back
        place = {name: position for position, name in enumerate(names)}
        for row in answers.rows:
            if row.a in place and row.b in place and row.content in pairs:
                self._count(place[row.a], place[row.b], row)
            else:
                self.unknown += 1
        self.question = self._next()

    def answer(self, number: int, choice: str) -> bool:
        """Keep an answer; False, and nothing is kept, where the question of this number is not the open one.

        Raises:
            ValueError: a choice that is none.
        """
        asked = self.question
        if choice not in CHOICES:
            raise ValueError(f"choice must be one of {CHOICES}, got {choice!r}")
        if asked is None or asked.number != number:
            return False
        left = {"left": 1.0, "same": 0.0, "right": -1.0}[choice]
        better = left if asked.a_is_left else 0.0 - left
        row = Preference(self.names[asked.a], self.names[asked.b], better, asked.content, self.rater)
        self.answers.add(row, left="a" if asked.a_is_left else "b", seconds=time.monotonic() - self.since)
        self._count(asked.a, asked.b, row)
        self.here += 1
        self.question = self._next()
        return True

    def take_back(self) -> bool:
        """Remove the last answer of this run and ask again; False where there is none."""
        if not self.here:
            return False
        self.answers.take_back()
        pair, content = self.asked.pop()
        self.said[content].pop()
        if (pair, content) not in self.asked:
            self.done[content].discard(pair)
        self.best.pop(content, None)
        self.here -= 1
        self.question = self._shown(pair, content)
        return True

    @property
    def answered(self) -> int:
        """How many different pairs this rater has judged."""
        return sum(len(pairs) for pairs in self.done.values())

    def state(self) -> dict[str, Any]:
        """How far the rater is: different pairs judged and to judge, pairs judged again, and how often the same way."""
        same, again = self_agreement(Preferences([r for r in self.answers.rows if r.rater == self.rater], "pairs"))
        return {"answered": self.answered, "total": self.total, "again": again, "same": same, "here": self.here}

    def _count(self, a: int, b: int, row: Preference) -> None:
        self.said[row.content].append(Answer(a, b, row.better))
        self.best.pop(row.content, None)
        if row.rater == self.rater:
            pair = (min(a, b), max(a, b))
            self.done[row.content].add(pair)
            self.asked.append((pair, row.content))

    def _next(self) -> Question | None:
        if self.answered >= self.total:
            return None
        if (earlier := self._repeat()) is not None:
            return self._shown(*earlier)
        for content in self.pairs:
            if content not in self.best:
                self.best[content] = self._most_telling(content)
        found = {content: best for content, best in self.best.items() if best is not None}
        if not found:
            return None
        most = max(gain for gain, _ in found.values())
        equal = [content for content, (gain, _) in found.items() if gain > most - 1e-9]
        content = equal[int(self.random.integers(len(equal)))]
        return self._shown(found[content][1], content)

    def _most_telling(self, content: str) -> tuple[float, Pair] | None:
        """The pair of this content that is to tell most, and how much; by chance among equals."""
        pairs = self._open_pairs(content)
        if not pairs:
            return None
        images = sorted({image for pair in pairs for image in pair})
        place = {image: position for position, image in enumerate(images)}
        known = [
            Answer(place[said.first], place[said.second], said.better)
            for said in self.said[content]
            if said.first in place and said.second in place
        ]
        told = gains(*posterior(len(images), known), [place[a] for a, _ in pairs], [place[b] for _, b in pairs])
        equal = np.flatnonzero(told > told.max() - 1e-9)
        return float(told.max()), pairs[int(self.random.choice(equal))]

    def _open_pairs(self, content: str) -> list[Pair]:
        """Pairs that this rater has not judged; of many images those among the ones that were judged least."""
        own, done = self.pairs[content], self.done[content]
        if _listed(own):
            return [pair for a, b in own if (pair := (min(a, b), max(a, b))) not in done]  # type: ignore[misc]
        images: list[int] = list(own)  # type: ignore[arg-type]
        times = dict.fromkeys(images, 0)
        for said in self.said[content]:
            for image in said[:2]:
                times[int(image)] += 1
        images.sort(key=lambda image: (times[image], self.random.random()))
        for most in (MOST, len(images)):
            chosen = sorted(images[:most])
            pairs = [(a, b) for place, a in enumerate(chosen) for b in chosen[place + 1 :] if (a, b) not in done]
            if pairs or most >= len(images):
                return pairs
        return []

    def _repeat(self) -> tuple[Pair, str] | None:
        if self.random.random() >= self.repeats:
            return None
        recent, counts = {pair for pair, _ in self.asked[-APART:]}, dict[tuple[Pair, str], int]()
        for earlier in self.asked:
            counts[earlier] = counts.get(earlier, 0) + 1
        once = [earlier for earlier, times in counts.items() if times == 1 and earlier[0] not in recent]
        return once[int(self.random.integers(len(once)))] if once else None

    def _shown(self, pair: Pair, content: str) -> Question:
        self.since = time.monotonic()
        number = int(self.random.integers(1, 2**53 - 1))  # a page of before cannot answer it by chance
        return Question(number, *pair, bool(self.random.random() < 0.5), content, self.references.get(content))


def _listed(own: Sequence[Any]) -> bool:
    """Whether these are pairs, and not images that are all compared."""
    return bool(own) and isinstance(own[0], tuple)

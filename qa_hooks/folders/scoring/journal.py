"""What a process was at work on when it was killed, so that the picture that kills it is found and left out.

    scores.csv.begun0   {"deaths": {"a.png": 1}}                        what earlier processes have left
                        {"begun": "a.png", "done": 0, "alone": true}    a line before each image is read
                        {"begun": "b.png", "done": 1}                   and how many of the lines before are done
                        {"begun": "c.png", "done": 1}

An image that needs too much memory, or at which a native decoder crashes, ends the process without an error. The file
outlives the process. It names the few images of which one may be the guilty one. The next process works on each of
them alone; the image that was alone when two processes died is left out. Two, because a process may also be killed by
somebody who knows nothing of images. A process that ends by itself, also by an error, accuses nobody.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from qa_hooks._base.files import write_text
from qa_hooks._base.headers import json_lines

Item = TypeVar("Item")
Result = TypeVar("Result")
DEATHS = 2  # of processes that were at work on one image alone
LEFT_OUT = (
    f"the process was killed {DEATHS} times while it worked on this image alone (out of memory, or a crash in a "
    "decoder): it is left out until its file changes"
)


class Journal:
    """The names of the images that are begun, in a file that is there until they are all done.

    Args:
        path: of the file; one that a killed process has left is gone on with.

    Attributes:
        deaths: the suspects: how many processes died while they were at work on this image alone.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.deaths = path, left_behind(path)
        self._done = 0

    def leaves_out(self, name: str) -> bool:
        """Whether it has killed so many processes that it is not to be read again."""
        return self.deaths.get(name, 0) >= DEATHS

    def __enter__(self) -> Journal:
        self._keep()
        self._file = self.path.open("ab", buffering=0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if kind is None:
            self.path.unlink(missing_ok=True)
            return
        with contextlib.suppress(OSError):  # the error on its way is what the user has to hear of
            self._keep()

    def watch(
        self,
        items: Iterable[Item],
        name: Callable[[Item], str],
        work: Callable[[Iterator[Item], bool], Iterator[Sequence[Result]]],
    ) -> Iterator[Sequence[Result]]:
        """What `work` gives for the items, in their order; suspects are handed to it one by one.

        Args:
            items: the work.
            name: of an item.
            work: gives lists with one result for each item; it may take items ahead where its second argument allows
                that, and must have done nothing with the others when it gives a result.
        """
        for suspected, run in itertools.groupby(items, lambda item: name(item) in self.deaths):
            for part in ([item] for item in run) if suspected else (run,):
                for results in work(self._begun(part, name, alone=suspected), not suspected):
                    yield results  # what comes back for the next ones has put these away
                    self._done += len(results)
                if isinstance(part, list):
                    self._note(done=self._done)
                    self._acquit(name(part[0]))

    def _begun(self, items: Iterable[Item], name: Callable[[Item], str], *, alone: bool) -> Iterator[Item]:
        for item in items:
            self._note(begun=name(item), done=self._done, **({"alone": True} if alone else {}))
            yield item

    def _note(self, **line: Any) -> None:
        self._file.write(json.dumps(line).encode() + b"\n")

    def _acquit(self, name: str) -> None:
        if not self.leaves_out(name):
            self.deaths.pop(name, None)

    def _keep(self) -> None:
        """Write what is known of the suspects, and nothing of what is begun."""
        keep_suspects(self.path, self.deaths)


def left_behind(path: Path) -> dict[str, int]:
    """The suspects that a killed process has left, and the deaths of which each is accused; none without a file."""
    if not path.is_file():
        return {}
    deaths: dict[str, int] = {}
    begun: list[tuple[str, bool]] = []
    done = 0
    for line in json_lines(path):
        if not isinstance(line, dict):
            continue
        if isinstance(line.get("deaths"), dict):
            deaths = {name: count for name, count in line["deaths"].items() if isinstance(count, int)}
        if isinstance(line.get("done"), int):
            done = line["done"]
        if isinstance(line.get("begun"), str):
            begun.append((line["begun"], bool(line.get("alone"))))
    for name, alone in begun[:done]:
        if alone and deaths.get(name, 0) < DEATHS:
            deaths.pop(name, None)
    for name, alone in begun[done:]:
        deaths[name] = deaths.get(name, 0) + alone
    return deaths


def keep_suspects(path: Path, deaths: dict[str, int]) -> None:
    """Write the suspects for the next process; with none the file goes."""
    if deaths:
        write_text(path, json.dumps({"deaths": deaths}) + "\n")
    else:
        path.unlink(missing_ok=True)

"""What a run that is watched has written so far: the files of each step, and which steps are finished."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from qa_hooks._base.containers import file_state
from qa_hooks.sources.snapshots import is_marked, list_snapshots, step_pattern

TRIES = 3  # looks at a step with broken files
MANY = 20  # steps
Signature = tuple[tuple[str, int, int], ...]  # path, size and time of change of each file


class Steps:
    """The steps below a folder; a step is finished when its files stay as they are from one look to the next.

    Args:
        folder: where the run writes.
        pattern: where the step stands in the names, as in `step_of`.
        patient: a last step with fewer files than steps have had is probably being written by a slow sampler; it gets
            ten times as long.
        tell: takes a message to be said once.
    """

    def __init__(self, folder: Path, *, pattern: str | None, patient: bool, tell: Callable[[str], None]) -> None:
        if pattern is not None:
            step_pattern(pattern)  # a mistake in it is told now
        self.folder, self.pattern, self.patient, self.tell = folder, pattern, patient, tell
        self.missing = ""  # why the last look found nothing
        self.pending = False  # whether the last look left steps that are not finished
        self._seen: dict[int, Signature] = {}
        self._tries: dict[int, int] = {}

    def look(self, every: float, known: dict[int, dict[str, float]]) -> Iterator[tuple[int, list[Path]]]:
        """The steps that are finished and not yet `known`, with their files.

        A step that is not in `known` when the walk goes on is tried again at the next look, three times in all; it
        can be given up before (`give_up`).

        Args:
            every: seconds between two looks.
            known: the values of the steps that have been scored; "n" is the number of images.
        """
        found = self.files()
        if len(found) > MANY and all(len(files) == 1 for files in found.values()):
            self.tell(
                f"each of {len(found)} steps has one image: if the numbers in the names are those of images, give each "
                "step a folder of its own (step_001000/0001.png)"
            )
        self._say_one_step(found)
        usual = max((values["n"] for values in known.values()), default=0)
        self.pending = False
        for step in sorted(found):
            signature = found[step]
            unchanged = self._seen.get(step) == signature
            self._seen[step] = signature
            if not unchanged:
                self._tries[step] = 0
            if step in known or self._tries[step] >= TRIES:
                continue
            age = time.time() - max(changed for _, _, changed in signature) / 1e9
            short = self.patient and len(signature) < usual and step == max(found) and age < 10 * every
            if (unchanged or age > max(every, 1.0)) and not short:
                self._tries[step] += 1
                yield step, [Path(path) for path, _, _ in signature]
            self.pending |= step not in known and self._tries[step] < TRIES

    def _say_one_step(self, found: dict[int, Signature]) -> None:
        """Say that all files are of one step, where nothing but a number in their names says so."""
        if self.pattern is not None or len(found) != 1:
            return
        ((step, files),) = found.items()
        names = [Path(path).relative_to(self.folder).as_posix() for path, _, _ in files]
        if len(names) > 1 and not any(is_marked(name) for name in names):
            self.tell(
                f"all files are of step {step}, such as {names[0]}: if that is no step, say where the step stands with "
                "a regular expression whose first group it is, step='img_(\\d+)'"
            )

    def may_try_again(self, step: int) -> bool:
        """Whether another look at the step is left."""
        return self._tries[step] < TRIES

    def give_up(self, step: int) -> None:
        """Leave the step until its files change."""
        self._tries[step] = TRIES

    def files(self) -> dict[int, Signature]:
        """The files of each step."""
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                paths, steps = list_snapshots(self.folder, self.pattern)
        except (ValueError, OSError) as error:
            self.missing = str(error)
            if self.patient:
                self.tell(f"waiting: {error}")
            return {}
        for warning in caught:
            self.tell(str(warning.message).split(", the first because")[0])
        found: dict[int, list[tuple[str, int, int]]] = {}
        for path, step in zip(paths, steps, strict=True):
            try:
                size, *times = file_state(path)
            except OSError:  # the trainer has just removed or renamed it
                continue
            found.setdefault(step, []).append((str(path), size, max(times)))
        return {step: tuple(sorted(files)) for step, files in found.items()}

"""Results that are on disk as soon as they are known: a benchmark that was stopped goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qa_hooks._base.files import check_writable, write_text


class Results:
    """Named results in `folder/results.json`.

    Args:
        folder: made if it is not there.
        settings: what the results depend on, as JSON takes it.

    Raises:
        ValueError: the folder holds results of other settings, or something else.
    """

    def __init__(self, folder: str | Path, settings: dict[str, Any]) -> None:
        check_writable(folder, name="--out")
        self.path, self.settings = Path(folder) / "results.json", json.loads(json.dumps(settings))
        self.found: dict[str, Any] = {}
        if not self.path.exists():
            return
        try:
            stored = json.loads(self.path.read_text(encoding="utf-8"))
            before, self.found = stored["settings"], dict(stored["found"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path} is not a benchmark's file of results: choose another --out") from error
        changed = [key for key in {*before, *self.settings} if before.get(key) != self.settings.get(key)]
        if changed:
            words = ", ".join(f"{key} {before.get(key)!r}, now {self.settings.get(key)!r}" for key in sorted(changed))
            raise ValueError(f"{self.path} has results of other settings ({words}): choose another --out")

    def __contains__(self, name: str) -> bool:
        return name in self.found

    def add(self, name: str, result: Any) -> None:
        """Keep a result, replacing one of this name; the file is never half written."""
        self.found[name] = result
        text = json.dumps({"settings": self.settings, "found": self.found}, indent=1)
        write_text(self.path, text + "\n")

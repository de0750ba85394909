"""What `select_metrics` recommends, as text, as JSON and as a folder with both and a picture."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qa_hooks._base.files import check_writable, write_text
from qa_hooks._base.text import plural
from qa_hooks.drawing.tables import text_table
from qa_hooks.ratings.halving import Phase
from qa_hooks.ratings.report import AgreementReport
from qa_hooks.rewards.doctor import Diagnosis

USES = ("monitor", "reward", "cheap")
WHY = {
    "monitor": "agrees best with people",
    "reward": "the best that the doctor calls usable as a reward",
    "cheap": "the fastest that cannot be told from the best",
}


@dataclass(frozen=True, eq=False)
class Selection:
    """What to use; printing it gives the tables.

    Attributes:
        report: agreement of the metrics that were judged on all images.
        recommended: use -> metric; None where no metric fits.
        milliseconds: metric -> the cost of an image of the ratings, here and now; NaN where it could not be measured.
        diagnoses: metric -> what the doctor found; of those that it was asked about.
        phases: of successive halving, all but the last; empty without it.
        problems: metric -> image -> why it has no score.
        scorings, everything: how many images were scored by a metric, and how many there are for all metrics.
    """

    report: AgreementReport
    recommended: dict[str, str | None]
    milliseconds: dict[str, float]
    diagnoses: dict[str, Diagnosis]
    phases: list[Phase]
    problems: dict[str, dict[str, str]]
    scorings: int
    everything: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "format": "qa_hooks.selection",
            "version": 1,
            "recommended": self.recommended,
            "milliseconds": {name: value if value == value else None for name, value in self.milliseconds.items()},
            "diagnoses": {name: found.as_dict() for name, found in self.diagnoses.items()},
            "phases": [phase._asdict() for phase in self.phases],
            "problems": self.problems,
            "scorings": self.scorings,
            "everything": self.everything,
            "agreement": self.report.as_dict(),
        }

    def save(self, folder: str | Path) -> None:
        """Write report.txt, report.json and, where matplotlib is installed, report.png."""
        folder = Path(folder)
        check_writable(folder, name="output")
        write_text(folder / "report.txt", f"{self}\n")
        write_text(folder / "report.json", json.dumps(self.as_dict(), indent=1) + "\n")
        self.report.draw(folder / "report.png")

    def __str__(self) -> str:
        parts = [str(self.report), "", self._costs()]
        for number, phase in enumerate(self.phases, 1):
            dropped = ", ".join(f"{name} ({phase.values[name]:.3f})" for name in phase.dropped)
            best = max(phase.values, key=lambda name: phase.values[name])
            parts.append(f"phase {number}, {plural(phase.contents, 'content')}: dropped {dropped}; best {best} "
                         f"({phase.values[best]:.3f})")  # fmt: skip
        if self.phases:
            parts.append(f"{self.scorings} of {self.everything} scorings were made")
        for name, images in self.problems.items():
            image, message = next(iter(images.items()))
            parts.append(f"{name} failed on {plural(len(images), 'image')}; the first, {image}: {message}")
        parts += ["", *(self._advice(use, name) for use, name in self.recommended.items())]
        if len(self.report.best) > 1:
            parts.append("These ratings do not decide between metrics that cannot be told from the best.")
        return "\n".join(parts)

    def _costs(self) -> str:
        rows = [("", "ms/image", f"{self.report.statistic} per ms", "doctor")]
        for name in self.report.metrics:
            cost, value = self.milliseconds[name], self.report.value(name).value
            verdict = self.diagnoses[name].verdict if name in self.diagnoses else "not asked"
            rows.append((name, f"{cost:.3g}", f"{value / cost:.3g}" if cost == cost else "-", verdict))
        return text_table(rows)

    def _advice(self, use: str, name: str | None) -> str:
        if name is None and not self.diagnoses:
            return f"{use}: not known; all of them need prompts, which the doctor does not judge: try check_reward"
        if name is None:
            return f"{use}: none of them; the doctor calls no metric usable as a reward"
        behind = "" if name in self.report.best else "; it agrees less with people than the best"
        return f"{use}: {name} ({WHY[use]}{behind})"

"""What a comparison of metrics with people has found, as rows, as text and as JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from qa_hooks._base.files import write_text
from qa_hooks._base.text import printable
from qa_hooks.drawing.forest_plot import Measured, forest_plot
from qa_hooks.drawing.tables import text_table
from qa_hooks.images import save_image
from qa_hooks.ratings.agreeing import Agreement, MetricDifference

POOLED = ""  # the column of a number of all images together
SHOWN = 3  # names
MOST_INTERVALS = 6  # metrics beside each other, beyond which a table has no intervals


class AgreementRow(NamedTuple):
    """One number of the report.

    `column` is "kind", "level" or "content" and `group` one of its values, None for the mean over them; of all images
    together `column` is "" and `group` None. An interval needs five contents: with fewer, `low` and `high` are NaN.
    `problem` says why there is no value.
    """

    metric: str
    column: str
    group: str | None
    statistic: str
    found: Agreement
    problem: str = ""


@dataclass(frozen=True, eq=False)
class AgreementReport:
    """What `report_agreement` found; printing it gives tables.

    Attributes:
        rows: every statistic of every metric, pooled and by group.
        differences: the best metric against every other in the first statistic, after Holm's correction.
        best: the metrics that cannot be told from the best, the best first.
        statistic: the one that decides.
        column: where it decides: "" for all images together, "content" for the mean within contents.
        images: how many images (or pairs) every metric has scored.
        lacking: metric -> rated images that it has no score for; they are left out for all metrics.
        opinions: what the ratings are, in words.
        unit, over: what is counted, and what the intervals leave out in turn.
    """

    rows: list[AgreementRow]
    differences: list[MetricDifference]
    best: list[str]
    statistic: str
    column: str
    images: int
    opinions: str
    confidence: float
    lacking: dict[str, list[str]] = field(default_factory=dict)
    unit: str = "images"
    over: str = "contents"

    @property
    def metrics(self) -> list[str]:
        """The best first, in the deciding statistic."""
        found = {row.metric: row.found.value for row in self.rows if row[1:4] == (self.column, None, self.statistic)}
        return sorted(found, key=lambda metric: -found[metric])

    def value(
        self, metric: str, statistic: str | None = None, column: str | None = None, group: str | None = None
    ) -> Agreement:
        """One number; `KeyError` where the report has none."""
        wanted = (metric, self.column if column is None else column, group, statistic or self.statistic)
        for row in self.rows:
            if row[:4] == wanted:
                return row.found
        raise KeyError(f"the report has no {wanted}")

    def as_dict(self) -> dict[str, Any]:
        """For JSON; numbers that are none are null."""
        rows = [
            {**row._asdict(), "found": {k: v if v == v else None for k, v in row.found._asdict().items()}}
            for row in self.rows
        ]
        return {
            "format": "qa_hooks.agreement", "version": 1, "opinions": self.opinions, "statistic": self.statistic,
            "column": self.column, "confidence": self.confidence, "images": self.images,
            "lacking": self.lacking, "best": self.best,
            "differences": [row._asdict() for row in self.differences], "rows": rows,
        }  # fmt: skip

    def save(self, path: str | Path) -> None:
        """Write all numbers as JSON."""
        write_text(Path(path), json.dumps(self.as_dict(), indent=1) + "\n")

    def __str__(self) -> str:
        """The agreement of each metric, its comparison with the best, and tables by type, level and content."""
        lines = [
            self.opinions,
            f"agreement on {self.images} {self.unit}; {self.confidence:.0%} intervals over {self.over}",
        ]
        for metric, names in self.lacking.items():
            some = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
            lines.append(f"{metric} has no score for {len(names)} images, left out for all: {some}")
        lines += ["", self._pooled(), "", self._verdict()]
        for column in dict.fromkeys(row.column for row in self.rows if row.column):
            lines += ["", f"{self.statistic} by {column}", self._by(column)]
        if problems := {row.problem: row for row in self.rows if row.problem}:
            lines.append("")
        for problem, row in problems.items():
            where = f"{row.column} {row.group}" if row.group is not None else f"mean over {row.column}"
            lines.append(f"- : {row.metric}, {row.statistic}, {where}: {problem}")
        return "\n".join(lines)

    def _pooled(self) -> str:
        statistics = list(dict.fromkeys(row.statistic for row in self.rows if row.column == self.column))
        against = {row.b: f"{row.difference:.3f} [{row.low:.3f}, {row.high:.3f}]" for row in self.differences}
        p = {row.b: f"{row.p:.2g}" for row in self.differences}
        ties = "accuracy" in statistics
        rows = [("", *statistics, *["ties"] * ties, "behind the best", "p (Holm)")]
        for metric in self.metrics:
            cells = [cell_text(self.value(metric, statistic)) for statistic in statistics]
            if ties:
                cells.append(f"{self.value(metric, 'accuracy').ties:.1%}")
            rows.append((metric, *cells, against.get(metric, "-"), p.get(metric, "-")))
        return text_table(rows)

    def _verdict(self) -> str:
        best, *others = self.best
        if not others:
            return f"{best} agrees best with people ({self.statistic})"
        return f"{best} agrees best with people ({self.statistic}); cannot be told from it: {', '.join(others)}"

    def _by(self, column: str) -> str:
        groups = [g for g in dict.fromkeys(r.group for r in self.rows if r.column == column) if g is not None]
        if column == "content":
            groups, left = [], f"\n{len(groups)} contents: the JSON has each"
        else:
            left = ""
        cells: list[list[str]] = [["", *self.metrics]]
        for group in (None, *groups):
            found = [self.value(metric, None, column, group) for metric in self.metrics]
            short = group is not None and len(self.metrics) > MOST_INTERVALS
            texts = [cell_text(one._replace(low=float("nan")) if short else one) for one in found]
            cells.append(["mean" if group is None else printable(group, one_line=True), *texts])
        turned = len(self.metrics) > len(groups) + 1
        return text_table([list(row) for row in zip(*cells, strict=True)] if turned else cells) + left

    def draw(self, path: str | Path) -> None:
        """Draw the deciding statistic of each metric with its interval as a PNG; nothing without matplotlib."""
        picture = forest_plot(
            [Measured(name, *self.value(name)[:3], name in self.best) for name in self.metrics],
            title=f"agreement with people on {self.images} {self.unit}",
            x_label=f"{self.statistic}{' within contents' * bool(self.column)}; blue: cannot be told from the best",
        )
        if picture is not None:
            save_image(picture, Path(path))


def cell_text(found: Agreement) -> str:
    """`value [low, high]`, or what of it is known."""
    if found.value != found.value:
        return "-"
    return f"{found.value:.3f}" if found.low != found.low else f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"

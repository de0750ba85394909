"""The agreement with people that a scorer's docstring states is the one in the table of docs/judges.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qa_hooks import scorers
from qa_hooks.scorers.libraries.piq import PIQScorer

TABLE = (Path(__file__).resolve().parents[2] / "docs" / "judges.md").read_text(encoding="utf-8")
ROWS = {
    "PSNR": "psnr", "SSIM": "ssim", "MSSSIM": "ms_ssim", "NIQE": "niqe_bsd100", "RankScorer": "rank",
    "OpinionScorer": "fit mos, stages", "FittedAFINE": "A-FINE, stages", "GMMScorer": "giqa-gmm (middle)",
    "KNNScorer": "giqa-knn (middle)",
}  # fmt: skip


def in_table(row: str) -> str:
    """The column "all together"."""
    (head,) = [line for line in TABLE.splitlines() if line.startswith("| scorer | white noise")]
    column = [cell.strip() for cell in head.split("|")].index("all together")
    (line,) = [line for line in TABLE.splitlines() if re.match(rf"\| {re.escape(row)}\*? \|", line)]
    return line.split("|")[column].strip().split(" ")[0]


@pytest.mark.parametrize(("name", "row"), ROWS.items())
def test_the_number_is_the_tables(name, row):
    said = re.search(r"SRCC (-?\.\d\d) with people's ratings", getattr(scorers, name).__doc__)
    assert said is not None
    assert said[1] == in_table(row)


def test_the_range_of_piq_is_the_tables():
    said = re.search(r"SRCC (\.\d\d) \((\w+)\) to (\.\d\d) \((\w+)\) with people's ratings", PIQScorer.__doc__)
    assert said is not None
    assert [said[1], said[3]] == [in_table(f"piq:{said[2]}"), in_table(f"piq:{said[4]}")]

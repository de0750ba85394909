"""Values with intervals, drawn."""

from __future__ import annotations

import pytest

from qa_hooks.drawing.forest_plot import Measured, forest_plot

pytest.importorskip("matplotlib")
BLUE = (31, 103, 190)


def has_blue(picture) -> bool:
    return bool(((picture[0] == BLUE[0]) & (picture[1] == BLUE[1]) & (picture[2] == BLUE[2])).any())


def test_a_row_more_is_taller_and_only_strong_rows_are_blue():
    rows = [Measured("psnr", 0.5, 0.4, 0.6), Measured("$x$", 0.2, float("nan"), float("nan"), strong=False)]
    both, weak = forest_plot(rows, title="a", x_label="srcc"), forest_plot(rows[1:])
    assert both.shape[1] > weak.shape[1]
    assert has_blue(both)
    assert not has_blue(weak)


def test_nothing_to_draw_is_refused():
    with pytest.raises(ValueError, match="at least one finite value"):
        forest_plot([Measured("psnr", float("nan"), 0.0, 1.0)])

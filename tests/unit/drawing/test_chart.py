"""Charts: what is drawn where, in letters that can be read, and what happens without matplotlib."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from qa_hooks.drawing.chart import BLUE, ORANGE, Line, chart

pytest.importorskip("matplotlib")


def places(picture: torch.Tensor, color: tuple[int, int, int]) -> torch.Tensor:
    """Rows and columns `(n, 2)` of the pixels of exactly this colour."""
    return (picture == torch.tensor(color, dtype=torch.uint8)[:, None, None]).all(0).nonzero()


def test_points_are_where_they_should_be():
    corners = torch.tensor([[0.0, 0.0], [10.0, 0.0], [10.0, 5.0]])
    centres = []
    for point in corners:
        picture = chart([Line(corners, ORANGE), Line(point[None], BLUE, dots=True)])
        assert picture.shape == (3, 300, 480)
        assert picture.dtype == torch.uint8
        centres.append(places(picture, BLUE).double().mean(0))
    (row, left), (same_row, right), (above, same_column) = (centre.tolist() for centre in centres)
    assert row == pytest.approx(same_row, abs=1)
    assert right == pytest.approx(same_column, abs=1)
    assert right - left > 240
    assert row - above > 120


def test_older_points_are_paler():
    path = torch.tensor([[0.0, 0.0], [5.0, 0.0], [10.0, 0.0]])
    picture = chart([Line(path, BLUE, dots=True, fading=True)]).float()
    row = places(chart([Line(path, BLUE)]), BLUE)[:, 0].double().mean().round().int()
    columns = places(chart([Line(path, BLUE)]), BLUE)[:, 1]
    line = picture[:, row, :].mean(0)
    assert line[columns.min() + 20] > line[columns.max() - 20] + 30


def test_what_is_not_finite_breaks_the_line():
    nan = float("nan")
    broken = chart([Line(torch.tensor([[0.0, 0.0], [5.0, nan], [10.0, 0.0]]), BLUE)])
    whole = chart([Line(torch.tensor([[0.0, 0.0], [5.0, 0.0], [10.0, 0.0]]), BLUE)])
    assert len(places(whole, BLUE)) > 300
    assert len(places(broken, BLUE)) == 0
    with pytest.raises(ValueError, match="at least one finite point"):
        chart([Line(torch.full((2, 2), nan))])
    with pytest.raises(ValueError, match=r"points must be a tensor \(n, 2\), got \(3,\)"):
        chart([Line(torch.zeros(3))])


def test_texts_are_drawn_large_enough_to_be_read_small():
    line = [Line(torch.tensor([[0.0, 0.0], [1.0, 1.0]]), BLUE, "real")]
    assert not torch.equal(chart([Line(line[0].points, BLUE)]), chart(line))  # the key
    for options in ({"title": "$t$"}, {"x_label": "steps"}, {"y_label": "score"}, {"notes": [(0.0, 1.0, "here")]}):
        assert not torch.equal(chart(line, **options), chart(line))
    changed = (chart(line, title="H") != chart(line, title=" ")).any(0)
    rows = changed[:40].any(1).nonzero()
    assert rows.max() - rows.min() >= 12  # the height of a capital letter, of 480 pixels


def test_the_users_own_figures_and_backend_are_left_alone():
    import matplotlib

    before, had = dict(matplotlib.rcParams), "matplotlib.pyplot" in sys.modules
    chart([Line(torch.tensor([[0.0, 0.0], [1.0, 1.0]]))])
    assert dict(matplotlib.rcParams) == before
    assert ("matplotlib.pyplot" in sys.modules) == had
    assert np.random.get_state()[1].tolist() == np.random.RandomState(0).get_state()[1].tolist()


def test_without_matplotlib_there_is_one_word_and_no_chart(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.warns(UserWarning, match=r"pip install 'qa-hooks\[plots\]'"):
        assert chart([Line(torch.tensor([[0.0, 0.0], [1.0, 1.0]]))]) is None

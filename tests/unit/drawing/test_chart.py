from __future__ import annotations

import pytest
import torch

from qa_hooks.drawing.chart import BLUE, ORANGE, Line, chart


def places(picture: torch.Tensor, color: tuple[int, int, int]) -> torch.Tensor:
    """Rows and columns `(n, 2)` of the pixels of exactly this colour."""
    return (picture == torch.tensor(color, dtype=torch.uint8)[:, None, None]).all(0).nonzero()


def test_points_are_where_they_should_be():
    corners = torch.tensor([[0.0, 0.0], [10.0, 0.0], [10.0, 5.0]])
    for index, point in enumerate(corners):
        found = places(chart([Line(corners, ORANGE), Line(point[None], BLUE, dots=True)]), BLUE).double().mean(0)
        frame = [(62 + 0.06 / 1.12 * 402, 464 - 0.06 / 1.12 * 402), (314 - 0.06 / 1.12 * 284, 30 + 0.06 / 1.12 * 284)]
        wanted = frame[1][int(index == 2)], frame[0][int(index > 0)]
        assert found.tolist() == pytest.approx(wanted, abs=1.5)


def test_round_numbers_on_the_axes():
    from qa_hooks.drawing.chart import _Axis

    values = torch.tensor([[0.0, 2.13], [1.0, 2.87]])
    axis = _Axis(values[:, 1].numpy(), 0, 100)
    assert [axis.text(tick) for tick in axis.ticks] == ["2.2", "2.4", "2.6", "2.8"]
    axis = _Axis(values[:1, 1].double().numpy(), 0, 100)  # one value
    assert all(0 <= axis(tick) <= 100 for tick in axis.ticks)
    assert len(axis.ticks) >= 3
    zero = _Axis(torch.zeros(3).numpy(), 0, 100)
    assert "0.0" in [zero.text(tick) for tick in zero.ticks]
    huge = _Axis(torch.tensor([1e9, 2e9]).double().numpy(), 0, 100)
    assert all(len(huge.text(tick)) <= 8 for tick in huge.ticks)


def test_older_points_are_paler():
    path = torch.tensor([[0.0, 0.0], [5.0, 0.0], [10.0, 0.0]])
    picture = chart([Line(path, BLUE, dots=True, fading=True)]).float()
    line = picture[:, 172, :].mean(0)  # the path is a level line in the middle
    first, last = line[62 + 22], line[464 - 22]
    assert first > last + 30


def test_what_is_not_finite_breaks_the_line():
    nan = float("nan")
    broken = chart([Line(torch.tensor([[0.0, 0.0], [5.0, nan], [10.0, 0.0]]), BLUE)])
    whole = chart([Line(torch.tensor([[0.0, 0.0], [5.0, 0.0], [10.0, 0.0]]), BLUE)])
    assert len(places(whole, BLUE)) > 500
    assert len(places(broken, BLUE)) == 0
    with pytest.raises(ValueError, match="at least one finite point"):
        chart([Line(torch.full((2, 2), nan))])
    with pytest.raises(ValueError, match=r"points must be a tensor \(n, 2\), got \(3,\)"):
        chart([Line(torch.zeros(3))])


def test_texts_are_drawn():
    line = [Line(torch.tensor([[0.0, 0.0], [1.0, 1.0]]), BLUE, "real")]
    plain = chart([Line(line[0].points, BLUE)])
    for options in ({"title": "t"}, {"x_label": "steps"}, {"y_label": "score"}, {"notes": [(0.0, 1.0, "here")]}):
        assert not torch.equal(chart(line, **options), chart(line))
    assert not torch.equal(chart(line), plain)  # the key
    # A note at the right edge stays inside the frame.
    noted = chart(line, notes=[(1.0, 1.0, "14000")])
    changed = (noted != chart(line)).any(0).nonzero()
    assert changed[:, 1].max() < 464

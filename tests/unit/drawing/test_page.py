from __future__ import annotations

import torch

from qa_hooks.drawing.named_rows import named_rows
from qa_hooks.drawing.page import page


def ink(picture: torch.Tensor) -> torch.Tensor:
    return (picture < 150).all(0)


def test_parts_stand_below_each_other_in_one_width():
    picture = torch.full((3, 30, 50), 90, dtype=torch.uint8)
    drawn = page(["some words", [["", "a"], ["fd", "1.5"]], picture], width=300)
    assert drawn.dtype == torch.uint8
    assert drawn.shape[2] == 300
    assert (drawn[:, -42:-12, 12:62] == 90).all()
    assert bool((drawn[:, :5] == 255).all())


def test_words_are_wrapped_and_a_wide_table_widens_the_page():
    short, long = (page([" ".join(["word"] * count)], width=200) for count in (3, 60))
    assert short.shape[2] == long.shape[2] == 200
    assert long.shape[1] > 5 * short.shape[1] - 200
    wide = page([[["", *["a column of some width"] * 9]]], width=200)
    assert wide.shape[2] > 1000
    assert not ink(wide)[:, -10:].any()


def test_columns_of_numbers_end_at_one_place():
    drawn = page([[["", "value"], ["a", "|"], ["b", "1000|"]]], width=200)
    rows = ink(drawn)
    ends = [int(rows[top : top + 12].any(0).nonzero().max()) for top in (37, 54)]
    assert abs(ends[0] - ends[1]) <= 1


def test_rows_under_their_names():
    rows = {"real": torch.full((3, 1, 8, 8), 10, dtype=torch.uint8), "plain": torch.full((3, 1, 8, 8), 20).byte()}
    drawn = named_rows(rows, scale=4)
    tops = [int((drawn == level).all(0).any(1).nonzero()[0]) for level in (10, 20)]
    assert tops[0] < tops[1]
    for top in tops:
        assert ink(drawn)[top - 20 : top - 2].sum() > 20  # a name above each row
    for level in (10, 20):
        assert int((drawn == level).all(0).sum()) == 3 * 32 * 32

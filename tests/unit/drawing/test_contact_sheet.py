from __future__ import annotations

import pytest
import torch

from qa_hooks.drawing.contact_sheet import PADDING, card_sheet, contact_sheet
from qa_hooks.drawing.font import load_font
from qa_hooks.drawing.thumbnails import most_detailed, square_at

GROUND = 255


def flat(value: int, height: int, width: int, channels: int = 3) -> torch.Tensor:
    return torch.full((channels, height, width), value, dtype=torch.uint8)


def found(sheet: torch.Tensor, value: int) -> tuple[int, int, int, int]:
    """Top, left, height and width of what has exactly this colour; it must be a full rectangle."""
    mask = (sheet == value).all(0)
    rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    top, left = int(rows[0]), int(columns[0])
    height, width = int(rows[-1]) - top + 1, int(columns[-1]) - left + 1
    assert bool(mask[top : top + height, left : left + width].all())
    return top, left, height, width


def test_one_image_and_its_label():
    plain, labelled = (contact_sheet([flat(200, 64, 64)], [text]) for text in ("", "0.5"))
    assert plain.shape[2] == labelled.shape[2]
    assert plain.shape[1] < labelled.shape[1]
    assert found(plain, 200) == found(labelled, 200)
    changed = (labelled < 150).any(0).nonzero()
    assert len(changed) > 10
    top, left, height, width = found(plain, 200)
    assert changed[:, 0].min() >= top + height
    assert left <= changed[:, 1].min() <= changed[:, 1].max() < left + width


def test_mixed_sizes_and_grey_keep_their_proportions():
    images = [flat(10, 40, 20), flat(60, 10, 30, 1), flat(110, 400, 200), flat(160, 5, 500)]
    sheet = contact_sheet(images, [""] * 4, columns=2, scale=2, max_side=100)
    boxes = [found(sheet, value) for value in (10, 60, 110, 160)]
    assert [box[2:] for box in boxes] == [(80, 40), (20, 60), (100, 50), (1, 100)]
    assert boxes[0][0] + boxes[0][2] == boxes[1][0] + boxes[1][2]  # one base line in a row
    assert boxes[2][0] > boxes[0][0] + boxes[0][2]
    assert sheet.dtype == torch.uint8
    assert sheet.shape[0] == 3


def test_enlarging_repeats_pixels_and_shrinking_averages():
    image = torch.tensor([[0, 255], [255, 0]], dtype=torch.uint8)[None]
    sheet = contact_sheet([image], [""], scale=8)
    top, left, _, _ = found(contact_sheet([flat(7, 2, 2)], [""], scale=8), 7)
    expected = image.repeat_interleave(8, 1).repeat_interleave(8, 2).expand(3, -1, -1)
    assert torch.equal(sheet[:, top : top + 16, left : left + 16], expected)
    checks = ((torch.arange(256)[:, None] + torch.arange(256)) % 2 * 255).to(torch.uint8)[None]
    small = contact_sheet([checks], [""], max_side=64)
    assert 120 < small[:, 20:40, 20:40].float().mean() < 135
    assert small[:, 20:40, 20:40].float().std() < 20


def test_headings_begin_a_row():
    images = [None, flat(10, 8, 8), flat(20, 8, 8), None, flat(30, 8, 8)]
    sheet = contact_sheet(images, ["kept by niqe_bsd100", "1", "2", "... 812 between ...", "3"], columns=4)
    first, second, third = (found(sheet, value) for value in (10, 20, 30))
    assert first[0] == second[0] < third[0]
    assert first[1] == third[1]
    ink = (sheet < 150).any(0) & ~torch.isin(sheet[0], torch.tensor([10, 20, 30], dtype=torch.uint8))
    assert ink[: first[0]].sum() > 30
    assert ink[first[0] + 25 : third[0]].sum() > 30
    assert int(ink.any(0).nonzero().max()) < sheet.shape[2] - 4  # the heading fits


def test_labels_stay_in_their_cells_and_in_the_font():
    images = [flat(100, 70, 70) for _ in range(2)]
    sheet = contact_sheet(images, ["a label much wider than its picture could ever be", ""], columns=2)
    half = sheet.shape[2] // 2
    assert (sheet[:, 80:, half + 3 :] == GROUND).all()
    contact_sheet(images, ["grün 世界 \U0001f600", "two\nlines\0"])


def test_a_shrunk_image_shows_its_most_detailed_square_pixel_by_pixel():
    image = flat(90, 300, 400)
    image[:, 110:190, 160:240] = torch.arange(80, dtype=torch.uint8)[:, None] + 100  # only rows of the middle differ
    small = flat(20, 50, 50)
    sheet = contact_sheet([image, small], ["a.png", "b.png"], max_side=100, detail=80)
    wanted = image[:, 110:190, 160:240]
    places = [
        (top, left)
        for top in range(sheet.shape[1] - 80)
        for left in (PADDING + 10,)
        if torch.equal(sheet[:, top : top + 80, left : left + 80], wanted)
    ]
    assert len(places) == 1
    assert places[0][0] > PADDING + 75  # under the thumbnail of 75 rows
    assert found(sheet, 20)[2:] == (50, 50)  # what is shown whole needs no second picture
    plain = contact_sheet([small], ["b.png"], max_side=100, detail=80)
    assert plain.shape == contact_sheet([small], ["b.png"], max_side=100).shape


def test_labels_have_lines():
    one, two = (contact_sheet([flat(100, 70, 70)], [text]) for text in ("0.5", "a.png\n0.5"))
    assert two.shape[1] > one.shape[1]


def test_a_card_is_read_at_315_pixels():
    sheet = card_sheet([None, *[flat(100, 60, 60)] * 6] * 2, ["a heading of a card " * 2, *["#12\n-0.123"] * 6] * 2)
    letters = load_font(21, bold=True).face.getbbox("x")
    height = (letters[3] - letters[1]) * 315 / sheet.shape[2]
    assert height > 4.5  # the height of an x
    minus = load_font(21, bold=True).face.getbbox("-")
    assert (minus[3] - minus[1]) * 315 / sheet.shape[2] > 1  # TensorBoard leaves out rows of pixels
    assert sheet.shape[2] <= 6 * (120 + PADDING) + PADDING
    assert sheet.shape[2] / sheet.shape[1] > 1.5


def test_a_card_of_large_images_shows_a_square_of_each_and_is_read():
    large = torch.arange(200, dtype=torch.uint8)[:, None].expand(3, 200, 200)
    labels = ["a heading of a card", *["#12\n-0.123"] * 6] * 2
    sheet = card_sheet([None, *[large] * 6] * 2, labels)
    assert any(torch.equal(sheet[:, top : top + 120, 6:126], large[:, :120, :120]) for top in range(150, 250))
    letters = load_font(28, bold=True).face.getbbox("x")
    assert (letters[3] - letters[1]) * min(315 / sheet.shape[2], 200 / sheet.shape[1]) > 3.5  # the height of an x
    given = card_sheet([large[:, :96, :96], large[:, :50, :50]], ["a", "b"], [large[:, 7:103, 9:105], None])
    assert any(
        torch.equal(given[:, top : top + 96, left : left + 96], large[:, 7:103, 9:105])
        for top in range(given.shape[1] - 96)
        for left in range(20)
    )
    with pytest.raises(ValueError, match="one square or None per image, got 1 for 2 images"):
        contact_sheet([large, large], ["a", "b"], detail=[None])
    whole = [large[:, :100, :100]] * 2
    assert torch.equal(card_sheet(whole, ["a", "b"]), card_sheet(whole, ["a", "b"], [None, None]))


def test_squares_have_a_place_in_every_picture():
    picture = torch.zeros(1, 40, 200, dtype=torch.uint8)
    picture[:, ::2, 110:190] = 255
    assert most_detailed(picture, 96) == (0, 104)
    assert square_at(picture, (0, 104), 96).shape == (1, 40, 96)
    assert square_at(picture[:, :, :100], (30, 104), 96).shape == (1, 40, 96)
    assert most_detailed(picture[:, :1, :1], 96) == (0, 0)


def test_many_columns_at_most():
    sheet = contact_sheet(torch.zeros(400, 1, 8, 8, dtype=torch.uint8), [""] * 400)
    assert sheet.shape[2] == 12 * (8 + 6) + 6


@pytest.mark.parametrize(
    ("images", "labels", "error", "message"),
    [
        ([], [], ValueError, "empty"),
        ([None], ["a"], ValueError, "empty"),
        ([torch.zeros(3, 4, 4)], ["a"], TypeError, r"uint8 .*to_uint8"),
        ([torch.zeros(4, 4, dtype=torch.uint8)], ["a"], ValueError, r"\(4, 4\)"),
        ([flat(0, 4, 4, 4)], ["a"], ValueError, r"\(4, 4, 4\)"),
        ([flat(0, 4, 4)], [], ValueError, "0 labels for 1 images"),
    ],
)
def test_bad_input(images, labels, error, message):
    with pytest.raises(error, match=message):
        contact_sheet(images, labels)


def test_bad_options():
    for option in ({"columns": 0}, {"scale": 0}, {"max_side": 0}):
        with pytest.raises(ValueError, match=next(iter(option))):
            contact_sheet([flat(0, 4, 4)], [""], **option)

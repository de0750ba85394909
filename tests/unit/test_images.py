from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from qa_hooks.images import (
    RangeGuard,
    as_tensor,
    check_images,
    check_range,
    list_images,
    load_image,
    make_grid,
    save_image,
    to_grey,
    to_uint8,
    to_unit,
)


@pytest.mark.parametrize("bad", [(1, 0), (0, 0), (0, float("inf")), (0,), "01x", None])
def test_a_range_must_be_two_ordered_finite_numbers(bad):
    with pytest.raises(ValueError, match="value_range"):
        check_range(bad)


def test_layout_errors_say_what_arrived():
    with pytest.raises(TypeError, match=r"pred must be a torch.Tensor .* got list"):
        check_images("pred", [1])
    with pytest.raises(ValueError, match=r"real must have the shape .* got \(3, 8, 8\)"):
        check_images("real", torch.zeros(3, 8, 8))
    with pytest.raises(ValueError, match="fake is empty"):
        check_images("fake", torch.zeros(0, 3, 8, 8))
    with pytest.raises(TypeError, match=r"float\(\) / 255"):
        check_images("pred", torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"looks like \(N, H, W, C\): give pred\.permute\(0, 3, 1, 2\)"):
        check_images("pred", torch.zeros(2, 16, 16, 3))
    for shape in ((2, 3, 16, 3), (2, 16, 3, 3), (2, 4, 16, 3)):  # narrow pictures, and maps of features
        assert check_images("pred", torch.zeros(shape)).shape == shape


def test_to_unit_is_linear_keeps_overshoot_and_gradient():
    images = torch.tensor([-1.2, -1.0, 0.0, 1.0]).view(1, 1, 2, 2).requires_grad_()
    unit = to_unit(images, (-1.0, 1.0))
    assert torch.allclose(unit.flatten(), torch.tensor([-0.1, 0.0, 0.5, 1.0]))
    unit.sum().backward()
    assert (images.grad == 0.5).all()


def test_grey_is_matlabs():
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    assert to_grey(red).item() == pytest.approx(0.298936021293775)
    assert to_grey(torch.ones(1, 3, 1, 1)).item() == pytest.approx(1)
    with pytest.raises(ValueError, match="1 or 3 channels, got 4"):
        to_grey(torch.ones(1, 4, 1, 1))


class TestRangeGuard:
    def test_data_outside_the_declared_range_raises(self):
        with pytest.raises(ValueError, match=r"real: values lie in \[-1, 1\] but value_range=\(0, 1\)"):
            RangeGuard((0.0, 1.0))(data={"real": torch.tensor([-1.0, 1.0])})

    def test_one_percent_is_forgiven(self):
        RangeGuard((0.0, 1.0))(data={"real": torch.tensor([-0.009, 1.009])})

    def test_non_finite_predictions_raise(self):
        with pytest.raises(ValueError, match="fake: some values are not finite"):
            RangeGuard((0.0, 1.0))(predictions={"fake": torch.tensor([0.0, float("nan")])})

    def test_overshoot_is_silent_and_another_convention_warns_once(self, recwarn):
        guard = RangeGuard((0.0, 1.0))
        guard(predictions={"pred": torch.tensor([-0.3, 1.3])})
        assert not recwarn.list
        guard(predictions={"pred": torch.tensor([0.0, 255.0])})
        guard(predictions={"pred": torch.tensor([0.0, 255.0])})
        assert len(recwarn.list) == 1

    def test_a_few_values_far_outside_are_an_overshoot(self, recwarn):
        values = torch.full((1, 3, 32, 32), 0.5)
        values[..., 0, 0] = 9.0
        RangeGuard((0.0, 1.0))(predictions={"pred": values})
        assert not recwarn.list
        values[..., 0, 0] = 255.0  # white points on black, under (0, 1)
        with pytest.warns(UserWarning, match="another convention"):
            RangeGuard((0.0, 1.0))(predictions={"pred": values})

    def test_unit_predictions_under_a_symmetric_range_warn(self):
        with pytest.warns(UserWarning, match="another convention"):
            RangeGuard((-1.0, 1.0))(predictions={"pred": torch.tensor([0.0, 1.0])})

    @pytest.mark.parametrize("value_range", [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)])
    def test_an_untrained_network_may_give_black(self, value_range, recwarn):
        for low, high in ((0.0, 0.012), (-0.02, 0.01), (0.0, 1e-6), (0.1, 0.15)):
            RangeGuard(value_range)(predictions={"pred": torch.tensor([low, high])})
        assert not recwarn.list

    @pytest.mark.parametrize(
        ("declared", "low", "high", "hint"),
        [
            ((0.0, 1.0), -0.99, 0.98, r"declare \(-1, 1\)"),
            ((0.0, 1.0), 0.0, 255.0, r"declare \(0, 255\)"),
            ((-1.0, 1.0), 0.0, 1.0, r"declare \(0, 1\)"),
            ((0.0, 255.0), 0.0, 1.0, r"declare \(0, 1\)"),
            ((0.0, 1.0), -9.0, 40.0, "declare the range that the images have"),
        ],
    )
    def test_the_message_names_the_range_that_values_have(self, declared, low, high, hint):
        with pytest.warns(UserWarning, match=hint):
            RangeGuard(declared)(predictions={"pred": torch.tensor([low, high])})

    def test_data_of_another_convention_warns(self):
        for declared, high in (((-1.0, 1.0), 1.0), ((-1.0, 1.0), 0.8), ((0.0, 255.0), 1.0)):
            with pytest.warns(UserWarning, match="another convention"):
                RangeGuard(declared)(data={"real": torch.tensor([0.0, high])})

    def test_it_stops_looking_after_three_calls(self):
        guard = RangeGuard((0.0, 1.0))
        for _ in range(3):
            guard(data={"real": torch.zeros(2)})
        guard(data={"real": torch.full((2,), 9.0)})


def test_as_tensor_takes_what_people_have():
    array = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    expected = torch.from_numpy(array).permute(2, 0, 1)[None]
    assert torch.equal(as_tensor(array), expected)
    assert torch.equal(as_tensor(Image.fromarray(array)), expected)
    assert torch.equal(as_tensor([array, array]), expected.repeat(2, 1, 1, 1))
    assert as_tensor(array[..., 0]).shape == (1, 1, 2, 3)
    assert as_tensor(Image.fromarray(array).convert("L")).shape == (1, 1, 2, 3)
    assert as_tensor(torch.zeros(3, 4, 4)).shape == (1, 3, 4, 4)
    for bad, kind in [(3, TypeError), ([], ValueError), (np.zeros((2, 2), dtype=np.int64), TypeError)]:
        with pytest.raises(kind):
            as_tensor(bad)
    with pytest.raises(ValueError, match="one size"):
        as_tensor([array, array[:1]])
    channels_first = np.zeros((2, 3, 5, 7), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"got \(2, 3, 5, 7\); that looks like \(N, C, H, W\): give torch.from_numpy"):
        as_tensor(channels_first)
    assert as_tensor(channels_first.transpose(0, 2, 3, 1)).shape == (2, 3, 5, 7)
    with pytest.raises(ValueError, match=r"got \(2, 8, 5, 7\)$"):
        as_tensor(np.zeros((2, 8, 5, 7), dtype=np.uint8))
    for name in ("photo.png", "a", ["photo.png"]):  # letters are strings themselves, without end
        with pytest.raises(TypeError, match=r"images must be a tensor, .* got str"):
            as_tensor(name)


def test_as_tensor_takes_files_in_memory(tmp_path):
    """As webdataset hands them over, and `datasets` with `Image(decode=False)`."""
    image = torch.randint(0, 256, (3, 8, 9), dtype=torch.uint8)
    save_image(image, tmp_path / "a.png")
    held = (tmp_path / "a.png").read_bytes()
    for given in (held, bytearray(held), {"bytes": held, "path": None}, [held, {"bytes": held, "path": "x.png"}]):
        assert torch.equal(as_tensor(given)[0], image)
    with pytest.raises(ValueError, match="names are not followed"):
        as_tensor({"bytes": None, "path": str(tmp_path / "a.png")})
    with pytest.raises(TypeError, match="got dict"):
        as_tensor({"image": image})
    with pytest.raises(ValueError, match="its content is none of PNG"):
        as_tensor(b"a")


def test_files_round_trip_and_broken_ones_are_named(tmp_path):
    image = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8)
    save_image(image, tmp_path / "b.png")
    save_image(image[:1], tmp_path / "a.png")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "broken.png").write_bytes((tmp_path / "b.png").read_bytes()[:40])
    assert [path.name for path in list_images(tmp_path)] == ["a.png", "b.png", "broken.png"]
    assert torch.equal(load_image(tmp_path / "b.png"), image)
    assert torch.equal(load_image(tmp_path / "a.png"), image[:1])
    with pytest.raises(ValueError, match=r"broken\.png is not a readable image"):
        load_image(tmp_path / "sub" / "broken.png")
    with pytest.raises(ValueError, match="not a folder"):
        list_images(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no image files"):
        list_images(tmp_path / "empty")


def test_quantising_clamps_and_rounds():
    values = torch.tensor([-5.0, -1.0, 0.0, 1.0, 5.0]).view(1, 1, 1, 5)
    assert to_uint8(values, (-1.0, 1.0)).flatten().tolist() == [0, 0, 128, 255, 255]


def test_a_grid_holds_each_image_once():
    images = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 1, 4, 4) * 10
    grid = make_grid(images, columns=3, padding=1)
    assert grid.shape == (1, 2 * 5 + 1, 3 * 5 + 1)
    assert grid.dtype == torch.uint8
    for index in range(5):
        top, left = 1 + (index // 3) * 5, 1 + (index % 3) * 5
        assert (grid[0, top : top + 4, left : left + 4] == index * 10).all()
    assert (grid[0, 6:, 11:] == 230).all()


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path):
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert load_image(tmp_path / "deep.png").flatten().tolist() == [0, 1, 128, 255]


def test_a_bomb_is_a_broken_image(tmp_path, monkeypatch):
    save_image(torch.zeros(1, 64, 64, dtype=torch.uint8), tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"huge\.png is not a readable image"):
        load_image(tmp_path / "huge.png")


def test_a_photograph_is_turned_upright(tmp_path):
    picture = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4) * 20)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held sideways
    picture.save(tmp_path / "sideways.png", exif=exif)
    assert torch.equal(load_image(tmp_path / "sideways.png")[0], torch.arange(12).view(3, 4).rot90(-1).byte() * 20)


@pytest.mark.parametrize("picture", [torch.rand(3, 4, 4), torch.zeros(1, 3, 4, 4, dtype=torch.uint8)])
def test_a_picture_that_is_not_in_bytes_is_refused_by_name(picture, tmp_path):
    with pytest.raises(TypeError, match=r"a picture must be uint8 \(C, H, W\): to_uint8"):
        save_image(picture, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())

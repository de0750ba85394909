"""Every kind of picture file: right, or refused by name; and no format that was not asked for."""

from __future__ import annotations

import io
import re
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from qa_hooks._base import decoding
from qa_hooks.images import as_tensor, image_size, load_image

ROOT = Path(__file__).resolve().parents[3]
RAMP = np.linspace(0, 1, 64 * 64).reshape(64, 64)
GREY = (RAMP * 255).round().astype(np.uint8)
COLOUR = np.stack([GREY, GREY.T, 255 - GREY], 2)


def palette(array: np.ndarray) -> Image.Image:
    """A palette that holds each colour exactly."""
    colours, indices = np.unique(array.reshape(-1, 3), axis=0, return_inverse=True)
    image = Image.fromarray(indices.reshape(array.shape[:2]).astype(np.uint8), "P")
    image.putpalette(colours.flatten().tolist())
    return image


FEW = COLOUR // 64 * 64
KINDS = {
    "1.png": (
        Image.fromarray(GREY).convert("1"),
        np.asarray(Image.fromarray(GREY).convert("1")).astype(np.uint8) * 255,
    ),
    "L.png": (Image.fromarray(GREY), GREY),
    "L.tif": (Image.fromarray(GREY), GREY),
    "L.gif": (Image.fromarray(GREY), GREY),
    "LA.png": (Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(GREY.T.copy())]), GREY),
    "P grey.png": (palette(np.stack([GREY] * 3, 2)), GREY),
    "P colour.png": (palette(FEW), FEW),
    "P colour.gif": (palette(FEW), FEW),
    "RGB.png": (Image.fromarray(COLOUR), COLOUR),
    "RGB equal.png": (Image.fromarray(np.stack([GREY] * 3, 2)), np.stack([GREY] * 3, 2)),
    "RGBA.png": (Image.merge("RGBA", [*Image.fromarray(COLOUR).split(), Image.fromarray(GREY)]), COLOUR),
    "RGB.bmp": (Image.fromarray(COLOUR), COLOUR),
    "RGB.ppm": (Image.fromarray(COLOUR), COLOUR),
    "L.pgm": (Image.fromarray(GREY), GREY),
    "16.png": (Image.fromarray((RAMP * 65535).round().astype(np.uint16)), GREY),
    "16.tif": (Image.fromarray((RAMP * 65535).round().astype(np.uint16)), GREY),
    "16.pgm": (Image.fromarray((RAMP * 65535).round().astype(np.uint16)), GREY),
    "CMYK.tif": (Image.fromarray(COLOUR).convert("CMYK"), COLOUR),
}


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_is_the_picture_that_was_saved(tmp_path, name):
    image, right = KINDS[name]
    image.save(tmp_path / name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = load_image(tmp_path / name)
    expected = torch.from_numpy(np.atleast_3d(right).transpose(2, 0, 1).copy())
    assert got.shape == expected.shape
    assert (got.int() - expected.int()).abs().max() <= (1 if name.startswith("16") else 0)


def test_transparency_in_a_palette_is_dropped(tmp_path):
    palette(FEW).save(tmp_path / "a.png", transparency=0)
    palette(FEW).save(tmp_path / "b.png", transparency=bytes(range(64)))
    for name in ("a.png", "b.png"):
        assert torch.equal(load_image(tmp_path / name), torch.from_numpy(FEW.transpose(2, 0, 1).copy()))


@pytest.mark.parametrize(
    "array", [RAMP.astype(np.float32), (RAMP * 255).astype(np.float32), (RAMP * 255).astype(np.int32)]
)
def test_pixels_whose_range_nobody_knows_are_refused_by_name(tmp_path, array):
    Image.fromarray(array).save(tmp_path / "deep.tif")
    with pytest.raises(ValueError, match=r"deep\.tif is not a readable image: it holds .* whose range"):
        load_image(tmp_path / "deep.tif")


def test_a_picture_in_memory_of_floats_is_refused():
    with pytest.raises(ValueError, match="value_range"):
        as_tensor(Image.fromarray(RAMP.astype(np.float32)))


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_fewer_bits_in_a_file_of_sixteen_are_told(tmp_path, bits, suffix):
    Image.fromarray((RAMP * (2**bits - 1)).round().astype(np.uint16)).save(tmp_path / f"a.{suffix}")
    with pytest.warns(UserWarning, match=f"as one of {bits} bits does"):
        load_image(tmp_path / f"a.{suffix}")


def test_a_black_picture_of_sixteen_bits_is_nothing_to_tell(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not load_image(tmp_path / "a.png").any()


def write_png_of_48_bits(path: Path, values: np.ndarray) -> None:
    """`(H, W, 3)` uint16; Pillow writes none."""
    import struct
    import zlib

    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = part(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + part(b"IDAT", zlib.compress(rows)) + part(b"IEND", b""))


def test_colours_of_sixteen_bits(tmp_path):
    values = np.repeat((RAMP * 65535).round().astype(np.uint16)[:, :, None], 3, 2)
    write_png_of_48_bits(tmp_path / "a.png", values)
    assert (load_image(tmp_path / "a.png")[0].int() - torch.from_numpy(GREY).int()).abs().max() <= 1
    write_png_of_48_bits(tmp_path / "b.png", values // 16)
    with pytest.warns(UserWarning, match="as one of 12 bits does"):
        load_image(tmp_path / "b.png")


@pytest.mark.parametrize("name", ["photo.png", "scan.tif", "drawing.jpg"])
def test_formats_are_known_by_content_and_not_by_suffix(tmp_path, name):
    (tmp_path / name).write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")
    with pytest.raises(ValueError, match=rf"{name} is not a readable image: its content is none of PNG"):
        load_image(tmp_path / name)
    icon = io.BytesIO()
    Image.fromarray(COLOUR).save(icon, "TGA")
    (tmp_path / name).write_bytes(icon.getvalue())
    with pytest.raises(ValueError, match="is not a readable image"):
        load_image(tmp_path / name)
    Image.fromarray(COLOUR).save(tmp_path / "true.png")
    (tmp_path / "true.png").replace(tmp_path / name)  # a PNG under another suffix is a PNG
    assert load_image(tmp_path / name).shape == (3, 64, 64)


def test_nothing_in_the_package_opens_pictures_in_another_way():
    for top in ("qa_hooks", "integrations"):
        for path in (ROOT / top).rglob("*.py"):
            if path.name != "decoding.py":
                assert not re.search(r"Image\.open\(", path.read_text()), path


def test_a_bomb_is_refused_whatever_pillow_was_told(tmp_path, monkeypatch):
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    monkeypatch.setattr(decoding, "PIXELS", 1000)
    for read in (load_image, image_size):
        with pytest.raises(ValueError, match="64 x 64 pixels, more than 1000"):
            read(tmp_path / "a.png")


def test_sizes_are_those_of_the_upright_picture(tmp_path):
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for suffix in ("png", "jpg", "tif", "webp"):
            Image.fromarray(COLOUR[:30]).save(tmp_path / f"a.{suffix}", exif=exif)
            width, height = image_size(tmp_path / f"a.{suffix}")
            assert load_image(tmp_path / f"a.{suffix}").shape == (3, height, width)
            assert (height < width) == (orientation < 5)


def png_of_16_bits(samples: np.ndarray, colour_type: int) -> bytes:
    """A PNG `(H, W, C)`, put together by hand, because Pillow does not write these kinds."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples.reshape(height, -1))
    head = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    data = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def test_16_bits_with_transparency_keep_their_channels(tmp_path):
    alpha = np.full((64, 64, 1), 30000)
    for name, colours, kind in (("grey", GREY[:, :, None], 4), ("colour", COLOUR, 6)):
        (tmp_path / f"{name}.png").write_bytes(png_of_16_bits(np.dstack([colours.astype(int) * 257, alpha]), kind))
        assert torch.equal(load_image(tmp_path / f"{name}.png"), torch.from_numpy(colours.transpose(2, 0, 1).copy()))


@pytest.mark.parametrize("levels", [np.uint8(GREY), GREY.astype(np.uint16) * 257])
def test_a_tiff_whose_white_is_zero(tmp_path, levels):
    path = tmp_path / "a.tif"
    Image.fromarray(levels).save(path)
    stored = path.read_bytes()
    at = stored.index(struct.pack("<HHI", 262, 3, 1)) + 8  # a tag, one 16-bit number, then the number
    path.write_bytes(stored[:at] + struct.pack("<H", 0) + stored[at + 2 :])
    assert torch.equal(load_image(path)[0], torch.from_numpy(255 - GREY))


TURNED = {"grey": GREY[:40, :48], "grey of 16 bits": GREY[:40, :48].astype(np.uint16) * 257, "colour": COLOUR[:40, :48]}


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("kind", TURNED)
def test_a_plain_tiff_is_turned_upright(tmp_path, kind, orientation):
    from PIL import ImageOps

    path, array = tmp_path / "a.tif", TURNED[kind]
    photometric = "rgb" if array.ndim == 3 else "minisblack"
    tifffile.imwrite(path, array, photometric=photometric, extratags=[(274, "H", 1, orientation, True)])
    eight = (array // 257).astype(np.uint8) if array.dtype == np.uint16 else array
    stored = Image.fromarray(eight)
    stored.getexif()[274] = orientation
    right = np.asarray(ImageOps.exif_transpose(stored)).reshape(*(48, 40)[:: 1 if orientation > 4 else -1], -1)
    got = load_image(path)
    assert (got.permute(1, 2, 0).numpy() == right).all()
    assert image_size(path) == (got.shape[2], got.shape[1])


def test_samples_that_pillow_takes_for_others_are_refused(tmp_path):
    signed, planes = tmp_path / "signed.tif", tmp_path / "planes.tif"
    tifffile.imwrite(signed, (GREY.astype(np.int16) - 128).astype(np.int8))
    tifffile.imwrite(
        planes, COLOUR.transpose(2, 0, 1).astype(np.uint16) * 257, photometric="rgb", planarconfig="separate"
    )
    with pytest.raises(ValueError, match=r"signed\.tif is not a readable image: it holds signed integers"):
        load_image(signed)
    with pytest.raises(ValueError, match=r"planes\.tif .* more than 8 bits for each colour"):
        load_image(planes)
    for compression in ("zlib", None):  # compressed planes come right, as do planes of 8 bits
        array = COLOUR.astype(np.uint16) * 257 if compression else COLOUR
        data = array.transpose(2, 0, 1)
        tifffile.imwrite(planes, data, photometric="rgb", planarconfig="separate", compression=compression)
        assert (load_image(planes).permute(1, 2, 0).numpy() == COLOUR).all()

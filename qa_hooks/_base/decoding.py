"""One picture file -> one uint8 array: which formats are read, and what the kinds of pixels in them mean.

Formats are known by their content, not by their suffix: a PostScript file called .png would start another program.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from qa_hooks._base.checks import warn

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
IMAGE_SUFFIXES = frozenset(
    {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".bmp", ".webp", ".tif", ".tiff", ".gif"}
    | {".ppm", ".pgm", ".pbm", ".pnm"}
)
OTHER_SUFFIXES = frozenset(  # pictures all the same: they are named when they are left out
    {".avif", ".heic", ".heif", ".jxl", ".jp2", ".j2k", ".tga", ".exr", ".hdr", ".pfm", ".psd", ".dds"}
    | {".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2"}  # of cameras
)
FORMATS = ("PNG", "JPEG", "MPO", "BMP", "WEBP", "TIFF", "PPM", "GIF")
PIXELS = 178_956_970  # of one picture, twice Pillow's default; what Pillow is told in somebody's run does not matter
TURN = 0x0112  # tag: how the camera was held, 1: upright
BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # tags of a TIFF; photometric 0: white is 0, format 2: signed
DEEP = 1 << 14  # a 16-bit file whose values stay below holds 14 bits or fewer


@contextlib.contextmanager
def open_picture(file: str | Path | BinaryIO) -> Iterator[Any]:
    """A `PIL.Image` whose pixels are not read yet.

    Pillow is given an open file and no path: it would map a plain file into memory, where a picture that is being
    written ends the process, and one that is turned comes out scrambled.

    Raises:
        ValueError: no picture of `FORMATS`, or one of too many pixels.
        OSError: no such file.
    """
    from PIL import Image, UnidentifiedImageError
    from PIL.Image import DecompressionBombError

    try:
        with contextlib.ExitStack() as stack:
            opened = stack.enter_context(Path(file).open("rb")) if isinstance(file, (str, Path)) else file
            image = stack.enter_context(Image.open(opened, formats=_formats()))
            if image.width * image.height > PIXELS:
                raise ValueError(f"it has {image.width} x {image.height} pixels, more than {PIXELS} in all")
            yield image
    except UnidentifiedImageError:
        raise ValueError(
            f"its content is none of {', '.join(FORMATS)}, or a kind of pixels in them that Pillow does not read"
        ) from None
    except (DecompressionBombError, SyntaxError) as error:
        raise ValueError(str(error)) from error


@functools.cache
def _formats() -> list[str]:
    """Those that this Pillow can read."""
    from PIL import Image

    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def decode(file: str | Path | BinaryIO) -> Pixels:
    """`(H, W, C)`, upright as the camera was held; C = 1 for grey pictures, also in a palette or with transparency."""
    from PIL import ImageOps

    with open_picture(file) as image:
        if image.mode == "I" and image.format not in ("PNG", "PPM"):
            raise _no_range("32-bit integers")
        # Pillow reduces colours of 16 bits to 8 while it reads.
        tiles = [str(tile) for tile in image.tile]
        _check_samples(image, tiles)
        deep = not image.mode.startswith("I") and any(";16" in tile for tile in tiles)
        sixteen = any("'I;16" in tile for tile in tiles)
        white_is_zero = sixteen and getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == 0
        image.load()
        turned = image.getexif().get(TURN, 1) != 1
        pixels = pixels_of(ImageOps.exif_transpose(image) if turned else image)  # it copies where nothing is to turn
        if any("'LA;16" in tile for tile in tiles):  # grey with transparency, of which Pillow makes colours
            pixels = pixels[:, :, :1]
        if white_is_zero:  # Pillow turns pictures of 8 bits only
            pixels = 255 - pixels
        if deep and pixels.max() < DEEP >> 8:
            _warn_of_depth(int(pixels.max()) << 8)
    return pixels


def _check_samples(image: Any, tiles: list[str]) -> None:
    """`ValueError` for a TIFF whose samples Pillow takes for others without a word."""
    tags = getattr(image, "tag_v2", None)
    if not tags:
        return
    if image.mode[0] not in "FI" and 2 in np.atleast_1d(tags.get(SAMPLE_FORMAT, 1)):
        raise _no_range("signed integers")
    deep = max(np.atleast_1d(tags.get(BITS, 8))) > 8
    if deep and image.mode[0] not in "FI" and not any(";16" in tile for tile in tiles):
        raise ValueError(
            "it holds a plane of more than 8 bits for each colour, which Pillow reads as 8 bits: save it with the "
            "colours of each pixel together, or with 8 bits"
        )


def pixels_of(image: Any) -> Pixels:
    """`(H, W, C)` of a `PIL.Image`, C = 1 or 3; transparency is dropped, of several frames the first is read.

    Raises:
        ValueError: pixels whose range nobody knows.
    """
    if image.mode == "F":
        raise _no_range("floating-point numbers")
    if image.mode.startswith("I"):  # 16 bits; Pillow's own conversion would clip all but the darkest
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"its values go from {values.min()} to {values.max()}, expected 16 bits, 0 to 65535")
        if 0 < values.max() < DEEP:
            _warn_of_depth(int(values.max()))
        return (values / 257).round().astype(np.uint8)[:, :, None]
    if image.mode in ("La", "RGBa"):  # premultiplied
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    if image.mode in ("1", "L", "LA"):
        return np.asarray(image.convert("L"))[:, :, None]
    if "transparency" in image.info:  # dropped; Pillow warns of it when it converts
        image = image.copy()
        del image.info["transparency"]
    pixels = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    grey = image.mode in ("P", "PA") and (pixels == pixels[:, :, :1]).all()
    return pixels[:, :, :1] if grey else pixels


def _no_range(kind: str) -> ValueError:
    return ValueError(
        f"it holds {kind}, whose range a file does not say: save it with 8 or 16 bits, or give the images as a "
        "tensor with value_range="
    )


def _warn_of_depth(highest: int) -> None:
    if highest:
        warn(
            f"a picture of 16 bits ends at {highest} of 65535, as one of {highest.bit_length()} bits does, and is read "
            "as dark as it says: if it is not dark, save it with its values stretched to 16 bits"
        )

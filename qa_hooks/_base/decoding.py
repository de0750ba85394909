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
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"})
FORMATS = ("PNG", "JPEG", "MPO", "BMP", "WEBP", "TIFF", "PPM", "GIF")
PIXELS = 178_956_970  # of one picture, twice Pillow's default; what Pillow is told in somebody's run does not matter
PHOTOMETRIC = 262  # tag of a TIFF: 0 says that white is 0
DEEP = 1 << 14  # a 16-bit file whose values stay below holds 14 bits or fewer


@contextlib.contextmanager
def open_picture(file: str | Path | BinaryIO) -> Iterator[Any]:
    """A `PIL.Image` whose pixels are not read yet.

    Raises:
        ValueError: no picture of `FORMATS`, or one of too many pixels.
        OSError: no such file.
    """
    from PIL import Image, UnidentifiedImageError
    from PIL.Image import DecompressionBombError

    try:
        with Image.open(file, formats=_formats()) as image:
            if image.width * image.height > PIXELS:
                raise ValueError(f"it has {image.width} x {image.height} pixels, more than {PIXELS} in all")
            yield image
    except UnidentifiedImageError:
        raise ValueError(f"its content is none of {', '.join(FORMATS)}") from None
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
        deep = not image.mode.startswith("I") and any(";16" in tile for tile in tiles)
        sixteen = any("'I;16" in tile for tile in tiles)
        white_is_zero = sixteen and getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == 0
        pixels = pixels_of(ImageOps.exif_transpose(image))
        if any("'LA;16" in tile for tile in tiles):  # grey with transparency, of which Pillow makes colours
            pixels = pixels[:, :, :1]
        if white_is_zero:  # Pillow turns those of 8 bits only
            pixels = 255 - pixels
        if deep and pixels.max() < DEEP >> 8:
            _warn_of_depth(int(pixels.max()) << 8)
    return pixels


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
    pixels = np.asarray(image.convert("RGB"))
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

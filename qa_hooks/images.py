"""Images: layouts, value ranges, grey conversions, files. The only module that knows about ranges.

A range is declared once and never guessed from data: `value_range=(lo, hi)` says what the numbers of an `(N, C, H, W)`
tensor mean. Everything inside the package works on `[0, 1]`; `to_unit` is the one conversion, and it is linear, so that
gradients flow through it and overshoots survive it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qa_hooks._base.checks import channel_hint, check_channels, check_whole_batches, is_another_range, range_hint, warn

Range = tuple[float, float]

# MATLAB's rgb2gray: the inverse of the YIQ matrix, normalised to sum 1.
GREY_WEIGHTS = (0.298936021293775, 0.587043074451121, 0.114020904255103)


def check_range(value_range: Sequence[float]) -> Range:
    """A declared range as two finite floats, low before high; `ValueError` otherwise."""
    try:
        low, high = (float(v) for v in value_range)
    except (TypeError, ValueError):
        raise ValueError(f"value_range must be two numbers such as (0, 1) or (-1, 1), got {value_range!r}") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"value_range must be finite with low < high, got ({low:g}, {high:g})")
    return low, high


def check_images(name: str, images: object, *, floating: bool = True) -> Tensor:
    """Check that `images` is a non-empty `(N, C, H, W)` tensor; return it.

    Args:
        name, images: the argument's name, for the message, and what arrived.
        floating: refuse integer tensors (they carry no gradient) with the conversion in the message.

    Raises:
        TypeError: not a tensor, not a floating one where a gradient is needed, or whole numbers other than uint8.
        ValueError: not four-dimensional, or empty.
    """
    if not isinstance(images, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor of shape (N, C, H, W), got {type(images).__name__}")
    if images.ndim != 4:
        raise ValueError(f"{name} must have the shape (N, C, H, W), got {tuple(images.shape)}")
    if images.numel() == 0:
        raise ValueError(f"{name} is empty: its shape is {tuple(images.shape)}")
    if images.shape[3] == 3 and min(images.shape[1:3]) > 4:
        arrived = f"{name}: the shape {tuple(images.shape)} looks like (N, H, W, C): "
        raise ValueError(f"{arrived}give {name}.permute(0, 3, 1, 2)")
    if floating and not images.is_floating_point():
        raise TypeError(
            f"{name} must be floating point because a gradient flows through it, got {images.dtype}; "
            f"convert with `{name}.float() / 255` and declare value_range=(0, 1)"
        )
    if not images.is_floating_point() and images.dtype != torch.uint8:
        raise TypeError(
            f"{name} must be floating point, or uint8 from 0 to 255, got {images.dtype}; convert with "
            f"`{name}.to(torch.uint8)` or `{name}.float() / 255`"
        )
    return images


def check_pair(name_a: str, a: Tensor, name_b: str, b: Tensor) -> None:
    """Raise `ValueError` unless two image tensors agree in shape and device."""
    if a.shape != b.shape:
        raise ValueError(f"{name_a} and {name_b} must have the same shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    if a.device != b.device:
        raise ValueError(f"{name_a} and {name_b} must be on one device, got {a.device} and {b.device}")


def to_unit(images: Tensor, value_range: Range) -> Tensor:
    """Map the declared range linearly to [0, 1]; nothing is clamped. uint8 tensors are divided by 255."""
    if images.dtype == torch.uint8:
        return images.float() / 255
    low, high = value_range
    return images if (low, high) == (0.0, 1.0) else (images - low) / (high - low)


def to_grey(images: Tensor) -> Tensor:
    """`(N, 3, H, W)` RGB or `(N, 1, H, W)` grey -> `(N, 1, H, W)`, with MATLAB's rgb2gray weights (sum 1).

    Raises:
        ValueError: neither 1 nor 3 channels.

    Example:
        >>> to_grey(torch.ones(2, 3, 4, 4)).shape
        torch.Size([2, 1, 4, 4])
    """
    check_channels("a grey conversion", images)
    if images.shape[1] == 1:
        return images
    red, green, blue = GREY_WEIGHTS
    return red * images[:, 0:1] + green * images[:, 1:2] + blue * images[:, 2:3]


class RangeGuard:
    """Checks the numbers of the first three batches against the declared range; after that it costs nothing.

    `data` (real images, targets) outside the range by more than 1 % or non-finite raise; `prediction`s that are
    non-finite raise. What looks like another convention warns, once a name: values far outside, [0, 1] under (-1, 1),
    [0, 1] under (0, 255); but not predictions of nearly one value, nor a few that are far outside: that is an untrained
    network. The check reads values, so it synchronises a GPU; after three calls it returns at once.
    """

    CALLS = 3

    def __init__(self, value_range: Range) -> None:
        self.value_range = value_range
        self.calls = 0
        self.warned: set[str] = set()

    def __call__(self, *, data: dict[str, Tensor] | None = None, predictions: dict[str, Tensor] | None = None) -> None:
        if torch.compiler.is_compiling():
            return
        check_whole_batches({**(data or {}), **(predictions or {})})
        if self.calls >= self.CALLS:
            return
        self.calls += 1
        for name, images in (data or {}).items():
            self.check_data(name, images)
        for name, images in (predictions or {}).items():
            self._check_prediction(name, images)

    def extrema(self, name: str, images: Tensor) -> Range:
        """Least and largest value; `ValueError` where they are not finite."""
        low, high = (float(v) for v in torch.aminmax(images.detach().float()))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(f"{name}: some values are not finite (minimum {low}, maximum {high})")
        return low, high

    def check_data(self, name: str, images: Tensor) -> None:
        """`ValueError` for real images that lie outside the range by more than 1 %."""
        if images.dtype == torch.uint8:
            return
        (low, high), (declared_low, declared_high) = self.extrema(name, images), self.value_range
        slack = 0.01 * (declared_high - declared_low)
        if low < declared_low - slack or high > declared_high + slack:
            raise ValueError(
                f"{name}: values lie in [{low:.4g}, {high:.4g}] but value_range=({declared_low:g}, {declared_high:g}) "
                f"was declared; {channel_hint(images, '') or f'declare {range_hint(low, high)}, or convert them'}"
            )
        self.doubt(name, low, high, channel_hint(images, ""))

    def _check_prediction(self, name: str, images: Tensor) -> None:
        if images.dtype != torch.uint8:
            low, high = self.extrema(name, images)
            if is_another_range(images, self.value_range) if self.far_outside(low, high) else high - low >= 0.25:
                self.doubt(name, low, high, channel_hint(images, ""))

    def far_outside(self, low: float, high: float) -> bool:
        """Whether it is by half the range or more."""
        declared_low, declared_high = self.value_range
        return max(declared_low - low, high - declared_high) >= (declared_high - declared_low) / 2

    def doubt(self, name: str, low: float, high: float, hint: str = "") -> None:
        """Warn, once a name, of values that look like another convention than the declared one."""
        declared_low, declared_high = self.value_range
        unit_under_symmetric = self.value_range == (-1.0, 1.0) and low >= 0.0 and low < high <= 1.01
        in_a_corner = declared_low <= low < high <= 0.98 * declared_low + 0.02 * declared_high
        if (self.far_outside(low, high) or unit_under_symmetric or in_a_corner) and name not in self.warned:
            self.warned.add(name)
            hint = hint or f"if that is another convention and not an overshoot, declare {range_hint(low, high)}"
            seen = f"[{low:.4g}, {high:.4g}]"
            warn(f"{name}: values lie in {seen} under value_range=({declared_low:g}, {declared_high:g}): {hint}")


def as_tensor(images: Any) -> Tensor:
    """Images in any common form -> `(N, C, H, W)`: a tensor stays as it is, PIL images and uint8 arrays become uint8.

    Accepts a tensor `(N, C, H, W)` or `(C, H, W)`, a PIL image, a NumPy array `(H, W)`, `(H, W, C)` or `(N, H, W, C)`
    of uint8 in [0, 255] or float in the declared range, the bytes of a picture file, or a list of any of these with one
    size. For places where nothing is differentiated: monitors, fitting, files.

    Raises:
        TypeError: an unknown type.
        ValueError: sizes that differ, a layout that cannot be read, or an empty list.

    Example:
        >>> as_tensor(np.zeros((5, 7, 3), dtype=np.uint8)).shape
        torch.Size([1, 3, 5, 7])
    """
    if isinstance(images, Tensor):
        return check_images("images", images[None] if images.ndim == 3 else images, floating=False)
    if isinstance(images, np.ndarray):
        return _from_array(images)
    held = isinstance(images, (bytes, bytearray)) or (isinstance(images, Mapping) and "bytes" in images)
    if held or type(images).__module__.startswith("PIL."):
        from qa_hooks._base.containers import pixels_in_memory

        return _from_array(pixels_in_memory(images))
    if isinstance(images, Iterable) and not isinstance(images, (str, Mapping)):
        parts = [as_tensor(image) for image in images]
        if not parts:
            raise ValueError("images is empty")
        if len({part.shape[1:] for part in parts}) > 1:
            shapes = sorted({tuple(part.shape[1:]) for part in parts})
            raise ValueError(f"images of one batch must have one size, got {shapes}: crop them, or give one at a time")
        return torch.cat(parts)
    raise TypeError(
        f"images must be a tensor, a NumPy array, PIL images or a list of them, got {type(images).__name__}"
    )


def _from_array(array: np.ndarray[Any, Any]) -> Tensor:
    array = array[None, :, :, None] if array.ndim == 2 else array[None] if array.ndim == 3 else array
    if array.ndim != 4 or array.shape[-1] not in (1, 3):
        first, got = array.ndim == 4 and array.shape[1] in (1, 3), array.shape
        hint = "; that looks like (N, C, H, W): give torch.from_numpy(x), or x.transpose(0, 2, 3, 1)" * first
        raise ValueError(f"a NumPy image must be (H, W), (H, W, C) or (N, H, W, C) with C = 1 or 3, got {got}{hint}")
    if array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
        raise TypeError(f"a NumPy image must be uint8 or floating point, got {array.dtype}")
    tensor = torch.from_numpy(array.transpose(0, 3, 1, 2).copy())
    return check_images("images", tensor, floating=False)


def load_image(path: str | Path) -> Tensor:
    """Read one file -> uint8 `(C, H, W)`, C = 1 for grey pictures and 3 otherwise.

    Turned upright where the camera noted how it was held; transparency is dropped; of several frames the first is read.

    Args:
        path: a picture, or a member of a file that holds many, as `list_images` names them.

    Raises:
        ValueError: no readable picture; the message names it.
        FileNotFoundError: no such file.
    """
    from qa_hooks._base.containers import read_pixels

    try:
        pixels = read_pixels(Path(path))
    except FileNotFoundError:
        raise
    except Exception as error:  # the parsers of a dozen formats raise what they like
        raise ValueError(f"{path} is not a readable image: {error or type(error).__name__}") from error
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height of an image, upright; of a file nothing but the header is read."""
    from qa_hooks._base.containers import picture_size

    return picture_size(Path(path))


def list_images(folder: str | Path) -> list[Path]:
    """All image files below `folder`, sorted by path, or the members of a file that holds many.

    Links to folders are followed, and each folder is read once; folders and files whose names begin with a dot are not.

    Args:
        folder: a folder; a zip of images, as StyleGAN's tools make them; an `.npz` or `.npy` of uint8 images
            `(N, H, W, C)`; a folder that a data set of the `datasets` library was saved to. Members have paths below
            their file: `set.zip/00000/img00000000.png`.

    Raises:
        ValueError: no images.
    """
    from qa_hooks._base.containers import list_pictures

    return list_pictures(Path(folder))


def to_uint8(images: Tensor, value_range: Range = (0.0, 1.0)) -> Tensor:
    """Clamp to the declared range and quantise to uint8, rounding to nearest."""
    if images.dtype == torch.uint8:
        return images
    return (to_unit(images.detach().float(), value_range).clamp(0, 1) * 255).round().to(torch.uint8)


def make_grid(images: Tensor, *, columns: int | None = None, padding: int = 2, scale: int = 1) -> Tensor:
    """`(N, C, H, W)` uint8 -> one uint8 picture `(C, h, w)`, on a light ground, each image enlarged `scale` times."""
    from torchvision.utils import make_grid as torchvision_grid

    images = images.cpu().repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    grid = torchvision_grid(images, columns or math.ceil(math.sqrt(len(images))), padding, pad_value=230)
    picture: Tensor = grid[: images.shape[1]]
    return picture  # grey images come back in three channels


def save_image(image: Tensor, path: str | Path) -> None:
    """Write one uint8 `(C, H, W)` picture as PNG (or what the suffix says); the file appears whole or not at all."""
    from PIL import Image

    from qa_hooks._base.files import whole_file

    if image.dtype != torch.uint8 or image.ndim != 3:
        raise TypeError(f"a picture must be uint8 (C, H, W): to_uint8(image); got {image.dtype}, {tuple(image.shape)}")
    array = image.detach().cpu().permute(1, 2, 0).numpy()
    kind = Image.registered_extensions().get(Path(path).suffix.lower(), "PNG")
    with whole_file(path) as partial:
        Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(partial, kind)

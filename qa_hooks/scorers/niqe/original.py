"""Find the NIQE authors' parameters: in a file of yours, in an installed BasicSR, or by download.

They are not part of this package. The MATLAB release (`modelparameters.mat`) and BasicSR (`niqe_pris_params.npz`) hold
the same numbers. sk-video's file of a similar name holds others (the mean alpha differs by 0.3) and is not used.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from dataclasses import replace
from pathlib import Path

import torch

from qa_hooks.scorers.niqe.model import RELEASE, NaturalnessModel

URL = "https://raw.githubusercontent.com/XPixelGroup/BasicSR/master/basicsr/metrics/niqe_pris_params.npz"
SHA256 = "2a7c182a68c9e7f1b2e2e5ec723279d6f65d912b6fcaf37eb2bf03d7367c4296"
VARIABLE = "QA_HOOKS_NIQE_PARAMETERS"
ORIGINAL = "1ce5d1867f5c167b"  # NaturalnessModel.fingerprint of the original parameters


def load_original() -> NaturalnessModel:
    """The original parameters: from the file that `QA_HOOKS_NIQE_PARAMETERS` names, an installed basicsr, or the web.

    Raises:
        ValueError: a file that holds other numbers.
        RuntimeError: nothing found and no download; the message names every way.
    """
    path = find_original() or _download()
    model = NaturalnessModel.load(path)
    if model.fingerprint != ORIGINAL:
        raise ValueError(f"{path} does not hold the original NIQE parameters; to use it as it is: NIQE({str(path)!r})")
    return replace(model, provenance={"name": "original", "source": path.name, "handling": RELEASE})


def find_original() -> Path | None:
    """The file with the original parameters on this machine, or None."""
    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE])
    package = importlib.util.find_spec("basicsr")  # finds, but does not import: its imports break with new torchvision
    for folder in package.submodule_search_locations or () if package else ():
        path = Path(folder, "metrics", "niqe_pris_params.npz")
        if path.is_file():
            return path
    path = _cached()
    return path if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == SHA256 else None


def _cached() -> Path:
    return Path(torch.hub.get_dir(), "checkpoints", "niqe_pris_params.npz")


def _download() -> Path:
    path = _cached()
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(URL, str(path), hash_prefix=SHA256, progress=False)
    except (OSError, RuntimeError) as error:
        raise RuntimeError(
            f"the original NIQE parameters are not on this machine and could not be downloaded ({error}). One of: "
            f"set {VARIABLE} to the path of niqe_pris_params.npz or modelparameters.mat; pip install basicsr; put the "
            f"file from {URL} at {path}; or take the scorer 'niqe_bsd100', which comes with this package"
        ) from error
    return path

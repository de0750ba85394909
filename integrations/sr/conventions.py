"""What differs between BasicSR, traiNNer-redux and neosr, in one table; read in their sources and run (docs).

framework    names        who applies loss_weight   metric images     config   data set and model options
basicsr      as written   the loss                  BGR uint8 (HWC)   YAML     dictionaries
traiNNer     lower case   the framework             RGB uint8 (HWC)   YAML     strict structs
neosr        snake_case   the loss                  BGR uint8 (HWC)   TOML     dictionaries; tensors on CUDA by default
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Framework:
    """The conventions of one framework.

    Attributes:
        name, package, source: for the user, for `import`, and where to get it.
        weighs: it multiplies a loss by `loss_weight` itself, so the loss must not.
        rgb_metrics: metrics get RGB, not BGR.
        snake_names: classes are called like functions.
        loss_list: losses are a list, and not slots such as `pixel_opt`.
        models: the models of single images that get a "QA" form; True where they make the low-resolution images
            themselves, after the batch has been fed.
        crop, crop_is_lq: the option of the data set that holds the crop's side, and whether it is the small image's.
        ema: the option of `train` that turns averaged weights on.
    """

    name: str
    package: str
    source: str
    models: Mapping[str, bool]
    weighs: bool = False
    rgb_metrics: bool = False
    snake_names: bool = False
    loss_list: bool = False
    crop: str = "gt_size"
    crop_is_lq: bool = False
    ema: str = "ema_decay"

    def named(self, words: str) -> str:
        """A name for the registry: "QA SSIM Loss" as QASSIMLoss or qa_ssim_loss."""
        return words.replace(" ", "_").lower() if self.snake_names else words.replace(" ", "")

    def module(self, path: str) -> Any:
        """A module of the framework; `ImportError` says how to get it."""
        try:
            return importlib.import_module(f"{self.package}.{path}")
        except ImportError as error:
            raise ImportError(
                f"{self.name} cannot be imported ({error}). Get the head of {self.source}, install what it asks for, "
                f"and run inside its folder or put that on PYTHONPATH{self._hint}"
            ) from error

    @property
    def _hint(self) -> str:
        return "; the 1.4.2 of PyPI does not import with today's torchvision" if self.package == "basicsr" else ""

    def present(self) -> bool:
        """Whether Python finds it."""
        return importlib.util.find_spec(self.package) is not None


FRAMEWORKS = {
    framework.name.lower(): framework
    for framework in (
        Framework(
            "basicsr",
            "basicsr",
            "https://github.com/XPixelGroup/BasicSR",
            {"SRModel": False, "SRGANModel": False, "ESRGANModel": False, "SwinIRModel": False}
            | {"RealESRNetModel_basicsr": True, "RealESRGANModel_basicsr": True},
        ),
        Framework(
            "traiNNer",
            "traiNNer",
            "https://github.com/the-database/traiNNer-redux",
            {"SRModel": False, "RealESRGANModel": True, "RealESRGANPairedModel": True},
            weighs=True,
            rgb_metrics=True,
            loss_list=True,
        ),
        Framework(
            "neosr",
            "neosr",
            "https://github.com/neosr-project/neosr",
            {"image": False, "otf": True},
            snake_names=True,
            crop="patch_size",
            crop_is_lq=True,
            ema="ema",
        ),
    )
}


def find_framework(name: str) -> Framework:
    """The framework of a name, in upper or lower case; "traiNNer-redux" is known too."""
    key = str(name).lower().removesuffix("-redux")
    if key not in FRAMEWORKS:
        raise ValueError(f"framework must be one of {[f.name for f in FRAMEWORKS.values()]}, got {name!r}")
    return FRAMEWORKS[key]


def option(options: Any, name: str, default: Any = None) -> Any:
    """An option of a dictionary or a struct; None counts as absent, as their configs write it."""
    value = options.get(name) if isinstance(options, Mapping) else getattr(options, name, None)
    return default if value is None else value


def check_options(where: str, given: Any, known: Iterable[str]) -> dict[str, Any]:
    """The options as a dictionary; `ValueError` names the key of the config that is wrong."""
    known = list(known)
    if not isinstance(given, Mapping):
        raise ValueError(f"{where} must be a mapping of {', '.join(known)}, got {given!r}")
    unknown = [str(key) for key in given if key not in known]
    if unknown:
        raise ValueError(f"{where}.{unknown[0]} is not known; {where} takes {', '.join(known)}")
    return dict(given)


def keywords(function: Callable[..., Any], *without: str) -> list[str]:
    """The names of a function's keyword-only options."""
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in without]


def default_device_cpu() -> contextlib.AbstractContextManager[Any]:
    """neosr makes CUDA the device of every new tensor, which the package's own CPU generators cannot draw."""
    return contextlib.nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")

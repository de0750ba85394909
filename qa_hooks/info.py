"""What a bug report needs to know."""

from __future__ import annotations

import platform
import re
from importlib import metadata

import qa_hooks


def describe_environment() -> str:
    """Versions of the package, Python and the libraries it uses, which extras are installed, and the devices.

    Example:
        >>> describe_environment().startswith("qa_hooks")
        True
    """
    import torch

    lines = [
        f"qa_hooks     {qa_hooks.__version__}",
        f"python       {platform.python_version()} on {platform.platform()}",
    ]
    required, extras = _requirements()
    lines += [f"{name:<12} {_version(name)}" for name in required]
    for extra, names in sorted(extras.items()):
        missing = [name for name in names if _version(name) == "missing"]
        lines.append(f"[{extra}]".ljust(13) + (f"missing: {', '.join(missing)}" if missing else "installed"))
    lines.append(f"threads      {torch.get_num_threads()}")
    if torch.cuda.is_available():
        lines += [f"cuda:{i}       {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    lines.append(f"cuda         {torch.version.cuda if torch.cuda.is_available() else 'not available'}")
    lines.append(f"mps          {'available' if torch.backends.mps.is_available() else 'not available'}")
    return "\n".join(lines)


def _requirements() -> tuple[list[str], dict[str, list[str]]]:
    """Names from the installed package's own metadata; empty when it runs from a source folder."""
    try:
        requirements = metadata.requires("qa-hooks") or []
    except metadata.PackageNotFoundError:
        return [
            "torch",
            "torchvision",
            "numpy",
            "scikit-learn",
            "tensorboard",
            "accelerate",
            "diffusers",
            "safetensors",
        ], {}
    required: list[str] = []
    extras: dict[str, list[str]] = {}
    for requirement in requirements:
        name = re.match(r"[\w.\-]+", requirement)
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", requirement)
        if name is not None and name.group() != "qa-hooks":
            (extras.setdefault(extra.group(1), []) if extra else required).append(name.group())
    return required, extras


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"

"""What a bug report needs to know, and what scorers there are."""

from __future__ import annotations

import platform
import re
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import qa_hooks
from qa_hooks._base.libraries import installed_version

if TYPE_CHECKING:
    from qa_hooks.scorers.catalogue import Entry


SLOW = 0.2  # seconds for one image


def describe_environment() -> dict[str, str]:
    """Versions of the package, Python and the libraries it uses, which extras are installed, and the devices.

    Example:
        >>> list(describe_environment())[:2]
        ['qa_hooks', 'python']
    """
    import torch

    facts = {
        "qa_hooks": qa_hooks.__version__,
        "python": f"{platform.python_version()} on {platform.platform()}",
    }
    required, extras = _requirements()
    facts |= {name: installed_version(name) or "missing" for name in required}
    for extra, names in sorted(extras.items()):
        missing = [name for name in names if installed_version(name) is None]
        facts[f"[{extra}]"] = f"missing: {', '.join(missing)}" if missing else "installed"
    facts["threads"] = str(torch.get_num_threads())
    if torch.cuda.is_available():
        facts |= {f"cuda:{i}": torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
    facts["cuda"] = str(torch.version.cuda) if torch.cuda.is_available() else "not available"
    facts["mps"] = "available" if torch.backends.mps.is_available() else "not available"
    return facts


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


def rows_of_scorers(*, cost: bool = True) -> list[tuple[str, ...]]:
    """A row for every scorer: direction, range, inputs, gradient, licence, what it needs, installed or not, cost.

    Args:
        cost: measure milliseconds per 256 x 256 image here and now, on the CPU, of scorers that need neither fitting
            nor a download; the others show a dash.

    Example:
        >>> rows_of_scorers(cost=False)[0][:3]
        ('scorer', 'better', 'range')
    """
    from qa_hooks.scorers.catalogue import SPECS

    rows: list[tuple[str, ...]] = [
        ("scorer", "better", "range", "inputs", "gradient", "licence", "needs", "installed", "ms/image")
    ]
    for name, entry in SPECS.items():
        kind, missing = entry.kind, _missing(name, entry)
        ends = kind.score_range
        needs = [
            *(["fitting"] if entry.needs_fit else []),
            *(["a download"] if name == "niqe" or entry.weights else []),
            *entry.files[-1:],
            *entry.requires,
        ]
        measured = cost and not entry.needs_fit and not missing
        rows.append(
            (
                name,
                "higher" if kind.higher_is_better else "lower",
                "unbounded" if ends is None else f"{ends[0]:g} to {ends[1]:g}",
                " + ".join(["images", *sorted(kind.inputs)]),
                "yes" if kind.differentiable else "no",
                entry.licence,
                ", ".join(needs) or "nothing",
                "yes" if not missing else f"no: {missing}",
                f"{_milliseconds(name):.1f}" if measured else "-",
            )
        )
    return rows


def rows_of_files(paths: Sequence[str]) -> list[tuple[str, ...]]:
    """A row for each saved scorer: class, direction, features, calibration, and agreement with people where known.

    The extractors are not made, so that a file is shown also where they are not installed.

    Raises:
        ValueError: a file that is no saved scorer; the message names it.
    """
    from qa_hooks.scorers.loading import read_header
    from qa_hooks.scorers.opinions.scorer import agreement_text, check_facts

    rows: list[tuple[str, ...]] = [
        ("file", "class", "better", "features of", "calibration", "fitted on", "agreement with people")
    ]
    for path in paths:
        header = read_header(path)
        options = header["options"]
        facts, extractor = options.get("facts") or {}, options.get("extractor") or {}
        try:
            check_facts(dict(facts))
            features = str(dict(extractor).get("name", "-"))
            features += " and prompts (alignment)" if options.get("about") == "alignment" else ""
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a saved scorer: {error}") from error
        fitted = (
            f"{facts['images']} images of {facts['contents']} contents" if {"images", "contents"} <= set(facts) else "-"
        )
        rows.append(
            (
                path,
                str(header["class"]),
                "higher" if options.get("higher_is_better", header["kind"].higher_is_better) else "lower",
                features,
                str(header.get("calibration") or "none"),
                fitted,
                agreement_text(facts) if facts else "-",
            )
        )
    return rows


def _missing(name: str, entry: Entry) -> str:
    """What a scorer lacks on this machine; empty when it would run."""
    import torch

    from qa_hooks.scorers.niqe.original import find_original

    absent = [package for package in entry.requires if installed_version(package) is None]
    if absent:
        return entry.install or f"pip install {' '.join(absent)}"
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    if entry.files and not any((folder / file).is_file() for file in entry.files):
        return f"put {entry.files[-1]} into {folder}"
    weights = folder / entry.weights
    absent_weights = find_original() is None if name == "niqe" else bool(entry.weights) and not weights.is_file()
    return "downloads when first used" if absent_weights else ""


def _milliseconds(name: str, *, side: int = 256, batch: int = 8, runs: int = 3) -> float:
    """The fastest of a few runs, per image, after one that warms up; slow scorers get one image, once."""
    import torch

    from qa_hooks.scorers import create_scorer

    generator = torch.Generator().manual_seed(0)
    scorer = create_scorer(name)
    images = torch.rand(batch, 3, side, side, generator=generator, device="cpu", dtype=torch.float32)
    reference = torch.rand(images.shape, generator=generator, device="cpu", dtype=torch.float32)
    inputs = {"reference": reference} if "reference" in scorer.inputs else {}

    def seconds(count: int) -> float:
        start = time.perf_counter()
        scorer(images[:count], **{name: value[:count] for name, value in inputs.items()})
        return time.perf_counter() - start

    with torch.no_grad():
        if seconds(1) > SLOW:
            return 1000 * seconds(1)
        seconds(batch)
        return 1000 * min(seconds(batch) for _ in range(runs)) / batch

"""One way to make a scorer, in code, YAML and on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qa_hooks._base.checks import with_options
from qa_hooks._base.text import meant
from qa_hooks.features import FeatureExtractor
from qa_hooks.images import Range
from qa_hooks.scorers.catalogue import SPECS, find_entry
from qa_hooks.scorers.fitting import fitted_scorer
from qa_hooks.scorers.libraries.adapter import LIBRARIES, create_library_scorer
from qa_hooks.scorers.loading import load_scorer
from qa_hooks.scorers.scorer import Scorer
from qa_hooks.sources.batches import Source

EXAMPLES = ("pyiqa:musiq", "torchmetrics:arniqa", "piq:gmsd", "imscore:pickscore", "transformers:MODEL")


def create_scorer(
    spec: str | Path | Mapping[str, Any] | Scorer,
    value_range: Range = (0.0, 1.0),
    *,
    fit: Source | None = None,
    extractor: FeatureExtractor | nn.Module | str | Mapping[str, Any] | None = None,
    cache: str | Path | None = None,
    real: Source | None = None,
    device: str | torch.device | None = None,
) -> Scorer:
    """Make a scorer from a name, a file or a mapping; the GIQA scorers are fitted in the same call.

    Args:
        spec: a name ("niqe_bsd100", "psnr_y_crop4", "giqa-gmm", ...), a metric of another library ("pyiqa:musiq",
            "torchmetrics:arniqa", "piq:gmsd", "imscore:pickscore", "transformers:MODEL"), the path of a saved
            scorer ("scorer.safetensors"), a mapping
            `{"type": name, option: value, ...}`, or a scorer, which is returned as it is. A mapping may hold the
            keywords below, and options of the scorer's `fit`.
        value_range: what the numbers of the images mean.
        fit: real images (tensor, folder, files, dataset, loader) for "giqa-gmm", "giqa-sgm", "giqa-knn" and "rank";
            snapshots of a training run for "giqa-mbc", "giqa-bc" and "giqa-ir". A file that cannot be read is left out
            with a warning.
        extractor: what `create_extractor` takes; for "giqa-gmm", "giqa-sgm" and "giqa-knn", and for saved scorers
            fitted with your own network.
        cache: a folder that keeps fitted scorers: a scorer fitted on the same data with the same options is loaded.
        real: real images beside the snapshots of "giqa-mbc", "giqa-bc" and "giqa-ir".
        device: where the scorer is, and where it is fitted; None leaves it where it is made, on the CPU.

    Raises:
        ValueError: an unknown name, a broken file, a scorer that needs `fit` or `extractor` and did not get it.
        TypeError: options that the scorer does not have.

    Example:
        >>> create_scorer({"type": "psnr", "channel": "y", "crop_border": 4}).name
        'psnr_y_crop4'
        >>> import torch
        >>> create_scorer("giqa-knn", fit=torch.rand(60, 3, 16, 16), extractor="random").name
        'giqa_knn'
    """
    given: dict[str, Any] = {"fit": fit, "extractor": extractor, "cache": cache, "real": real, "device": device}
    options: dict[str, Any] = {}
    if isinstance(spec, Mapping):
        options = dict(spec)
        if "type" not in options:
            raise ValueError(f"a scorer's mapping needs the key 'type', got {sorted(options)}")
        spec = options.pop("type")
        value_range = options.pop("value_range", value_range)
        given = {name: options.pop(name, None) if value is None else value for name, value in given.items()}
    device = given.pop("device")
    scorer = _created(spec, value_range, options, given, device)
    return scorer if device is None else scorer.to(device)


def _created(spec: Any, value_range: Range, options: dict[str, Any], given: dict[str, Any], device: Any) -> Scorer:
    """A scorer from `spec`, with the constructor's and the fit's `options`, fitted with what is `given`."""
    saved = not isinstance(spec, Scorer) and str(spec).endswith(".safetensors")
    entry = None if saved or isinstance(spec, Scorer) else find_entry(str(spec))
    library = str(spec).partition(":")[0] in LIBRARIES and ":" in str(spec)
    if entry is None and not (saved or library or isinstance(spec, Scorer)):
        near = meant(str(spec), [*SPECS, *EXAMPLES, "psnr_y_crop4"])
        of, _, metric = str(spec).partition("_")
        if of in LIBRARIES and metric:
            near = f" (a metric of {of} is called {of}:{metric})"
        if str(spec).lower() in ("fid", "kid", "is", "precision", "recall"):
            near = " (it is of a set of images: GenerativeMonitor, or qa-hooks compare)"
        raise ValueError(
            f"unknown scorer {str(spec)!r}{near}; known are {', '.join(SPECS)}, metrics of other libraries by the "
            f"library's name and theirs, such as {', '.join(EXAMPLES)}, or the path of a .safetensors file"
        )
    allowed = ("extractor",) if saved else tuple(given) if entry is not None and entry.needs_fit else ()
    needless = [f"{name}=" for name, value in given.items() if value is not None and name not in allowed]
    if needless:
        raise ValueError(f"{', '.join(needless)} is for scorers that are fitted here, not for {spec}")
    if isinstance(spec, Scorer):
        if tuple(value_range) not in ((0.0, 1.0), spec.value_range):
            raise ValueError(f"{spec.name} was made with value_range={spec.value_range}, got value_range={value_range}")
        return spec
    if saved:
        if set(options) - {"other_sizes"}:
            raise ValueError(f"a saved scorer takes no options but other_sizes, got {sorted(options)}")
        return load_scorer(str(spec), value_range, extractor=given["extractor"], **options)
    if entry is None:
        return create_library_scorer(str(spec), value_range, **options)
    if entry.needs_fit:
        return fitted_scorer(str(spec), entry, {**options, "value_range": value_range}, given, device)
    scorer: Scorer = with_options(str(spec), entry.kind, {**entry.options, **options}, value_range=value_range)
    return scorer

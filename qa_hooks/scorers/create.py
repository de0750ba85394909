"""One way to make a scorer, in code, YAML and on the command line."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from qa_hooks._base.files import check_writable
from qa_hooks._base.processes import any_rank, rank, together
from qa_hooks.features import FeatureExtractor
from qa_hooks.images import Range
from qa_hooks.scorers.catalogue import SPECS, Entry
from qa_hooks.scorers.libraries.adapter import LIBRARIES, create_library_scorer
from qa_hooks.scorers.loading import load_scorer
from qa_hooks.scorers.scorer import Scorer
from qa_hooks.sources.batches import Source
from qa_hooks.sources.fingerprint import data_fingerprint

EXTRACTORS = "'inception', 'dinov2_vits14', 'random' (no download), a torchvision network by name, or a module of yours"


def create_scorer(
    spec: str | Path | Mapping[str, Any] | Scorer,
    value_range: Range = (0.0, 1.0),
    *,
    fit: Source | None = None,
    extractor: FeatureExtractor | nn.Module | str | Mapping[str, Any] | None = None,
    cache: str | Path | None = None,
    real: Source | None = None,
) -> Scorer:
    """Make a scorer from a name, a file or a mapping; the GIQA scorers are fitted in the same call.

    Args:
        spec: a name ("niqe_bsd100", "giqa-gmm", ...), a metric of another library ("pyiqa:musiq",
            "torchmetrics:arniqa", "piq:gmsd"), the path of a saved scorer ("scorer.safetensors"), a mapping
            `{"type": name, option: value, ...}`, or a scorer, which is returned as it is. A mapping may hold the
            keywords below, and options of the scorer's `fit`.
        value_range: what the numbers of the images mean.
        fit: real images (tensor, folder, files, dataset, loader) for "giqa-gmm", "giqa-sgm", "giqa-knn" and "rank";
            snapshots of a training run for "giqa-mbc", "giqa-bc" and "giqa-ir".
        extractor: for "giqa-gmm", "giqa-sgm" and "giqa-knn", and for saved ones of a network of yours: what
            `create_extractor` takes.
        cache: a folder that keeps fitted scorers: what was fitted on the same data with the same options is loaded.
        real: real images beside the snapshots of "giqa-mbc", "giqa-bc" and "giqa-ir".

    Raises:
        ValueError: an unknown name, a broken file, a scorer that needs `fit` or `extractor` and did not get it.
        TypeError: options that the scorer does not have.

    Example:
        >>> create_scorer({"type": "psnr", "channel": "y", "crop_border": 4}).name
        'psnr'
        >>> import torch
        >>> create_scorer("giqa-knn", fit=torch.rand(60, 3, 16, 16), extractor="random").name
        'giqa_knn'
    """
    given: dict[str, Any] = {"fit": fit, "extractor": extractor, "cache": cache, "real": real}
    options: dict[str, Any] = {}
    if isinstance(spec, Mapping):
        options = dict(spec)
        if "type" not in options:
            raise ValueError(f"a scorer's mapping needs the key 'type', got {sorted(options)}")
        spec = options.pop("type")
        value_range = options.pop("value_range", value_range)
        given = {name: options.pop(name, None) if value is None else value for name, value in given.items()}
    saved = not isinstance(spec, Scorer) and str(spec).endswith(".safetensors")
    entry = None if saved or isinstance(spec, Scorer) else SPECS.get(str(spec))
    allowed = ("extractor",) if saved else tuple(given) if entry is not None and entry.needs_fit else ()
    needless = [f"{name}=" for name, value in given.items() if value is not None and name not in allowed]
    if needless and (entry is not None or saved or isinstance(spec, Scorer)):
        raise ValueError(f"{', '.join(needless)} is for scorers that are fitted here, not for {spec}")
    if isinstance(spec, Scorer):
        if tuple(value_range) not in ((0.0, 1.0), spec.value_range):
            raise ValueError(f"{spec.name} was made with value_range={spec.value_range}, got value_range={value_range}")
        return spec
    if saved:
        if options:
            raise ValueError(f"a saved scorer takes no options, got {sorted(options)}")
        return load_scorer(str(spec), value_range, extractor=given["extractor"])
    if entry is None and str(spec).partition(":")[0] in LIBRARIES and ":" in str(spec):
        if any(value is not None for value in given.values()):
            raise ValueError(f"{', '.join(needless)} is for scorers that are fitted here, not for {spec}")
        return create_library_scorer(str(spec), value_range, **options)
    if entry is None:
        raise ValueError(
            f"unknown scorer {str(spec)!r}; known are {', '.join(SPECS)}, metrics of other libraries such as "
            "'pyiqa:musiq', 'torchmetrics:arniqa' and 'piq:gmsd', or the path of a .safetensors file"
        )
    if entry.needs_fit:
        return _fitted(str(spec), entry, options, value_range, given)
    scorer: Scorer = entry.kind(**{**entry.options, **options}, value_range=value_range)
    return scorer


def _fitted(spec: str, entry: Entry, options: dict[str, Any], value_range: Range, given: Mapping[str, Any]) -> Scorer:
    """Make and fit a scorer, or find it in the cache."""
    from qa_hooks.features import create_extractor
    from qa_hooks.scorers.giqa.feature_scorer import FeatureScorer
    from qa_hooks.scorers.giqa.snapshot import SnapshotScorer
    from qa_hooks.scorers.giqa.snapshot_images import split_snapshots

    own = {**entry.options, **options, "value_range": value_range}
    in_features, from_run = issubclass(entry.kind, FeatureScorer), issubclass(entry.kind, SnapshotScorer)
    sources = {"fit": given["fit"], "real": given["real"]} if from_run else {"fit": given["fit"]}
    missing = [name for name, source in sources.items() if source is None]
    if missing:
        what = {"fit": "fit=snapshots" if from_run else "fit=real_images", "real": "real=real_images"}
        raise ValueError(
            f"{spec} has to be fitted: pass {' and '.join(what[name] for name in missing)}, or fit it once "
            "with `qa-hooks fit` and give the .safetensors file"
        )
    if in_features and given["extractor"] is None:
        raise ValueError(f"{spec} needs extractor=, which decides its numbers: {EXTRACTORS}")
    if not from_run and given["real"] is not None:
        raise ValueError(f"{spec} is fitted on real images alone: pass them as fit=, without real=")
    if in_features:
        own["extractor"] = create_extractor(given["extractor"])
    elif given["extractor"] is not None:
        raise ValueError(f"{spec} learns its own features and takes no extractor=")
    fit = getattr(entry.kind, "fit_snapshots" if from_run else "fit")
    constructed = inspect.signature(entry.kind).parameters
    settings = {
        name: own.pop(name)
        for name in list(own)
        if name in inspect.signature(fit).parameters and name not in constructed
    }
    scorer = entry.kind(**own)
    if isinstance(sources["fit"], (tuple, list)) and "real" in sources:  # snapshots and their iterations, in any form
        sources["fit"] = split_snapshots(tuple(sources["fit"]))
    if given["cache"] is None:
        return _run_fit(scorer, sources, settings)
    aside = {"progress", "batch_size"} if in_features else {"progress"}  # what does not change the result
    decisive = {name: value for name, value in settings.items() if name not in aside}
    described = {"class": entry.cls, "options": scorer.options(), "fit": decisive}
    data = [data_fingerprint(source, value_range) for source in sources.values()]
    text = json.dumps([described, data], sort_keys=True, default=str)
    path = Path(given["cache"]) / f"{spec}-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}.safetensors"
    if not any_rank(not path.is_file()):
        return load_scorer(path, value_range, extractor=own.get("extractor"))
    check_writable(path.parent, name="cache")
    fitted = _run_fit(scorer, sources, settings)
    with together():
        if rank() == 0:
            fitted.save(path)
    return fitted


def _run_fit(scorer: Any, sources: Mapping[str, Source], settings: Mapping[str, Any]) -> Scorer:
    if "real" in sources:
        fitted: Scorer = scorer.fit_snapshots(sources["fit"], sources["real"], **settings)
    else:
        fitted = scorer.fit(sources["fit"], **settings)
    return fitted

"""Make and fit a scorer in one call, or find what was fitted on the same images: a part of `create_scorer`."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qa_hooks._base.checks import check_options
from qa_hooks._base.files import check_writable
from qa_hooks._base.processes import any_rank, rank, together
from qa_hooks.features import create_extractor
from qa_hooks.scorers.catalogue import Entry
from qa_hooks.scorers.giqa.feature_scorer import FeatureScorer
from qa_hooks.scorers.giqa.snapshot_images import split_snapshots
from qa_hooks.scorers.loading import load_scorer
from qa_hooks.scorers.scorer import Scorer
from qa_hooks.sources.batches import Source
from qa_hooks.sources.fingerprint import data_fingerprint

EXTRACTORS = "'inception', 'dinov2_vits14', 'random' (no download), a torchvision network by name, or a module of yours"


def fitted_scorer(spec: str, entry: Entry, options: dict[str, Any], given: Mapping[str, Any], device: Any) -> Scorer:
    """The scorer of an entry that has to be fitted.

    Args:
        spec: its name.
        entry: of the catalogue.
        options: of its constructor and of its `fit`; a seed belongs to both where both take one.
        given: "fit", "extractor", "cache" and "real", as `create_scorer` takes them.
        device: where it is fitted.

    Raises:
        ValueError: an input is missing, or is not for this scorer.
    """
    from_run, in_features = hasattr(entry.kind, "fit_snapshots"), entry.kind.takes_extractor
    sources = _sources(spec, given, from_run=from_run, in_features=in_features)
    own = {**entry.options, **options}
    if in_features:
        own["extractor"] = create_extractor(given["extractor"])
    fit = entry.kind.fit_snapshots if from_run else entry.kind.fit
    constructed = inspect.signature(entry.kind).parameters
    settings = {name: value for name, value in own.items() if name in inspect.signature(fit).parameters}
    own = {name: value for name, value in own.items() if name in constructed or name not in settings}
    of_fit = list(inspect.signature(fit).parameters)[1 + len(sources) :]  # after self and the images
    if not any(part.kind is part.VAR_KEYWORD for part in constructed.values()):
        check_options(spec, own, dict.fromkeys([*constructed, *of_fit]))
    scorer = entry.kind(**own)
    if device is not None:
        scorer.to(device)
    if given["cache"] is None:
        return _fitted(scorer, sources, settings)
    aside = {"progress", "batch_size"} if issubclass(entry.kind, FeatureScorer) else {"progress"}  # changes no number
    decisive = {name: value for name, value in settings.items() if name not in aside}
    described = {"class": entry.cls, "options": scorer.options(), "fit": decisive}
    if (version := getattr(entry.kind, "fit_version", 1)) > 1:
        described["version"] = version
    data = [data_fingerprint(source, options["value_range"]) for source in sources.values()]
    text = json.dumps([described, data], sort_keys=True, default=str)
    path = Path(given["cache"]) / f"{spec}-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}.safetensors"
    if not any_rank(not path.is_file()):
        return load_scorer(path, options["value_range"], extractor=own.get("extractor"))
    check_writable(path.parent, name="cache")
    fitted = _fitted(scorer, sources, settings)
    with together():
        if rank() == 0:
            fitted.save(path)
    return fitted


def _sources(spec: str, given: Mapping[str, Any], *, from_run: bool, in_features: bool) -> dict[str, Source]:
    """The images, by the names of `create_scorer`."""
    wanted = {"fit": "fit=snapshots", "real": "real=real_images"} if from_run else {"fit": "fit=real_images"}
    missing = [text for name, text in wanted.items() if given[name] is None]
    if missing:
        raise ValueError(
            f"{spec} has to be fitted: pass {' and '.join(missing)}, or fit it once "
            "with `qa-hooks fit` and give the .safetensors file"
        )
    if in_features and given["extractor"] is None:
        raise ValueError(f"{spec} needs extractor=, which decides its numbers: {EXTRACTORS}")
    if not from_run and given["real"] is not None:
        raise ValueError(f"{spec} is fitted on real images alone: pass them as fit=, without real=")
    if not in_features and given["extractor"] is not None:
        raise ValueError(f"{spec} learns its own features and takes no extractor=")
    sources = {name: given[name] for name in wanted}
    if from_run and isinstance(sources["fit"], (tuple, list)):  # snapshots and their iterations, in any form
        sources["fit"] = split_snapshots(tuple(sources["fit"]))
    return sources


def _fitted(scorer: Any, sources: Mapping[str, Source], settings: Mapping[str, Any]) -> Scorer:
    fit = scorer.fit_snapshots if "real" in sources else scorer.fit
    fitted: Scorer = fit(*sources.values(), **settings)
    return fitted

"""A scorer as text and tensors, from which another process makes it again; nothing is pickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from qa_hooks.features import FeatureExtractor
from qa_hooks.scorers.catalogue import SAVED
from qa_hooks.scorers.create import create_scorer
from qa_hooks.scorers.libraries.adapter import LibraryScorer
from qa_hooks.scorers.loading import restored_scorer
from qa_hooks.scorers.saving import scorer_parts
from qa_hooks.scorers.scorer import Scorer, uncalibrated

Facts = dict[str, Any]


def packed_scorer(scorer: Scorer) -> tuple[Facts, dict[str, Tensor]]:
    """What `unpacked_scorer` needs: text as JSON can hold it, and tensors.

    Raises:
        ValueError: a scorer of the user's own, which only the user's code can make.

    Example:
        >>> from qa_hooks.scorers import create_scorer
        >>> unpacked_scorer(*packed_scorer(create_scorer({"type": "psnr", "channel": "y"}))).options()["channel"]
        'y'
    """
    inner: Scorer = uncalibrated(scorer)
    facts: Facts = {"range": list(inner.value_range), "calibrated": inner is not scorer}
    facts |= {"fingerprint": inner.fingerprint, "other_sizes": inner.other_sizes, "name": inner.name}
    if isinstance(inner, LibraryScorer):
        spec = {"type": inner.spec, **inner._options}
        try:
            json.dumps(spec)
        except TypeError as error:
            raise _own(scorer, f"its options are not plain ({error})") from None
        if inner.calibration is not None:
            raise _own(scorer, "a calibration of a library's scorer is in no file")
        return {**facts, "spec": spec}, {}
    entry = SAVED.get(type(inner).__name__)
    if entry is None or type(inner) is not entry.kind:
        raise _own(scorer, f"{type(inner).__name__} is code of your own")
    extractor = inner.options().get("extractor")
    if isinstance(extractor, dict) and extractor.get("spec") is None:
        raise _own(scorer, f"its features are of {extractor['name']}, a network of your own")
    tensors, metadata = scorer_parts(inner)
    return {**facts, "metadata": metadata}, tensors


def unpacked_scorer(
    facts: Mapping[str, Any], tensors: Mapping[str, Tensor], *, extractor: FeatureExtractor | None = None
) -> Scorer:
    """The scorer that `packed_scorer` was given.

    Args:
        facts, tensors: what it gave.
        extractor: one that this process has already; used where it is the scorer's own.

    Raises:
        ValueError: it cannot be made here, or is another one here.
    """
    low, high = facts["range"]
    if "spec" in facts:
        scorer = create_scorer(facts["spec"], (low, high))
    else:
        own = json.loads(facts["metadata"]["scorer"])["options"].get("extractor")
        same = extractor is not None and isinstance(own, dict) and own.get("fingerprint") == extractor.fingerprint
        here = extractor if same else None
        name = f"the scorer {facts['name']}"
        scorer = restored_scorer(dict(tensors), facts["metadata"], (low, high), extractor=here, path=name)
    scorer.other_sizes = facts["other_sizes"]
    if scorer.fingerprint != facts["fingerprint"]:
        raise ValueError(
            f"{facts['name']} is another scorer in the other process ({scorer.fingerprint}, here it is "
            f"{facts['fingerprint']}): has a file of its weights changed?"
        )
    return scorer.calibrated() if facts["calibrated"] else scorer


def _own(scorer: Scorer, why: str) -> ValueError:
    return ValueError(
        f"{scorer.name} cannot be made again in another process ({why}): take one from create_scorer, or leave where= "
        "out, and it is measured in the process that trains"
    )

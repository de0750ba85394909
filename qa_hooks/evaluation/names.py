"""The names of values, which depend on the features that they were measured in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Described(Protocol):
    """What names need to know of a `FeatureExtractor`."""

    name: str
    spec: Any


def is_canonical(extractor: Described) -> bool:
    """Whether the extractor is the Inception network of the published FID, made by `create_extractor`."""
    return isinstance(extractor.spec, Mapping) and extractor.spec.get("type") == "inception"


def is_untrained(extractor: Described) -> bool:
    """Whether the network is untrained: the seeded random network, or a network made without weights.

    A network of the user's counts as trained.
    """
    spec = extractor.spec if isinstance(extractor.spec, Mapping) else {}
    return spec.get("type") == "random" or spec.get("weights", "") is None


def extractor_label(extractor: Described) -> str:
    """The extractor's name; a user's network named "inception" is called "own-inception"."""
    return "own-inception" if extractor.name == "inception" and not is_canonical(extractor) else extractor.name


def metric_name(value: str, extractor: Described) -> str:
    """The name that goes with a value: famous ones are for the canonical Inception alone (on uint8 images).

    Example:
        >>> from qa_hooks.features import create_extractor
        >>> extractor = create_extractor("random")
        >>> metric_name("fd", extractor), metric_name("kid", extractor), metric_name("recall", extractor)
        ('fd_random', 'kd_random', 'recall_random')
    """
    if is_canonical(extractor) and value in ("fd", "kid"):
        return "fid" if value == "fd" else value
    return f"{'kd' if value == 'kid' else value}_{extractor_label(extractor)}"

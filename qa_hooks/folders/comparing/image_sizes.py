"""The sizes of the images of folders, from the headers of all their files, and whether they may be compared."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence

from qa_hooks.features import FeatureExtractor
from qa_hooks.folders.comparing.image_sets import ImageSet
from qa_hooks.images import image_size
from qa_hooks.scorers import Scorer


def check_sizes(sets: Sequence[ImageSet], extractor: FeatureExtractor | None, scorers: Mapping[str, Scorer]) -> str:
    """The sizes of the images, in words, from the headers of all files; the first set is the real one.

    Raises:
        ValueError: an extractor that does not resize, and images of several sizes; or a scorer without a reference, and
            folders of generated images that have no size in common.
    """
    found = {images.label: sizes_of(images) for images in sets}
    texts = {label: _in_words(sizes) for label, sizes in found.items()}
    generated = [found[images.label].keys() for images in sets[1:]]
    sensitive = [name for name, scorer in scorers.items() if "reference" not in scorer.inputs]
    if sensitive and not all(sizes & generated[0] for sizes in generated[1:]):
        listed = ", ".join(f"{images.label} {texts[images.label]}" for images in sets[1:])
        raise ValueError(
            f"the folders hold images of different sizes ({listed}), and {sensitive[0]} depends on the size: bring "
            "them to one size"
        )
    listed = ", ".join(f"{label} {text}" for label, text in texts.items())
    if extractor is not None and not extractor.resizes and len(set().union(*found.values())) > 1:
        raise ValueError(
            f"there are images of different sizes ({listed}), and {extractor.name} does not resize, so its features "
            "would measure the size: have them resized, such as by size=64, or use an extractor that resizes"
        )
    return listed if len(set(texts.values())) > 1 else next(iter(texts.values()))


def sizes_of(images: ImageSet) -> Counter[tuple[int, int]]:
    """How many files there are of each width and height, as the images are shown; broken ones are told later."""
    found: Counter[tuple[int, int]] = Counter()
    for path in images.paths:
        with contextlib.suppress(Exception):
            found[image_size(path)] += 1
    return found


def _in_words(sizes: Counter[tuple[int, int]]) -> str:
    (size, most), *others = sizes.most_common() or [((0, 0), 0)]
    text = "x".join(map(str, size))
    if not others:
        return text
    other = f"{len(others)} other sizes" if len(others) > 1 else "x".join(map(str, others[0][0]))
    return f"{most} of {text} and {sum(sizes.values()) - most} of {other}"


def resize_of(extractor: FeatureExtractor) -> str:
    """What the extractor does with the images' size, in words."""
    if extractor.is_canonical:
        return "299 bilinear (TensorFlow's)"
    return "none" if extractor.size is None else f"{extractor.size} {extractor.interpolation}"

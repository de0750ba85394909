"""People's judgements as what an A-FINE is trained on: every image beside its reference, and pairs of one reference."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch

from qa_hooks.ratings.images import ImageFinder
from qa_hooks.ratings.tables import Preferences, Ratings
from qa_hooks.scorers.afine.comparisons import Comparisons

LOG = logging.getLogger("qa_hooks")


def as_comparisons(
    judged: Ratings | Preferences,
    images: str | Path,
    *,
    least: float = 0.0,
    reference_is_best: bool = True,
    references: Mapping[str, str] | None = None,
) -> Comparisons:
    """Ratings of images with references, or preferences that name the reference, as pairs for `FittedAFINE`.

    Pairs are made within a content. A reference that was judged itself (DiffIQA, SRIQA-Bench) has its own place in the
    order; one that was not (TID2013, KADID-10k, PIPAL) counts as better than all its images.

    Args:
        judged: from `read_ratings` or `read_preferences`.
        images: the folder that holds images and references.
        least: ratings that differ by no more are a tie.
        reference_is_best: count references that nobody judged as the best; False leaves such pairs out.
        references: which image is the reference of a content, where the file does not say.

    Raises:
        ValueError: no references, a reference that is not on disk, or no pairs. Images that are not on disk are left
            out and counted.

    Example:
        >>> import tempfile
        >>> from qa_hooks.ratings import Preference
        >>> from qa_hooks.images import save_image
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("x", "a", "b"):
        ...     save_image(torch.zeros(3, 8, 8, dtype=torch.uint8), folder / f"{name}.png")
        >>> pairs = [Preference("a.png", "x.png", 1.0, "x.png"), Preference("b.png", "x.png", -1.0, "x.png")]
        >>> as_comparisons(Preferences(pairs, "mine"), folder).beats_reference.tolist()
        [True, False, False]
    """
    finder, names = ImageFinder(images), dict[str, str]()
    if isinstance(judged, Ratings):
        names = _references_of(judged)
        judged = judged.as_pairs(within="content" if judged.content else "reference", least=least)
    names = {**names, **(references or {})}
    told = set(judged.names)
    found = finder.names.match(judged.names)  # never two judged names for one file
    places = {
        name: None if place is None else finder.folder / place for name, place in zip(judged.names, found, strict=True)
    }
    pictures: list[Path] = []
    items: dict[tuple[str, str], int] = {}
    rows: dict[str, list[int]] = {"test": [], "reference": []}
    contents: list[str] = []
    numbers: dict[Path, int] = {}

    def picture(name: str) -> int | None:
        path = places[name] if name in places else places.setdefault(name, finder.find(name))
        if path is None:
            return None
        if path not in numbers:
            numbers[path] = len(pictures)
            pictures.append(path)
        return numbers[path]

    def item(name: str, content: str) -> int | None:
        reference = names.get(content, content if content in told else "")
        if not reference:
            raise ValueError(
                f"nothing says which image is the reference of {content!r}, and an A-FINE compares with one: of a "
                "table of your own name the column, --columns reference=COLUMN (columns={'reference': ...}); in "
                "code also as_comparisons(..., references={content: image})"
            )
        base, place = picture(reference), picture(name)
        if base is None:
            raise ValueError(f"the reference {reference!r} of {content!r} is not in {images}")
        if place is None:
            return None
        if (name, content) not in items:
            items[name, content] = len(rows["test"])
            rows["test"].append(place)
            rows["reference"].append(base)
            contents.append(content)
        return items[name, content]

    pairs: list[tuple[int, int]] = []
    better: list[float] = []
    for pair in judged:
        a, b = item(pair.a, pair.content), item(pair.b, pair.content)
        if a is not None and b is not None:
            pairs.append((a, b))
            better.append((1 + pair.better) / 2)
    for name, content in list(items):
        reference = names.get(content, content)
        own = item(reference, content)
        if own is not None and reference not in told and reference_is_best and name != reference:
            pairs.append((own, items[name, content]))
            better.append(1.0)
    missing = sum(path is None for path in places.values())
    if not pairs:
        raise ValueError(f"there are no pairs of images that are in {images}; without an image: {missing}")
    if missing:
        LOG.warning("%d of %d images are not in %s and are left out", missing, len(places), images)
    test, base, pair_rows = (
        torch.tensor(values, dtype=torch.int64, device="cpu") for values in (rows["test"], rows["reference"], pairs)
    )
    said = torch.tensor(better, dtype=torch.float32, device="cpu")
    return Comparisons(pictures, test, base, pair_rows, said, contents)


def _references_of(ratings: Ratings) -> dict[str, str]:
    """Content -> name of its reference."""
    if not ratings.reference:
        return {}
    found: dict[str, str] = {}
    for content, reference in zip(ratings.content or ratings.reference, ratings.reference, strict=True):
        if found.setdefault(content, reference) != reference:
            raise ValueError(
                f"{content!r} has two references, {found[content]!r} and {reference!r}: a content has one, so give the "
                "two contents names of their own"
            )
    return found

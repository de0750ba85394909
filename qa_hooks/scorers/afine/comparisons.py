"""What an A-FINE is trained on: pictures, which is whose reference, and which of two is better.

An item is a picture beside a reference; one picture may stand beside several. A pair compares two items of one
reference. The reference beside itself is an item, too: pairs with it say whether an image is better than its reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qa_hooks._base.random import permutation
from qa_hooks.functional.degradations import LADDERS, LEVELS, chain

Picture = Path | Tensor  # a file, or uint8 (3, H, W)
KINDS = ("worse", "better", "both")


@dataclass(frozen=True, eq=False)
class Comparisons:
    """Judged pairs of pictures that share a reference.

    Attributes:
        pictures: files, or uint8 tensors `(3, H, W)`; a picture has the size of its reference.
        test, reference: `(n,)` int64, the picture and the reference of each item.
        pairs: `(m, 2)` int64, items.
        better: `(m,)` float32: 1 where the first of the pair is better, 0 where the second is, 0.5 for a tie.
        content: of each item, what it shows. A content is trained on, or held out, as a whole.
    """

    pictures: Sequence[Picture]
    test: Tensor
    reference: Tensor
    pairs: Tensor
    better: Tensor
    content: Sequence[str]

    def __post_init__(self) -> None:
        n, m = len(self.test), len(self.pairs)
        if self.reference.shape != (n,) or len(self.content) != n or self.test.ndim != 1:
            raise ValueError(f"{n} items need as many references and contents")
        if self.pairs.shape != (m, 2) or self.better.shape != (m,) or not m:
            raise ValueError(f"pairs must be (m, 2) and better (m,), got {self.pairs.shape} and {self.better.shape}")
        if int(self.pairs.min()) < 0 or int(self.pairs.max()) >= n:
            raise ValueError(f"pairs name items from 0 to {n - 1}, got {int(self.pairs.min())} and {self.pairs.max()}")
        places = torch.cat([self.test, self.reference])
        if int(places.min()) < 0 or int(places.max()) >= len(self.pictures):
            raise ValueError(f"items name pictures from 0 to {len(self.pictures) - 1}, got {int(places.max())}")
        own = self.reference[self.pairs]
        if not bool((own[:, 0] == own[:, 1]).all()):
            raise ValueError("a pair compares two items of one reference")
        if not bool(((self.better >= 0) & (self.better <= 1)).all()):
            raise ValueError("better must lie between 0 and 1")

    def with_pairs(self, keep: Tensor) -> Comparisons:
        """The pairs of a mask or of indices; items and pictures stay."""
        return replace(self, pairs=self.pairs[keep], better=self.better[keep])

    @property
    def pair_content(self) -> list[str]:
        """The content of each pair."""
        return [self.content[item] for item in self.pairs[:, 0].tolist()]

    @property
    def beats_reference(self) -> Tensor:
        """`(n,)` bool: the items of which a pair says that they are better than the reference itself."""
        itself = self.test == self.reference
        found = torch.zeros(len(self.test), dtype=torch.bool, device="cpu")
        for own, other, least in ((0, 1, self.better > 0.5), (1, 0, self.better < 0.5)):
            found[self.pairs[least & itself[self.pairs[:, other]], own]] = True
        return found & ~itself

    def split(self, share: float, seed: int) -> tuple[Comparisons, Comparisons]:
        """Held-out pairs and the others; no content has pairs in both.

        Raises:
            ValueError: fewer than two contents.
        """
        contents = sorted(set(self.pair_content))
        if len(contents) < 2:
            raise ValueError(f"an A-FINE needs at least two contents, one to hold out, got {contents}")
        order = permutation(len(contents), seed).tolist()
        held = {contents[place] for place in order[: min(max(1, round(share * len(contents))), len(contents) - 1)]}
        mask = torch.tensor([content in held for content in self.pair_content], dtype=torch.bool, device="cpu")
        return self.with_pairs(mask), self.with_pairs(~mask)

    def __str__(self) -> str:
        ties, beating = int((self.better == 0.5).sum()), int(self.beats_reference.sum())
        return (
            f"{len(self.pairs)} pairs ({ties} ties) of {len(self.test)} images with {len(set(self.content))} contents; "
            f"{beating} images are better than their reference"
        )


def ladder_comparisons(
    images: Sequence[Tensor], *, kind: str = "both", content: Sequence[str] | None = None, seed: int = 0
) -> Comparisons:
    """Comparisons made from good photographs, whose order is known without asking anybody.

    Each photograph is degraded in six ways to four levels. With the photograph as the reference, all the others are
    worse. With a degraded one as the reference, the photograph and the levels before it are better than their
    reference, and the levels after it are worse.

    Args:
        images: uint8 `(3, H, W)`.
        kind: "worse" (the photograph is the reference), "better" (only references that are beaten: pairs with images
            before them) or "both".
        content: of each image; None makes each a content of its own.
        seed: of the noise.

    Example:
        >>> found = ladder_comparisons([torch.randint(256, (3, 24, 24), dtype=torch.uint8)], kind="worse")
        >>> len(found.pictures), len(found.test), len(found.pairs)
        (25, 30, 60)
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    generator = torch.Generator().manual_seed(seed)
    pictures: list[Picture] = []
    rows: dict[str, list[Any]] = {"test": [], "reference": [], "pairs": [], "content": []}
    for number, image in enumerate(images):
        original = len(pictures)
        pictures.append(image)
        for name in LADDERS:
            levels = chain(image[None].float() / 255, name, generator=generator)[1:, 0]
            ladder = [original, *range(len(pictures), len(pictures) + LEVELS - 1)]
            pictures += [(level * 255).round().to(torch.uint8) for level in levels]
            for place in {"worse": [0], "better": range(1, LEVELS), "both": range(LEVELS)}[kind]:
                first = len(rows["test"])
                shown = ladder[: place + 1] if kind == "better" else ladder
                rows["test"] += shown
                rows["reference"] += [ladder[place]] * len(shown)
                rows["content"] += [str(number) if content is None else content[number]] * len(shown)
                rows["pairs"] += [(first + a, first + b) for b in range(len(shown)) for a in range(b)]
    if not pictures:
        raise ValueError("there are no photographs to make comparisons from")
    test, reference, pairs = (
        torch.tensor(rows[name], dtype=torch.int64, device="cpu") for name in ("test", "reference", "pairs")
    )
    # Which of the two comes first must teach nothing.
    swapped = torch.rand(len(pairs), generator=generator, dtype=torch.float32, device="cpu") < 0.5
    pairs = torch.where(swapped[:, None], pairs.flip(1), pairs)
    return Comparisons(pictures, test, reference, pairs, (~swapped).float(), rows["content"])

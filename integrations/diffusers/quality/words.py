"""The rival of the prompt: quality words, as in the tags of many published models.

words = QualityWords()
captions = words.add(captions, q)                       # in training, q of each image
images = pipe(words.add(prompts, +1.5)).images          # at sampling
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from qa_hooks._base.text import plural

LEVELS = ("worst quality", "low quality", "normal quality", "high quality", "best quality")


class QualityWords:
    """Words for q, in the units of the dial.

    Args:
        levels: from the worst to the best; "" says nothing.
        edges: between two levels, ascending, in standard deviations; by default evenly spaced from -1.5 to 1.5.

    Raises:
        ValueError: fewer than two levels, or edges that are not one fewer and ascending.

    Example:
        >>> words = QualityWords()
        >>> words.add(["a cat", "a dog"], torch.tensor([2.0, -0.1]))
        ['a cat, best quality', 'a dog, normal quality']
    """

    def __init__(self, levels: Sequence[str] = LEVELS, edges: Sequence[float] | None = None) -> None:
        self.levels = tuple(levels)
        if isinstance(levels, str) or len(self.levels) < 2:
            raise ValueError(f"levels must be at least two words, from the worst to the best, got {levels!r}")
        default = [0.0] if len(self.levels) == 2 else np.linspace(-1.5, 1.5, len(self.levels) - 1).tolist()
        self.edges = default if edges is None else [float(edge) for edge in edges]
        if len(self.edges) != len(self.levels) - 1 or self.edges != sorted(set(self.edges)):
            raise ValueError(f"edges must be {len(self.levels) - 1} ascending numbers, got {edges!r}")

    def numbers(self, q: Tensor | float) -> Tensor:
        """`(N,)` int64, the level of each q, 0 for the worst: for class tokens.

        Raises:
            ValueError: q that is NaN, which has no word, or q of several scores.
        """
        q = torch.as_tensor(q, dtype=torch.float32, device="cpu")
        q = q[:, 0] if q.ndim == 2 and q.shape[1] == 1 else q
        if q.ndim > 1:
            raise ValueError(
                f"q must be a number or (N,), one for each prompt, got {tuple(q.shape)}: words stand for one score, "
                "q[:, 0] is the first of several"
            )
        q = q.flatten()
        if q.isnan().any():
            lost = f"{int(q.isnan().sum())} of {plural(len(q), 'image')}"
            raise ValueError(f"{lost} have no score and so no word: leave them out")
        return torch.bucketize(q, torch.tensor(self.edges, dtype=torch.float32, device=q.device), right=True)

    def add(self, prompts: Sequence[str], q: Tensor | float) -> list[str]:
        """The prompts with their words behind them; one q serves for all.

        Raises:
            ValueError: another number of q than of prompts, or q that `numbers` refuses.
        """
        numbers = self.numbers(q).tolist()
        numbers = numbers * len(prompts) if len(numbers) == 1 else numbers
        if isinstance(prompts, str) or len(numbers) != len(prompts):
            raise ValueError(f"there must be one q for each prompt, got {len(numbers)} for {len(prompts)} prompts")
        said = [self.levels[number] for number in numbers]
        return [", ".join(part for part in pair if part) for pair in zip(prompts, said, strict=True)]

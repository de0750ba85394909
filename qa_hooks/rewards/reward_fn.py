"""A scorer as the reward function that trainers by reinforcement learning call: `(images, prompts, metadata)`.

    trainer = DDPOTrainer(config, as_reward_fn(scorer), prompt_fn, pipeline)

The form is that of DDPO (Black et al. 2024), which TRL's trainer had and Flow-GRPO (Liu et al. 2025) has: it returns
the scores, one for each image and higher for better, and a dictionary of further information, here empty. No gradient
comes back: where a gradient can be had, `ScoreLoss` learns faster.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from qa_hooks._base.checks import check_count
from qa_hooks._base.isolation import isolated
from qa_hooks.images import as_tensor
from qa_hooks.scorers.scorer import Scorer, check_is_scorer

RewardFn = Callable[..., tuple[Tensor, dict[str, Any]]]


def as_reward_fn(scorer: Scorer, *, batch_size: int = 64) -> RewardFn:
    """`reward(images, prompts=None, metadata=None) -> (scores, {})`.

    Images come as a tensor `(N, C, H, W)`, an array `(N, H, W, C)` or a list of PIL images: floats in the scorer's
    `value_range`, uint8 and PIL as [0, 255]. Prompts are used when the scorer's `inputs` name them; the metadata never
    is. The scores are `(N,)` float32 on the CPU, `goodness` of the scorer; `scores.tolist()` where a list is wanted.

    The run's random state, grad mode and training flags stay as they are. A trainer may call it from a thread of its
    own, as DDPO does: global random states, which threads share, are not touched then, not even to put them back.

    Args:
        scorer: scores images alone or with their prompt.
        batch_size: images at a time.

    Raises:
        TypeError: not a scorer.
        ValueError: a scorer that needs a reference. From the function: a score that is not finite, with the place of
            its image; prompts that are missing or too few.

    Example:
        >>> from qa_hooks.scorers import FunctionScorer
        >>> bright = FunctionScorer(lambda images: images.mean((1, 2, 3)), name="bright", higher_is_better=True)
        >>> as_reward_fn(bright)(torch.full((2, 3, 8, 8), 0.25), ["a cat", "a dog"], [{}, {}])
        (tensor([0.2500, 0.2500]), {})
    """
    check_is_scorer(scorer)
    if "reference" in scorer.inputs:
        raise ValueError(f"{scorer.name} compares with a reference, and generated images have none")
    check_count("batch_size", batch_size)
    takes_prompts = "prompt" in scorer.inputs

    def reward(
        images: Any, prompts: Sequence[str] | None = None, metadata: Any = None
    ) -> tuple[Tensor, dict[str, Any]]:
        batch = as_tensor(images)
        if takes_prompts and (prompts is None or isinstance(prompts, str) or len(prompts) != len(batch)):
            got = "none" if prompts is None else repr(prompts) if isinstance(prompts, str) else f"{len(prompts)}"
            raise ValueError(f"{scorer.name} needs {len(batch)} prompts, one for each image, got {got}")
        parts = []
        with _room():
            device = scorer.device or batch.device
            for first in range(0, len(batch), batch_size):
                rows = slice(first, first + batch_size)
                inputs = {"prompt": list(prompts[rows])} if takes_prompts and prompts is not None else {}
                parts.append(scorer.goodness(batch[rows].to(device), **inputs).cpu())
        scores = torch.cat(parts)
        if not torch.isfinite(scores).all():
            place = int((~torch.isfinite(scores)).nonzero()[0])
            raise ValueError(f"the reward {scorer.name} of image {place} is {float(scores[place])}")
        return scores, {}

    return reward


@contextlib.contextmanager
def _room() -> Any:
    """`isolated` in the main thread; elsewhere what belongs to the thread alone, that is grad mode and autocast."""
    if threading.current_thread() is threading.main_thread():
        with isolated():
            yield
        return
    with torch.no_grad(), contextlib.ExitStack() as stack:
        for device_type in ["cpu"] + (["cuda"] if torch.cuda.is_available() else []):
            stack.enter_context(torch.autocast(device_type, enabled=False))
        yield

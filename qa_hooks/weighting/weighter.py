"""The base class of weighters: images or scores in, one detached weight per image out, over all ranks' batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from qa_hooks._base.checks import check_call, check_count
from qa_hooks._base.isolation import isolated
from qa_hooks._base.processes import gather_rows
from qa_hooks._base.terms import publish
from qa_hooks._base.text import plural
from qa_hooks.images import RangeGuard, check_images
from qa_hooks.scorers.scorer import Scorer


class Weighter:
    """Images in, one weight per image out. A subclass writes `rule`.

    Args:
        scorer: a qa_hooks `Scorer`, which knows its range and its direction, or any callable `(N, C, H, W) -> (N,)` or
            `(N, 1)`, the critic included; None when the loop passes `scores=`.
        higher_is_better: the direction of a callable and of bare `scores=`; a `Scorer` has its own.
        normalize: divide by the mean over the joint batch, so that the loss keeps its size.
        every: score at every so-many-th call; the calls between return ones.

    Attributes:
        terms: of the last call that scored, detached: "weighted" (share of images whose weight the rule changed),
            "effective_sample_size" ((sum w)^2 / (N sum w^2): 1 when all count alike), "threshold" (in the scores' own
            direction), "nonfinite" (scores that are not finite: weight 1, and left out of the threshold).
    """

    kind = "weight"  # the group under which Hooks(track=...) logs the terms

    def __init__(
        self,
        scorer: Scorer | Callable[[Tensor], Tensor] | None = None,
        *,
        higher_is_better: bool = True,
        normalize: bool = True,
        every: int = 1,
    ) -> None:
        if scorer is not None and not callable(scorer):
            raise TypeError(
                f"scorer must be a Scorer, a callable such as the critic, or None, got {type(scorer).__name__}; "
                "create_scorer makes one from a name or a file"
            )
        if scorer is not None and not isinstance(scorer, Scorer):
            check_call("scorer", scorer, "scorer(images)", None)
        if isinstance(scorer, Scorer) and scorer.inputs:
            raise ValueError(
                f"{scorer.name} needs {' and '.join(sorted(scorer.inputs))} besides the images; compute its scores in "
                "the loop and pass scores="
            )
        self.scorer, self.normalize, self.every = scorer, normalize, check_count("every", every)
        self.higher_is_better = scorer.higher_is_better if isinstance(scorer, Scorer) else bool(higher_is_better)
        self.terms: dict[str, Tensor] = {}
        self.calls = 0
        self._checked = 0

    def rule(self, goodness: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """What a subclass writes: from the joint batch `(N,)`, higher better and NaN where unknown, the threshold and
        the function that gives weights `(n,)` of goodness `(n,)`."""
        raise NotImplementedError(f"{type(self).__name__} must define rule(goodness)")

    def is_off(self) -> bool:
        """True when the options leave every weight at 1; nothing is run then."""
        return False

    def __call__(self, images: Tensor, *, scores: Tensor | None = None) -> Tensor:
        """The weights of a batch. With several processes every rank must call it; the numbers of images may differ.

        Args:
            images: `(N, C, H, W)`, what the scorer takes; no gradient reaches them.
            scores: `(N,)` or `(N, 1)`, where the loop has them: what the scorer would return. Nothing is run then.

        Returns:
            `(N,)` float32 on the images' device, detached.

        Raises:
            TypeError: scores that are no tensor.
            ValueError: images or scores of a wrong shape; neither scores nor a scorer; on the first three calls scores
                that are not finite, or outside [0, 1] where the threshold is absolute.
        """
        check_images("images", images, floating=False)
        ones = torch.ones(images.shape[0], dtype=torch.float32, device=images.device)
        if self.is_off():
            return ones
        first, self.calls = self.calls, self.calls + 1
        if first % self.every:
            return ones
        sign = 1 if self.higher_is_better else -1
        goodness = sign * (self._run(images) if scores is None else self._one_per_image(scores, images)).float()
        joint = gather_rows(goodness)
        if self._checked < RangeGuard.CALLS:  # on the joint batch, so that all ranks raise together
            self._checked += 1
            self.check(joint)
        goodness, joint = (torch.where(torch.isfinite(part), part, torch.nan) for part in (goodness, joint))
        threshold, weigh = self.rule(joint)
        weights, all_weights = weigh(goodness), weigh(joint)
        terms = {
            "weighted": (all_weights != 1).float().mean(),
            "effective_sample_size": all_weights.mean().square() / all_weights.square().mean(),
            "threshold": sign * threshold.float(),
            "nonfinite": joint.isnan().float().sum(),
        }
        publish(self, terms)
        return weights / all_weights.mean() if self.normalize else weights

    def __repr__(self) -> str:
        plain = {name.lstrip("_"): value for name, value in vars(self).items() if isinstance(value, (int, float, str))}
        options = [f"{name}={value}" for name, value in plain.items() if name not in ("calls", "checked")]
        return f"{type(self).__name__}({', '.join([self._scorer_name(), *options])})"

    def check(self, goodness: Tensor) -> None:
        """Look at the first joint batches; this reads values, so it synchronises a GPU."""
        bad = int((~torch.isfinite(goodness)).sum())
        if bad:
            raise ValueError(f"{bad} of {plural(goodness.numel(), 'score')} of {self._scorer_name()} are not finite")

    def run_state(self) -> dict[str, Any]:
        """What a resumed run needs; `Hooks(track=...)` saves it."""
        return {"calls": self.calls}

    def load_run_state(self, state: dict[str, Any]) -> None:
        """The inverse of `run_state`; `ValueError` if the state belongs to something else."""
        try:
            self.calls = int(state["calls"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"this is not the state of a {type(self).__name__}: {error!r}") from error

    def _run(self, images: Tensor) -> Tensor:
        if self.scorer is None:
            raise ValueError(
                f"{type(self).__name__} was made without a scorer; pass scores=, or make it with a scorer or the critic"
            )
        kind = images.device.type
        enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        # A critic runs as the loop would run it. But without the cache: in older versions of torch, weights that are
        # cast here, under no_grad, would reach the loop's own pass and take their gradient away.
        with isolated(), torch.autocast(kind, enabled=enabled, dtype=dtype, cache_enabled=False):
            return self._one_per_image(self.scorer(images.detach()), images)

    def _one_per_image(self, scores: Any, images: Tensor) -> Tensor:
        count = images.shape[0]
        if not isinstance(scores, Tensor):
            raise TypeError(f"{self._scorer_name()} must give a tensor ({count},), got {type(scores).__name__}")
        if scores.ndim == 0 or scores.shape[0] != count or scores.numel() != count:
            raise ValueError(
                f"{self._scorer_name()} must give one score per image, ({count},) or ({count}, 1), got "
                f"{tuple(scores.shape)}; average a map first: lambda x: D(x).flatten(1).mean(1)"
            )
        return scores.detach().reshape(count).to(images.device)

    def _scorer_name(self) -> str:
        if self.scorer is None:
            return "scores="
        return self.scorer.name if isinstance(self.scorer, Scorer) else type(self.scorer).__name__


def value_below(goodness: Tensor, share: float) -> Tensor:
    """The value below which `share` of the values lie, to the nearest whole image; NaN does not count. No sync."""
    ranked = goodness.sort().values  # NaN comes last
    known = (~goodness.isnan()).sum()
    below = torch.minimum((share * known).round().long(), known - 1).clamp_min(0)
    return ranked.gather(0, below.reshape(1))[0]

"""Per-sample weights from scores: which generated images count more in a GAN's loss.

    d_loss = loss(D(real), 1).mean() + (ohem(fake) * loss(D(fake), 0).flatten(1).mean(1)).mean()

The weights are (N,): bring the losses to that shape first, as above, since (N,) times (N, 1) is (N, N).

OHEM (Gu, Bao, Chen, Wen, GIQA, ECCV 2020): w_i = w_l if S(x_i) < T_q, else 1, on the fake term of the critic's loss.
Top-k (Sinha et al., Top-k Training of GANs, NeurIPS 2020): w_i = 1 for the share of the batch that the critic finds
most real, else 0, on the generator's loss. With several processes thresholds and means are those of the joint batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from qa_hooks.checks import check_count, check_weight
from qa_hooks.images import RangeGuard, check_images
from qa_hooks.isolation import isolated
from qa_hooks.processes import gather_rows
from qa_hooks.scorers.scorer import Scorer

MODES = ("quantile", "absolute")


def ohem_weights(scores: Tensor, *, threshold: float | Tensor, weight: float) -> Tensor:
    """The paper's rule: `weight` where score < threshold, else 1 (also where the score is NaN).

    Args:
        scores: `(N,)`, higher is better.
        threshold: a number or a scalar tensor.
        weight: w_l, greater than 0; the paper's is 2.

    Returns:
        `(N,)` float32, detached; not normalised.

    Raises:
        ValueError: scores of another shape, or a weight that is not a positive number.

    Example:
        >>> ohem_weights(torch.tensor([0.1, 0.2, 0.9]), threshold=0.2, weight=2.0)
        tensor([2., 1., 1.])
    """
    if not isinstance(scores, Tensor) or scores.ndim != 1:
        got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(f"scores must be a tensor (N,), got {got}")
    below = scores.detach() < threshold
    return 1 + (_positive("weight", weight) - 1) * below.float()


class Weighter:
    """Images in, one weight per image out. A subclass writes `rule`.

    Args:
        scorer: a qa_hooks `Scorer`, which knows its range and its direction, or any callable `(N, C, H, W) -> (N,)` or
            `(N, 1)`, the critic included; None when the loop passes `scores=`.
        higher_is_better: the direction of a callable and of bare `scores=`; a `Scorer` has its own.
        normalize: divide by the mean over the joint batch, so that the loss keeps its size.
        every: score each that many calls; those between return ones.

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
        ones = torch.ones(images.shape[0], device=images.device)
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
        self.terms = {
            "weighted": (all_weights != 1).float().mean(),
            "effective_sample_size": all_weights.mean().square() / all_weights.square().mean(),
            "threshold": sign * threshold.float(),
            "nonfinite": joint.isnan().float().sum(),
        }
        return weights / all_weights.mean() if self.normalize else weights

    def check(self, goodness: Tensor) -> None:
        """Look at the first joint batches; this reads values, so it synchronises a GPU."""
        bad = int((~torch.isfinite(goodness)).sum())
        if bad:
            raise ValueError(f"{bad} of {goodness.numel()} scores of {self._scorer_name()} are not finite")

    def run_state(self) -> dict[str, Any]:
        """What a resumed run needs; `Hooks(track=...)` saves it."""
        return {"calls": self.calls}

    def load_run_state(self, state: dict[str, Any]) -> None:
        """The inverse of `run_state`; `ValueError` when it is that of something else."""
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


class OHEM(Weighter):
    """Online hard example mining of GIQA: the worst images of a batch count more in the fake term of the critic's loss.

    Where it helps: nowhere that we have looked. On digits (1200 steps, seeds 0, 1, 2, docs/giqa.md) it was worse than
    the same weights given to random images, with WGAN-GP, hinge and logistic losses alike, in Frechet distance by 4.0,
    2.6 and 5.7 (unweighted: 15.0, 11.8, 13.3); precision rose a little and recall fell. The paper reports a gain of 3 %
    with StyleGAN. Compare with a shuffled control: `weights[torch.randperm(len(weights))]`.

    Args:
        scorer, higher_is_better, every: as in `Weighter`.
        worst: with "quantile", the share of the joint batch that gets the weight. A batch of equal scores gets ones.
        weight: w_l, more than 0; 1 switches it off.
        threshold_mode: "quantile", or "absolute", the paper's letter: calibrated scores below `threshold`. Early in a
            run that is every image, which `terms["weighted"]` shows.
        threshold: T_q of "absolute".
        normalize: to mean 1. Without it a WGAN critic's loss is no longer invariant to a constant, and the critic ran
            away in 3 of 3 runs; losses that are bounded below (hinge, logistic) do not have this fault.

    Raises:
        TypeError, ValueError: options that cannot be used; "absolute" with a scorer that is not calibrated.

    Example:
        >>> ohem = OHEM(lambda images: images.mean((1, 2, 3)), worst=0.25, weight=3.0)
        >>> ohem(torch.linspace(0, 1, 4)[:, None, None, None].expand(4, 1, 8, 8))
        tensor([2.0000, 0.6667, 0.6667, 0.6667])
    """

    def __init__(
        self,
        scorer: Scorer | Callable[[Tensor], Tensor] | None = None,
        *,
        worst: float = 0.2,
        weight: float = 2.0,
        threshold_mode: str = "quantile",
        threshold: float = 0.2,
        normalize: bool = True,
        every: int = 1,
        higher_is_better: bool = True,
    ) -> None:
        super().__init__(scorer, higher_is_better=higher_is_better, normalize=normalize, every=every)
        if threshold_mode not in MODES:
            raise ValueError(f"threshold_mode must be one of {MODES}, got {threshold_mode!r}")
        for name, share in (("worst", worst), ("threshold", threshold)):
            if not 0 < check_weight(name, share) < 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {share!r}")
        self.worst, self.threshold_mode, self.threshold = float(worst), threshold_mode, float(threshold)
        self.weight = _positive("weight", weight)
        if threshold_mode == "absolute":
            self._check_calibrated()
        if not normalize and not self.is_off():
            warnings.warn(
                "OHEM(normalize=False) changes the size of the fake term: with an unbounded critic loss such as WGAN's "
                "the critic ran away in 3 of 3 runs; hinge and logistic losses do not have this fault",
                stacklevel=2,
            )

    def rule(self, goodness: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        if self.threshold_mode == "absolute":
            threshold = torch.full((), self.threshold, device=goodness.device)
        else:
            threshold = _cut(goodness, self.worst)
        return threshold, lambda part: ohem_weights(part, threshold=threshold, weight=self.weight)

    def is_off(self) -> bool:
        """True with weight 1."""
        return self.weight == 1

    def check(self, goodness: Tensor) -> None:
        super().check(goodness)
        low, high = float(goodness.min()), float(goodness.max())
        if self.threshold_mode == "absolute" and not 0 <= low <= high <= 1:
            raise ValueError(
                f"an absolute threshold needs scores in [0, 1], higher better; {self._scorer_name()} gave "
                f'[{low:.4g}, {high:.4g}]: use scorer.calibrated(), or threshold_mode="quantile"'
            )

    def _check_calibrated(self) -> None:
        known = isinstance(self.scorer, Scorer)
        if not self.higher_is_better or (known and getattr(self.scorer, "score_range", None) != (0.0, 1.0)):
            raise ValueError(
                f"an absolute threshold needs scores in [0, 1], higher better, which {self._scorer_name()} does not "
                'give: use scorer.calibrated(), or threshold_mode="quantile"'
            )


class TopK(Weighter):
    """Top-k training: only the images that the critic finds most real count in the generator's loss.

    The paper starts with the whole batch and goes down by 1 % an epoch: set `topk.fraction` in the loop.

    Args:
        fraction: share of the joint batch that counts; 1 switches it off. Images tied at the threshold all count.
        scorer: the critic, or anything `Weighter` takes; or pass `scores=`, which the loop has anyway.
        higher_is_real: the direction of the critic.
        normalize: to mean 1, which is the paper's mean over the images that count.

    Example:
        >>> topk = TopK(0.5)
        >>> topk(torch.zeros(4, 1, 8, 8), scores=torch.tensor([[3.0], [1.0], [2.0], [0.0]]))
        tensor([2., 0., 2., 0.])
    """

    def __init__(
        self,
        fraction: float = 0.75,
        *,
        scorer: Scorer | Callable[[Tensor], Tensor] | None = None,
        higher_is_real: bool = True,
        normalize: bool = True,
    ) -> None:
        super().__init__(scorer, higher_is_better=higher_is_real, normalize=normalize)
        self.fraction = fraction

    @property
    def fraction(self) -> float:
        """Share of the joint batch that counts; may be set between steps."""
        return self._fraction

    @fraction.setter
    def fraction(self, fraction: float) -> None:
        if not 0 < check_weight("fraction", fraction) <= 1:
            raise ValueError(f"fraction must be more than 0 and at most 1, got {fraction!r}")
        self._fraction = float(fraction)

    def run_state(self) -> dict[str, Any]:
        return {**super().run_state(), "fraction": self.fraction}

    def load_run_state(self, state: dict[str, Any]) -> None:
        super().load_run_state(state)
        self.fraction = state["fraction"]

    def rule(self, goodness: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        threshold = _cut(goodness, 1 - self.fraction)
        return threshold, lambda part: 1 - (part < threshold).float()

    def is_off(self) -> bool:
        """True with fraction 1."""
        return self.fraction == 1


def _cut(goodness: Tensor, share: float) -> Tensor:
    """The value below which `share` of the values lie, to the nearest whole image; NaN does not count. No sync."""
    ranked = goodness.sort().values  # NaN comes last
    known = (~goodness.isnan()).sum()
    below = torch.minimum((share * known).round().long(), known - 1).clamp_min(0)
    return ranked.gather(0, below.reshape(1))[0]


def _positive(name: str, value: Any) -> float:
    if check_weight(name, value) == 0:
        raise ValueError(f"{name} must be more than 0, got {value!r}")
    return float(value)

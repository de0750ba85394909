"""Any differentiable scorer as a loss, and what keeps an optimizer from fooling it.

    loss_i = max(ceiling - G(I_i), 0) + out_of_range * mean relu(|I_i - 1/2| - 1/2)         (without a ceiling: -G(I_i))
    w      = weight * balance * |d fidelity / dI| / |dG / dI|                               (without balance: weight)

G is the goodness: the score, or its negative where lower is better; of several scorers the mean or the minimum. A
network will exploit any weakness of a score: ten steps of 1/255 lifted a learned ranking score from .3 to 23.8, where
clean photographs have 2.7. So a reward needs a ceiling (no gain beyond the score of real images), a weight in
proportion to the fidelity term, and images inside their range. These measures guarantee nothing: watch the run
(`RewardGuard`).

Recipes for super-resolution, after "Augmenting Perceptual Super-Resolution via Image Quality Predictors" (2025), which
tunes LoRA beside a frozen network (`qa_hooks.integrations.peft`); l1, lpips and gan are the loop's own terms:

    reward = ScoreLoss(scorer, ceiling="real", balance=1.0)
    FT      l1 + w lpips + reward(pred, real=hr, fidelity=l1)     the GAN is off: the reward takes its place
    FT_HP   the same with a larger w                              LPIPS comes back, some of the score is lost
    FT_IG   FT + the GAN's term                                   no visible benefit in the paper

Without an LPIPS at hand, `SSIMLoss` or `MSSSIMLoss` is the anchor. In our runs ratios (`balance`) of .1 to 1 gained
score at next to no loss of PSNR, 2 began to be fooled, and 3 wrecked the images, with LoRA and without.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from qa_hooks._base.checks import check_count, check_weight, warn
from qa_hooks._base.random import OwnRandom
from qa_hooks.functional.clamp import clamp_inward
from qa_hooks.functional.numerics import is_transformed
from qa_hooks.functional.views import random_view
from qa_hooks.images import RangeGuard, check_images, to_unit
from qa_hooks.losses.loss import QALoss, needs_target
from qa_hooks.losses.reward_balance import LARGEST, GradientBalance, image_gradients, pull, with_gradient
from qa_hooks.losses.reward_ceiling import Ceiling
from qa_hooks.losses.reward_scorers import COMBINE, check_scorers, combined
from qa_hooks.scorers.scorer import Scorer


class ScoreLoss(QALoss):
    """Any differentiable scorer as a loss: the raw score if lower is better, otherwise minus the score.

    The scorer is frozen and kept aside: it follows `.to(device)`, but is in no optimizer and no checkpoint of yours,
    and `.train()` does not reach it. The range is the scorer's. The first call with a gradient tries the scorer on
    those images and refuses one that cannot teach (`qa_hooks.rewards.check`).

    Called as `loss(pred, target=None, *, real=None, fidelity=None, prompt=None, sample_weight=None)`:
    `real` are real images for `ceiling="real"`, needed until 64 have been seen; `fidelity` is the scalar loss that
    `balance` compares with, computed from this very `pred` (before `sample_weight`). You may always pass both. If
    `ceiling="real"` or `balance` is used, every rank must call the loss.

    Args:
        scorer: a `Scorer` with `differentiable`; one that needs a reference is given the target. Or several.
        weight, reduction: as in `QALoss`. A weight alone knows nothing of the score's units: NIQE pulls at a picture of
            256 x 256 pixels like an L1 loss at 5e-5 (`qa-hooks doctor` says it of any scorer). Where `fidelity` is
            given, the first call warns when the score's gradient is more than twice as large.
        ceiling: a score in the scorer's own direction and numbers (of several scorers, in [0, 1]) beyond which an image
            has no gradient. "real" uses `scorer.real_level` if the scorer has one, otherwise the median score of the
            first 64 real images (from all ranks together). None: no ceiling.
        balance: the reward's gradient as a share of the fidelity term's, both norms measured at `pred` on all ranks and
            averaged over some 100 calls; `weight` still multiplies it. Above 2 it is cut to 2, with a warning.
        views: 1 for the image itself; n for the mean over n random crops, resizes, flips and a little noise. Fewer
            patterns fool this average than a single fixed crop. A view has at least 3/4 of the image's sides.
        combine: "mean" or "min" of several scorers, each mapped to [0, 1] by its `score_range`.
        out_of_range: weight of the penalty on pixels outside the range, on the scale of an L1 loss and not balanced.
            Above 0 the scorer sees clamped images; a pixel outside the range gets a gradient only if it moves the pixel
            back. None means 1 if `ceiling`, `balance` or `views` is set, otherwise 0. With 0, `pred` is not clamped.
        seed: seed of the views; they are drawn from a generator of their own.

    Attributes:
        terms: the loss, as "niqe_bsd100_loss"; "score", the raw score (with several scorers their combination, and also
            "score_{name}" for each); "at_ceiling", the share of images that have reached the ceiling; "ceiling", in the
            direction of "score"; "out_of_range"; "weight", the weight in use.

    Raises:
        TypeError: not a scorer.
        ValueError: a scorer without a usable gradient (it can still be monitored), scorers that cannot be combined.

    Example:
        >>> from qa_hooks.scorers import FunctionScorer
        >>> brightness = lambda x: x.mean((1, 2, 3))
        >>> bright = FunctionScorer(brightness, name="bright", higher_is_better=True, score_range=(0.0, 1.0))
        >>> ScoreLoss(bright)(torch.full((2, 3, 8, 8), 0.25))
        tensor(-0.2500)
        >>> ScoreLoss(bright, ceiling=0.75)(torch.full((2, 3, 8, 8), 0.25))
        tensor(0.5000)
    """

    def __init__(
        self,
        scorer: Scorer | Sequence[Scorer],
        *,
        weight: float = 1.0,
        ceiling: Literal["real"] | float | None = None,
        balance: float | None = None,
        views: int = 1,
        combine: Literal["mean", "min"] = "mean",
        out_of_range: float | None = None,
        seed: int = 0,
        reduction: str = "mean",
    ) -> None:
        scorers = check_scorers(scorer)
        super().__init__(weight=weight, reduction=reduction, value_range=scorers[0].value_range)
        if combine not in COMBINE:
            raise ValueError(f"combine must be one of {COMBINE}, got {combine!r}")
        self.scorers, self.combine = tuple(self.keep(each) for each in scorers), combine
        self._of = " + ".join(scorer.name for scorer in scorers)  # for messages
        self.name = f"{scorers[0].name if len(scorers) == 1 else f'{combine}_score'}_loss"  # "score" is the score
        self.inputs = frozenset().union(*(s.inputs for s in scorers)) - {"reference"} | {"real", "fidelity"}
        self.views, self.random = check_count("views", views), OwnRandom(seed)
        is_reward = ceiling is not None or balance is not None or self.views > 1
        self.out_of_range = check_weight("out_of_range", float(is_reward) if out_of_range is None else out_of_range)
        self._ceiling = None if ceiling is None else Ceiling(ceiling, scorers)
        self._balance = None if balance is None else GradientBalance(balance)
        self._tried = self._compared = False
        self._given = {"ceiling": ceiling, "balance": balance, "views": views if views > 1 else None}
        unbounded = [s.name for s in scorers if s.score_range is None and "reference" not in s.inputs]
        if unbounded and ceiling is None and self.weight:
            warn(
                f"{unbounded[0]} has no best value, and this loss no ceiling: what raises it is paid without end "
                "(ten steps of 1/255 lifted a ranking score from .3 to 23.8, where clean photographs have 2.7); "
                'ceiling="real" (of ScoreLoss, of RewardFinetuner) stops at what real images get'
            )

    @property
    def scorer(self) -> Scorer:
        """The frozen scorer; with several scorers the first."""
        return self.scorers[0]

    @property
    def ceiling(self) -> float | None:
        """The ceiling in use, in the direction of `score`; None without a ceiling, or before it is measured."""
        level = None if self._ceiling is None else self._ceiling.level
        return None if level is None else float(self._as_scored(level))

    def _as_scored(self, goodness: Tensor) -> Tensor:
        """Goodness in the direction in which the score is logged."""
        falling = len(self.scorers) == 1 and not self.scorer.higher_is_better
        return -goodness if falling else goodness

    def extra_repr(self) -> str:
        given = "".join(f", {name}={value!r}" for name, value in self._given.items() if value is not None)
        return f"{self._of}, {super().extra_repr()}{given}"

    def per_image(
        self,
        pred: Tensor,
        target: Tensor | None,
        *,
        real: Tensor | None = None,
        fidelity: Tensor | None = None,
        **inputs: Any,
    ) -> Tensor:
        if any("reference" in scorer.inputs for scorer in self.scorers):
            inputs["reference"] = needs_target(f"ScoreLoss({self._of})", target)
        elif target is not None:
            raise ValueError(f"ScoreLoss({self._of}) takes no target: {self._of} scores images alone")
        log: dict[str, Tensor] = {}
        level = self._level(pred, real, inputs)
        given, pred = pred, pred.to(torch.promote_types(pred.dtype, torch.float32))
        goodness = self._goodness(clamp_inward(pred, self.value_range) if self.out_of_range else pred, inputs, log)
        if pred.requires_grad and torch.is_grad_enabled():
            self._try(pred, goodness, inputs)
            self._compare(goodness, pred, fidelity, given)
        losses = -goodness
        if self._balance is not None:
            if pred.requires_grad and torch.is_grad_enabled():
                gradients = image_gradients(losses, pred)
                self._balance.measure(gradients, fidelity, given)
                losses = with_gradient(losses, pred, gradients)  # the scorer's graph is done with
            log["weight"] = self.weight * self._balance.weight(pred.device)
        if level is not None:
            losses = (level + losses).clamp_min(0)
            log |= {"at_ceiling": (goodness.detach() >= level).float().mean(), "ceiling": self._as_scored(level)}
        log[self.name] = losses.detach().mean()
        if self._balance is not None:
            losses = self._balance.weight(pred.device) * losses
        if self.out_of_range:
            outside = ((to_unit(pred.float(), self.value_range) - 0.5).abs() - 0.5).relu().mean((1, 2, 3))
            log["out_of_range"] = outside.detach().mean()
            losses = losses + self.out_of_range * outside
        self._log = log
        return losses

    def run_state(self) -> dict[str, Any]:
        """What a resumed run needs to go on bit for bit, as plain numbers and tensors; `Hooks(track=...)` saves it."""
        state: dict[str, Any] = {"draws": self.random.draws}
        if self._ceiling is not None:
            state["real"] = self._ceiling.seen.clone()
        if self._balance is not None:
            state["norms"] = self._balance.norms.cpu().clone()
        return state

    def load_run_state(self, state: dict[str, Any]) -> None:
        """The inverse of `run_state`; `ValueError` if the state belongs to another loss."""
        try:
            draws = int(state["draws"])
            real = None if self._ceiling is None else torch.as_tensor(state["real"], device="cpu", dtype=torch.float32)
            norms = (
                None if self._balance is None else torch.as_tensor(state["norms"], device="cpu", dtype=torch.float64)
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"this is not the state of such a {type(self).__name__}: {error!r}") from error
        self.random.draws = draws
        if self._ceiling is not None and real is not None:
            self._ceiling.seen = real
        if self._balance is not None and norms is not None:
            self._balance.norms = norms

    def _level(self, pred: Tensor, real: Tensor | None, inputs: dict[str, Any]) -> Tensor | None:
        if self._ceiling is None:
            return None
        if self._ceiling.open and real is not None:
            RangeGuard(self.value_range)(data={"real": check_images("real", real)})
            self._ceiling.measure(lambda: self._goodness(real, inputs, {}))
        if self._ceiling.level is None:
            raise ValueError(
                f'ceiling="real" of ScoreLoss({self._of}) needs real images, at least in the first calls: loss(pred, '
                "real=real_crops, ...), or of a RewardFinetuner tuner.step(..., real=real_images)"
            )
        return self._ceiling.level.to(pred.device)

    def _goodness(self, images: Tensor, inputs: dict[str, Any], log: dict[str, Tensor]) -> Tensor:
        """`(N,)`, the mean over the views, then combined; raw scores go into `log`."""
        each = torch.stack(
            [
                torch.stack([s.goodness(x, **_own(s, given)) for s in self.scorers])
                for x, given in self._seen(images, inputs)
            ]
        ).mean(0)
        raw = [g if s.higher_is_better else -g for s, g in zip(self.scorers, each.detach(), strict=True)]
        if len(self.scorers) == 1:
            log["score"] = raw[0].mean()
            return each[0]
        log |= {f"score_{s.name}": values.mean() for s, values in zip(self.scorers, raw, strict=True)}
        goodness = combined(self.scorers, each, self.combine)
        log["score"] = goodness.detach().mean()
        return goodness

    def _seen(self, images: Tensor, inputs: dict[str, Any]) -> list[tuple[Tensor, dict[str, Any]]]:
        """The views that the scorers see, with the inputs that belong to each."""
        if self.views == 1:
            return [(images, inputs)]
        low, high = self.value_range
        seen = []
        for _ in range(self.views):
            view = random_view(images.shape, self.random.generator(), noise=0.01 * (high - low))
            own = {k: view(v, noise=False) if k == "reference" else v for k, v in inputs.items()}
            seen.append((view(images), own))
        return seen

    def _try(self, pred: Tensor, goodness: Tensor, inputs: dict[str, Any]) -> None:
        """Check once that the scorer gives a usable gradient. Noise is added because flat images may have none."""
        if self._tried or torch.compiler.is_compiling() or is_transformed(pred):
            return
        if not goodness.requires_grad:
            raise ValueError(f"no gradient comes back from {self._of}; is its function under no_grad or detached?")
        from qa_hooks.rewards.check import check_reward

        low, high = self.value_range
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(pred.shape, generator=generator, dtype=torch.float32, device="cpu").to(pred.device)
        images = (pred.detach().float() + 0.02 * (high - low) * noise).clamp(low, high)
        for scorer in self.scorers:
            check_reward(scorer, images, **_own(scorer, inputs))
        self._tried = True

    def _compare(self, goodness: Tensor, pred: Tensor, fidelity: Tensor | None, given: Tensor) -> None:
        """Say once that the score's gradient overwhelms the fidelity term's, where nothing balances the two."""
        if self._compared or self._balance is not None or not self._tried or not isinstance(fidelity, Tensor):
            return
        self._compared = True
        share = self.weight * pull(goodness, fidelity, pred, given)
        if share > LARGEST:
            warn(
                f"ScoreLoss({self._of}, weight={self.weight:g}): its gradient is {share:.3g} times the fidelity "
                "term's, so the images will follow the score and little else; balance=0.5 keeps it at half the term's"
            )


def _own(scorer: Scorer, inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in inputs.items() if name in scorer.inputs}

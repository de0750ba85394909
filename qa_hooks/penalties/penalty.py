"""What every critic penalty is: a weighted term of the critic's loss; and what the terms of one critic step share."""

from __future__ import annotations

import weakref
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from qa_hooks._base.checks import check_call, check_count, check_weight, warn
from qa_hooks._base.random import OwnRandom
from qa_hooks._base.terms import publish
from qa_hooks.functional.input_gradients import Critic, OutputFn, critic_scores, input_gradient, points_at
from qa_hooks.images import Range, RangeGuard, check_images, check_pair, check_range


class CriticPass:
    """What the penalties of one critic step share. Each part is made when it is first asked for, and only once.

    Real, fake and interpolated images are never concatenated: that would break conditional critics and minibatch
    statistics.

    Attributes:
        critic, real, fake: as the user gave them; the images detached.
        log: values that a penalty wants to show besides its own.
    """

    def __init__(
        self,
        critic: Critic,
        real: Tensor,
        fake: Tensor,
        *,
        random: OwnRandom,
        real_scores: Tensor | None = None,
        fake_scores: Tensor | None = None,
        output_fn: OutputFn | None = None,
    ) -> None:
        self.critic, self.output_fn, self.random = critic, output_fn, random
        self.real, self.fake = real.detach(), fake.detach().to(real.dtype)  # fakes come out of autocast in bfloat16
        self.log: dict[str, Tensor] = {}
        self._given = {"real_scores": real_scores, "fake_scores": fake_scores}
        self._gradients: dict[str, Tensor] = {}

    @cached_property
    def real_scores(self) -> Tensor:
        """D(real), `(N,)` float32; the user's own when supplied."""
        return self._scores("real_scores", self.real)

    @cached_property
    def fake_scores(self) -> Tensor:
        """D(fake), `(N,)` float32; the user's own when supplied."""
        return self._scores("fake_scores", self.fake)

    def gradient(self, at: str = "interpolated") -> Tensor:
        """The critic's gradient at "interpolated", "real" or "fake" images, `(N, C, H, W)`, with its graph."""
        if at not in self._gradients:
            generator = self.random.generator() if at == "interpolated" else None
            points = points_at(self.real, self.fake, at, generator)
            self._gradients[at] = input_gradient(self.critic, points, output_fn=self.output_fn)
        return self._gradients[at]

    def zero(self) -> Tensor:
        """No penalty: a scalar without a graph."""
        return _zero(self.real)

    def _scores(self, name: str, images: Tensor) -> Tensor:
        given = self._given[name]
        if isinstance(given, (int, float)):
            raise TypeError(f"{name} must be a tensor with one score per image, got {given!r}")
        if given is None:
            return critic_scores(self.critic(images), images.shape[0], self.output_fn).float()
        # A supplied tensor is taken as it is; output_fn is for what the critic returns.
        output_fn = None if isinstance(given, Tensor) else self.output_fn
        scores = critic_scores(given, images.shape[0], output_fn, name=name)
        if torch.is_grad_enabled() and not scores.requires_grad:
            raise ValueError(
                f"{name} carries no gradient (detached, or made under no_grad), so the critic would learn nothing"
            )
        return scores.float()


class Term:
    """An unweighted number about one critic step; a penalty weighs it, and QAGANPenalty adds up several.

    Attributes:
        name: under which its value is logged.
    """

    name = "term"

    def term(self, shared: CriticPass) -> Tensor | None:
        """What a subclass writes: a scalar with a gradient to the critic's parameters, or None when it waits."""
        raise NotImplementedError

    def run_state(self) -> dict[str, Any]:
        """What a resumed run needs to go on bit for bit, as plain numbers and tensors."""
        return {}

    def load_run_state(self, state: dict[str, Any]) -> None:
        """The inverse of `run_state`; `ValueError` if the state belongs to something else."""


class CriticPenalty(Term, nn.Module):
    """One weighted term for a critic's loss.

    A subclass writes `term(shared) -> scalar`. With weight 0 the result is a zero without a graph: shapes are still
    checked, but nothing is drawn, the critic is not called, and no term is logged. Under DDP, back-propagate the
    penalty together with the adversarial term: alone it gives some parameters (the last bias) no gradient, and DDP then
    waits for them and reduces nothing.

    Args:
        value_range: what the numbers of real and fake images mean; required, because GAN loops differ.
        weight: multiplies the term.
        interval: apply it every that many calls, times `interval` (lazy regularisation); zero otherwise.
        output_fn: picks the scores from a critic's tuple or dict.
        seed: of the interpolation; drawn from our own generator, never from the global state.

    Attributes:
        terms: the last terms, detached and unweighted.
    """

    name = "penalty"

    def __init__(
        self,
        *,
        value_range: Range,
        weight: float,
        interval: int = 1,
        output_fn: OutputFn | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.value_range = check_range(value_range)
        self.weight = check_weight("weight", weight)
        if output_fn is not None:
            check_call("output_fn", output_fn, "output_fn(what the critic returns)", None)
        self.interval, self.output_fn = check_count("interval", interval), output_fn
        self.terms: dict[str, Tensor] = {}
        self.calls = 0
        self.random = OwnRandom(seed)
        self._guard = RangeGuard(self.value_range)

    def forward(
        self,
        critic: Critic,
        real: Tensor,
        fake: Tensor,
        *,
        real_scores: Tensor | None = None,
        fake_scores: Tensor | None = None,
    ) -> Tensor:
        """The weighted penalty, a scalar to add to the critic's loss.

        Args:
            critic: any callable `(N, C, H, W) -> (N,)`, (N, 1) or maps; for example `lambda x: D(augment(x), labels)`.
            real, fake: `(N, C, H, W)` of one shape, in `value_range`; gradients do not reach them.
            real_scores, fake_scores: D(real), D(fake) of this step with their graph, where the loop has them already;
                saves a pass each.

        Raises:
            TypeError, ValueError: images, ranges or critic outputs that cannot be used; the message says what arrived.
        """
        check_images("real", real)
        check_images("fake", fake)
        check_pair("real", real, "fake", fake)
        if self.is_off():
            return _zero(real)
        if torch.is_grad_enabled() and (real.is_inference() or fake.is_inference()):
            raise ValueError(
                "real and fake must not be made under torch.inference_mode, whose tensors take part in no graph: make "
                "them under torch.no_grad, or give real.clone() and fake.clone()"
            )
        first, self.calls = self.calls, self.calls + 1
        if first == 0:
            check_critic(critic)
        _notice_new_objects(self, critic)
        if first % self.interval:
            return _zero(real)
        self._guard(data={"real": real}, predictions={"fake": fake})
        shared = CriticPass(
            critic,
            real,
            fake,
            random=self.random,
            real_scores=real_scores,
            fake_scores=fake_scores,
            output_fn=self.output_fn,
        )
        total = self.total(shared)
        if first < RangeGuard.CALLS:
            for name, value in self.terms.items():
                if not bool(torch.isfinite(value).all()):
                    raise ValueError(f"the term {name!r} of {type(self).__name__} is {float(value)}")
        return total if self.interval == 1 else self.interval * total

    def is_off(self) -> bool:
        """True when every weight is 0."""
        return self.weight == 0

    def total(self, shared: CriticPass) -> Tensor:
        """The weighted sum of the terms; fills `terms`."""
        value = self.term(shared)
        publish(self, shared.log if value is None else {self.name: value.detach(), **shared.log})
        return shared.zero() if value is None else self.weight * value

    def run_state(self) -> dict[str, Any]:
        """What a resumed run needs to go on bit for bit, as plain numbers and tensors; `Hooks(track=...)` saves it.

        It is not in `state_dict()`, which stays empty: a penalty held by a model leaves the model's checkpoint alone.
        """
        return {**super().run_state(), "calls": self.calls, "draws": self.random.draws}

    def load_run_state(self, state: dict[str, Any]) -> None:
        """The inverse of `run_state`; `ValueError` if the state belongs to another penalty."""
        super().load_run_state(state)
        try:
            self.calls, self.random.draws = int(state["calls"]), int(state["draws"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"this is not the state of a {type(self).__name__}: {error!r}") from error

    def extra_repr(self) -> str:
        return f"weight={self.weight:g}, value_range={self.value_range}, interval={self.interval}"


NEW_OBJECTS = 4
# By class and seed, of penalties that were called once: the last one, its critic, and how many came in a row.
_ONCE: dict[tuple[type, int], tuple[weakref.ref[CriticPenalty], weakref.ref[nn.Module], int]] = {}


def _notice_new_objects(penalty: CriticPenalty, critic: Critic) -> None:
    """Warn of a loop that makes the penalty anew in each step: for one critic, each is called once and gone."""
    from qa_hooks._base.reach import modules_of

    kind, name = (type(penalty), penalty.random.seed), type(penalty).__name__
    last, its_critic, row = _ONCE.pop(kind, (None, None, 0))
    network = next(iter(modules_of(critic)), None) if penalty.calls == 1 else None
    if network is None:
        return
    again = last is not None and last() is None and its_critic is not None and its_critic() is network
    row = row + 1 if again else 1
    if row == NEW_OBJECTS:
        warn(
            f"{name} has been made anew for each of {NEW_OBJECTS} calls: its random points, interval and warm-up begin "
            f"again each time, so every step draws the same. Make it once before the loop: penalty = {name}(...)"
        )
    _ONCE[kind] = weakref.ref(penalty), weakref.ref(network), row


def _zero(images: Tensor) -> Tensor:
    return images.new_zeros((), dtype=torch.float32)


def check_critic(critic: Critic) -> None:
    """Refuse what cannot work, warn about what breaks the meaning of a per-sample gradient."""
    from qa_hooks._base.reach import modules_of
    from qa_hooks._base.sharding import sharded_kind

    check_call("critic", critic, "critic(images)", None)
    networks = modules_of(critic)
    for network in networks:
        if kind := sharded_kind(network, engines=True):
            raise ValueError(
                f"a critic sharded by {kind} has no double backward; use DDP or a single device for the critic"
            )
    parts = [part for network in networks for part in network.modules()]
    if any(isinstance(part, nn.modules.batchnorm._BatchNorm) and part.training for part in parts):
        warn(
            "the critic has BatchNorm, which mixes the samples of a batch: its gradient at one image is then not that "
            "image's own; use LayerNorm, GroupNorm or InstanceNorm",
        )

"""StyleGAN2-ADA and StyleGAN3 (NVlabs): their loss with a quality penalty for the discriminator, chosen by name.

In `train.py`, or in the options that it prints, one line changes:

    c.loss_kwargs = dnnlib.EasyDict(class_name="qa_hooks.integrations.stylegan.QALoss", qa_quality="ssim")

This is written against the public interface of `training.loss.StyleGAN2Loss` alone, which must be importable (run
inside their repository); the class is made when it is first used.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from qa_hooks._base.checks import check_count
from qa_hooks.penalties import QAGANPenalty

VALUE_RANGE = (-1.0, 1.0)  # of real and generated images there


def QALoss(*args: Any, **options: Any) -> Any:
    """A `training.loss.StyleGAN2Loss` that adds a QAGAN penalty to the discriminator's loss.

    The penalty makes passes of its own in the phases "Dmain" and "Dboth", scaled by the phase's gain like the loss, and
    is accumulated before their own backward passes, so that both their ways of reducing over GPUs take it along. R1
    regularisation and path lengths stay theirs. The discriminator sees what it always sees (augmentation and blur
    included), conditional ones their own labels. A penalty of weight 0 leaves the run bit for bit as it is. Nothing of
    it is saved, as their resume takes up networks alone: a NIQE model is gathered anew.

    Args:
        args, options: of `StyleGAN2Loss`, and these, which can be written as JSON:
        qa_quality: "ssim" or "niqe"; NIQE needs `qa_warmup`.
        qa_weight: of the penalty; 0.1 in QAGAN's code.
        qa_interval: apply it every that many calls, times as strongly.
        qa_warmup: applications before the NIQE term acts, the last of which gather its model, see `NIQEPenalty`.

    Returns:
        The loss; its penalty is `loss.qa_penalty`. Terms go to their `training_stats` as `Loss/QA/{term}`.

    Raises:
        ImportError: `training.loss` cannot be imported.
        ValueError: a quality term that does not exist.
    """
    return _loss_class()(*args, **options)


def add_penalty(base: type[Any]) -> type[Any]:
    """The subclass of a `StyleGAN2Loss` that `QALoss` makes; for forks whose loss has another name or place."""

    class QAStyleGAN2Loss(base):  # type: ignore[misc]  # a class of their repository
        """See `QALoss`."""

        def __init__(
            self,
            *args: Any,
            qa_quality: str = "ssim",
            qa_weight: float = 0.1,
            qa_interval: int = 1,
            qa_warmup: int = 0,
            **options: Any,
        ) -> None:
            super().__init__(*args, **options)
            self.qa_penalty = QAGANPenalty(
                qa_quality,
                value_range=VALUE_RANGE,
                gp_weight=0.0,
                drift_weight=0.0,
                quality_weight=qa_weight,
                warmup=qa_warmup,
            )
            self._qa_interval, self._qa_calls = check_count("qa_interval", qa_interval), 0
            # StyleGAN2-ADA's methods say whether DDP shall reduce; StyleGAN3 reduces in its loop.
            parts = {"g": self.run_G, "d": self.run_D}
            self._qa_sync = {
                key: {"sync": False} if "sync" in inspect.signature(run).parameters else {}
                for key, run in parts.items()
            }

        def accumulate_gradients(
            self, phase: str, real_img: Tensor, real_c: Tensor, gen_z: Tensor, gen_c: Tensor, **rest: Any
        ) -> None:
            if phase in ("Dmain", "Dboth") and not self.qa_penalty.is_off():
                self._qa_accumulate(real_img, real_c, gen_z, gen_c, **rest)
            super().accumulate_gradients(phase, real_img, real_c, gen_z, gen_c, **rest)

        def _qa_accumulate(
            self, real: Tensor, real_c: Tensor, gen_z: Tensor, gen_c: Tensor, *, gain: float, **rest: Any
        ) -> None:
            self._qa_calls += 1
            if (self._qa_calls - 1) % self._qa_interval:
                return
            with torch.no_grad():
                fake = self.run_G(gen_z, gen_c, **self._qa_sync["g"])[0]
            options = {**self._qa_sync["d"], **_blur(self, rest.get("cur_nimg"))}
            critic = functools.partial(self.run_D, c=real_c, **options)
            # Fakes have labels of their own, and only the scores of real ones and fakes enter the SSIM term.
            needs_scores = "ssim" in self.qa_penalty.parts
            scores = (
                {"real_scores": critic(real), "fake_scores": self.run_D(fake, gen_c, **options)} if needs_scores else {}
            )
            value = self.qa_penalty(critic, real, fake, **scores)
            if value.requires_grad:
                value.mul(gain * self._qa_interval).backward()
            _report(self.qa_penalty.terms)

    return QAStyleGAN2Loss


@functools.cache
def _loss_class() -> type[Any]:
    try:
        base = importlib.import_module("training.loss").StyleGAN2Loss
    except ImportError as error:
        raise ImportError(
            "QALoss extends StyleGAN's own training.loss, which was not found: run inside a clone of NVlabs/stylegan3 "
            "or stylegan2-ada-pytorch"
        ) from error
    return add_penalty(base)


def _blur(loss: Any, images_seen: float | None) -> dict[str, float]:
    """StyleGAN3 blurs what the discriminator sees at the start of a run, less and less; `run_D` takes the width."""
    fade = 1000.0 * getattr(loss, "blur_fade_kimg", 0)
    if "blur_sigma" not in inspect.signature(loss.run_D).parameters or not fade or images_seen is None:
        return {}
    return {"blur_sigma": max(1.0 - images_seen / fade, 0.0) * loss.blur_init_sigma}


def _report(terms: dict[str, Tensor]) -> None:
    report: Callable[[str, Tensor], Any] | None
    try:
        report = importlib.import_module("torch_utils.training_stats").report
    except ImportError:
        return
    for name, value in terms.items():
        report(f"Loss/QA/{name}", value)

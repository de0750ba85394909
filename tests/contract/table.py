"""The table behind the contract tests: one row or more for every public callable that takes tensors.

A key is the package's name and the export's name, with a word for the variant: `functional.ssim second order`. The test
`test_exports` fails when an export has neither a row here nor a reason in `NO_TENSORS`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from contract.row import Inputs, Row, pair, pictures, rows, seeded, single, spread, square
from qa_hooks import functional, losses, penalties, scorers
from qa_hooks.scorers.afine.checkpoint import random_checkpoint

# Functions


@cache
def natural_model() -> tuple[Tensor, Tensor]:
    features = functional.niqe_features(torch.rand(60, 1, 24, 24, generator=seeded(5))).flatten(0, 1).double()
    return features.mean(0).float(), (features.T.cov() + 1e-3 * torch.eye(36)).float()


def weighed_critic(images: Tensor, weight: Tensor) -> Tensor:
    """A critic whose weights are an argument, so that the table can differentiate a penalty by them."""
    return torch.tanh(nn.functional.conv2d(images, weight, stride=2)).flatten(1).square().sum(1)


def critic_inputs(n: int) -> Inputs:
    return (*square(pictures(n, 2)), 0.3 * torch.randn(4, 3, 3, 3, generator=seeded(7)))


FUNCTIONS: dict[str, Row] = {
    "ssim": Row(functional.ssim, pair(), 2, (0, 1)),
    "ssim of large images": Row(functional.ssim, pair(height=80, width=70), 2, (0, 1)),
    "ssim of grey images": Row(functional.ssim, pair(channels=1), 2, (0,)),
    "ssim second order": Row(lambda x, y: functional.ssim(x, y, second_order=True), pair(), 2, (0, 1)),
    "ms_ssim": Row(functional.ms_ssim, pair(height=44, width=47), 2, (0, 1)),
    "ms_ssim second order": Row(lambda x, y: functional.ms_ssim(x, y, second_order=True), pair(), 2, (0, 1)),
    "ssim_distance": Row(functional.ssim_distance, pair(), 2, (0, 1)),
    "ssim_distance official": Row(lambda x, y: functional.ssim_distance(x, y, variant="official"), pair(), 2, (0, 1)),
    "niqe_features": Row(lambda x: functional.niqe_features(x, max_slope=100.0), single(channels=1), 1, (0,)),
    "niqe_features of blocks": Row(
        lambda x: functional.niqe_features(255 * x, functional.FeatureConfig.niqe(32)),
        single(channels=1, height=68, width=100),
        1,
        (0,),
    ),
    "aggd": Row(lambda values: functional.aggd(values, max_slope=100.0), rows((0, 5, 60)), 0, (0,)),
    "naturalness_distance": Row(
        lambda f, *model: functional.naturalness_distance(f, *model),
        lambda n: (functional.niqe_features(pictures(12 * n, 1, 1)[0]).detach(), *natural_model()),
        gradient=(0,),
    ),
    "naturalness_distance of samples": Row(
        lambda f, *model: functional.naturalness_distance(f, *model, variant="sample"),
        lambda n: (functional.niqe_features(pictures(n, 1, 1)[0]).detach(), *natural_model()),
        gradient=(0,),
    ),
    "gradient_penalty": Row(
        lambda real, fake, w: functional.gradient_penalty(
            lambda x: weighed_critic(x, w), real, fake, generator=seeded(0), return_grad=True
        ),
        critic_inputs,
        2,
        (2,),
    ),
    "gradient_penalty R1": Row(
        lambda real, fake, w: functional.gradient_penalty(
            lambda x: weighed_critic(x, w), real, fake, at="real", target=0.0
        ),
        critic_inputs,
        2,
        (2,),
    ),
    "frechet_distance": Row(
        functional.frechet_distance,
        lambda n: (torch.zeros(6), spread(6, n), torch.arange(6.0), spread(6, n + 1)),
        gradient=(0, 1, 2, 3),
    ),
    "inception_score": Row(lambda x: functional.inception_score(x, splits=1), rows((0, 10)), gradient=(0,)),
    "kernel_distance": Row(functional.kernel_distance, rows((40, 6), (50, 6))),
    "kernel_distance over subsets": Row(
        lambda x, y: functional.kernel_distance(x, y, subsets=3, subset_size=20), rows((40, 6), (50, 6))
    ),
    "precision_recall": Row(functional.precision_recall, rows((40, 6), (50, 6))),
    "nearest_neighbours": Row(
        lambda q, b: functional.nearest_neighbours(q, b, 3), rows((0, 6), (50, 6)), gradient=(0,)
    ),
    "nearest_neighbours l1": Row(
        lambda q, b: functional.nearest_neighbours(q, b, 3, metric="l1"), rows((0, 6), (50, 6)), gradient=(0,)
    ),
    "mixture_log_density": Row(
        functional.mixture_log_density,
        lambda n: (
            *rows((0, 4))(n),
            torch.tensor([0.3, 0.7]).log(),
            *rows((2, 4))(n),
            torch.stack([torch.linalg.cholesky(spread(4, k)) for k in range(2)]),
        ),
        gradient=(0, 1, 2, 3),
    ),
    "mixture_log_density diagonal": Row(
        functional.mixture_log_density,
        lambda n: (*rows((0, 4))(n), torch.tensor([0.3, 0.7]).log(), *rows((2, 4))(n), 0.5 + torch.rand(2, 4)),
        gradient=(0, 1, 2, 3),
    ),
    "pairwise_accuracy": Row(
        lambda a, b, y: functional.pairwise_accuracy(a, b, y.sign()), rows((0,), (0,), (0,)), batches=(1, 9)
    ),
    "bootstrap_interval": Row(lambda x: functional.bootstrap_interval(x, draws=50), rows((0,)), batches=(2, 9)),
    "paired_difference": Row(
        lambda a, b: functional.paired_difference(a, b, draws=50)[:3], rows((0,), (0,)), batches=(2, 9)
    ),
    "group_jackknife": Row(
        lambda x: functional.group_jackknife(lambda chosen: x[chosen].mean(), len(x), groups=2),
        rows((0,)),
        batches=(2, 9),
    ),
    "group_advantages": Row(
        lambda s: functional.group_advantages(s, [k % 2 for k in range(len(s))]), rows((0,)), batches=(1, 9)
    ),
    "preference_pairs": Row(
        lambda s: functional.preference_pairs(s, [k % 2 for k in range(len(s))]), rows((0,)), batches=(1, 9)
    ),
    "dpo_loss": Row(
        lambda *parts: functional.dpo_loss(*parts, beta=2.0), rows((0,), (0,), (0,), (0,)), gradient=(0, 1)
    ),
    "advantage_weighted_loss": Row(functional.advantage_weighted_loss, rows((0, 3, 5, 5), (0,)), gradient=(0,)),
    "weighted_loss": Row(lambda x, w: functional.weighted_loss(x, w.abs()), rows((0, 3, 5, 5), (0,)), gradient=(0,)),
}

# Losses


class OwnLoss(losses.QALoss):
    name = "own"

    def per_image(self, pred: Tensor, target: Tensor | None, **inputs: Any) -> Tensor:
        return (pred - target).abs().flatten(1).mean(1)


def brightness(**options: Any) -> scorers.Scorer:
    """A reward with a slope everywhere: bright images are good."""
    return scorers.FunctionScorer(
        lambda x: (x + 0.1 * x.square()).mean((1, 2, 3)),
        name="brightness",
        higher_is_better=True,
        score_range=(0.0, 1.1),
    )


def balanced(pred: Tensor, target: Tensor) -> Tensor:
    loss = losses.ScoreLoss(brightness(), balance=0.5, ceiling=0.9)
    return loss(pred, real=target, fidelity=(pred - target).abs().mean())


def negative(pred: Tensor, target: Tensor, original: Tensor, votes: Tensor) -> Tensor:
    worse = (original * 0.5).flip(-1)
    return losses.HGGTNegativeLoss()(pred, target, original=original, negative=worse, negative_votes=votes.abs())


def with_weights(n: int) -> Inputs:
    return (*pictures(n, 2), 0.5 + torch.rand(n, generator=seeded(n)))


@cache
def afine() -> scorers.AFINE:
    return scorers.AFINE(random_checkpoint())


def loss_row(make: Callable[[], losses.QALoss]) -> Row:
    """Images, target and weights of the samples."""
    return Row(lambda x, y, w: make()(x, y, sample_weight=w), with_weights, 2, (0,))


LOSSES: dict[str, Row] = {
    "QALoss": loss_row(OwnLoss),
    "AFINELoss": loss_row(lambda: losses.AFINELoss(afine())),
    "SSIMLoss": loss_row(losses.SSIMLoss),
    "SSIMLoss second order": loss_row(lambda: losses.SSIMLoss(second_order=True)),
    "MSSSIMLoss": loss_row(losses.MSSSIMLoss),
    "SSIMDistanceLoss": loss_row(losses.SSIMDistanceLoss),
    "ScoreLoss": loss_row(lambda: losses.ScoreLoss(scorers.PSNR())),
    "ScoreLoss balanced": Row(balanced, pair(), 2, (0,)),
    "ScoreLoss views": Row(lambda x: losses.ScoreLoss(brightness(), views=2)(x), single(), 1, (0,)),
    "ScoreLoss of several": Row(
        lambda x, y: losses.ScoreLoss([brightness(), scorers.SSIM()], combine="min")(x, y), pair(), 2, (0,)
    ),
    "HGGTNegativeLoss": Row(
        negative, lambda n: (*pictures(n, 3), torch.randint(4, (n,), generator=seeded(n)).float()), 3, (0,)
    ),
}

# Penalties


@cache
def fixed_critic() -> nn.Module:
    critic = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 121, 1))
    for k, weight in enumerate(critic.parameters()):
        weight.data.copy_(0.2 * torch.randn(weight.shape, generator=seeded(k)))
    return critic


@cache
def gradient_model() -> scorers.NaturalnessModel:
    images = torch.rand(400, 3, 24, 24, generator=seeded(3))
    return penalties.fit_gradient_model(fixed_critic(), [images], progress=False)


class OwnPenalty(penalties.CriticPenalty):
    name = "own"

    def term(self, shared: penalties.CriticPass) -> Tensor:
        return shared.gradient("fake").square().mean() + shared.fake_scores.square().mean()


def penalty_row(make: Callable[[], penalties.CriticPenalty]) -> Row:
    return Row(lambda real, fake, w: make()(lambda x: weighed_critic(x, w), real, fake), critic_inputs, 2, (2,))


UNIT = {"value_range": (0.0, 1.0)}
PENALTIES: dict[str, Row] = {
    "CriticPenalty": penalty_row(lambda: OwnPenalty(weight=1.0, **UNIT)),
    "GradientPenalty": penalty_row(lambda: penalties.GradientPenalty(**UNIT)),
    "GradientPenalty R2": penalty_row(lambda: penalties.GradientPenalty(at="fake", target=0.0, **UNIT)),
    "SSIMPenalty": penalty_row(lambda: penalties.SSIMPenalty(**UNIT)),
    "NIQEPenalty": penalty_row(lambda: penalties.NIQEPenalty(model=gradient_model(), hinge=False, **UNIT)),
    "DriftPenalty": penalty_row(lambda: penalties.DriftPenalty(**UNIT)),
    "QAGANPenalty": penalty_row(lambda: penalties.QAGANPenalty("both", model=gradient_model(), hinge=False, **UNIT)),
    "fit_gradient_model": Row(
        lambda x: penalties.fit_gradient_model(fixed_critic(), [x], progress=False).mean,
        lambda n: (torch.rand(400, 3, 24, 24, generator=seeded(3)),),
        1,
        batches=(1,),
    ),
}

"""Losses and penalties of weight 0, and what they keep between calls."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from contract.row import pictures
from contract.table import LOSSES, PENALTIES, afine, brightness, critic_inputs, gradient_model
from qa_hooks import losses, penalties, scorers

pytestmark = pytest.mark.filterwarnings("ignore")

MADE_LOSSES = {
    "AFINELoss": lambda **options: losses.AFINELoss(afine(), **options),
    "SSIMLoss": losses.SSIMLoss,
    "MSSSIMLoss": losses.MSSSIMLoss,
    "SSIMDistanceLoss": losses.SSIMDistanceLoss,
    "ScoreLoss": lambda **options: losses.ScoreLoss(scorers.PSNR(), **options),
    "HGGTNegativeLoss": losses.HGGTNegativeLoss,
}
MADE_PENALTIES = {
    "GradientPenalty": penalties.GradientPenalty,
    "SSIMPenalty": penalties.SSIMPenalty,
    "NIQEPenalty": lambda **options: penalties.NIQEPenalty(model=gradient_model(), **options),
    "DriftPenalty": penalties.DriftPenalty,
    "QAGANPenalty": lambda **options: penalties.QAGANPenalty("both", model=gradient_model(), **options),
}


def test_the_tables_leave_nothing_out():
    assert set(MADE_LOSSES) == {name.split()[0] for name in LOSSES} - {"QALoss"}
    assert set(MADE_PENALTIES) == {name.split()[0] for name in PENALTIES} - {"CriticPenalty", "fit_gradient_model"}


@pytest.mark.parametrize("name", MADE_LOSSES)
def test_losses_with_weight_zero_have_no_graph_and_no_state(name):
    loss = MADE_LOSSES[name](weight=0)
    x, y = pictures(2)
    assert not loss(x.requires_grad_(), y).requires_grad
    assert loss.is_off()
    assert loss.terms == {}  # a weight that is set later must not be the first to say that shapes are wrong
    with pytest.raises(ValueError, match="must have the same shape"):
        loss(x, y[:, :, :-4])
    assert loss.state_dict() == {}
    assert not list(loss.parameters())


@pytest.mark.parametrize("name", MADE_PENALTIES)
def test_penalties_need_a_range_and_keep_their_state(name):
    with pytest.raises(TypeError, match="value_range"):
        MADE_PENALTIES[name]()
    penalty, other = (MADE_PENALTIES[name](value_range=(0, 1)) for _ in range(2))
    critic = nn.Sequential(nn.Flatten(), nn.Linear(3 * 24 * 24, 1))
    images = critic_inputs(3)[:2]
    penalty(critic, *images)
    assert penalty.terms
    assert all(not term.requires_grad for term in penalty.terms.values())
    other.load_run_state(penalty.run_state())
    assert penalty.state_dict() == {}
    assert torch.equal(penalty(critic, *images), other(critic, *images))
    assert not list(penalty.parameters())


@pytest.mark.parametrize("make", [brightness, scorers.NIQE, scorers.SSIM])
def test_scorers_put_nothing_into_a_checkpoint(make):
    scorer = make()
    assert not list(scorer.parameters())
    assert not scorer.state_dict()

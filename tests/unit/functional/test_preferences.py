"""Advantages, preference pairs and the losses on them, against loops in NumPy and the published rules."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from qa_hooks.functional.preferences import (
    advantage_weighted_loss,
    dpo_loss,
    group_advantages,
    preference_pairs,
    weighted_loss,
)


def rows(n: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(n, generator=torch.Generator().manual_seed(seed))


def groups_of(n: int) -> list[str]:
    return [("cat", "dog", "bird", "fish")[int(i)] for i in torch.randint(4, (n,), generator=torch.manual_seed(1))]


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_advantages_are_standardised_inside_each_group(offset):
    scores, groups = rows(40) + offset, groups_of(40)
    advantages = group_advantages(scores, groups).numpy()
    for group in set(groups):
        own = [i for i, name in enumerate(groups) if name == group]
        values = scores.double().numpy()[own]
        np.testing.assert_allclose(advantages[own], (values - values.mean()) / values.std(), rtol=1e-4, atol=1e-5)
    assert advantages.dtype == np.float32


def test_groups_are_keys_of_any_kind_and_in_any_order():
    scores = rows(6)
    by_number = group_advantages(scores, torch.tensor([5, -1, 5, 7, -1, 7]))
    assert torch.equal(by_number, group_advantages(scores, ["a", "b", "a", "c", "b", "c"]))
    assert torch.equal(by_number, group_advantages(scores, [(1,), None, (1,), 2, None, 2]))
    order = torch.tensor([3, 0, 5, 1, 2, 4])
    shuffled = group_advantages(scores[order], torch.tensor([5, -1, 5, 7, -1, 7])[order])
    assert torch.equal(shuffled, by_number[order])


def test_groups_without_a_spread_have_no_advantage():
    scores = torch.tensor([3.0, 7.7, 7.7, 7.7, -1e6])
    assert torch.equal(group_advantages(scores, [0, 1, 1, 1, 2]), torch.zeros(5))
    assert group_advantages(torch.tensor([0.5, 0.5 + 1e-7]), [0, 0]).abs().max() < 0.1, "rounding is no advantage"


def test_advantages_carry_no_gradient():
    scores = rows(4).requires_grad_()
    assert not group_advantages(scores, [0, 0, 1, 1]).requires_grad


@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_pairs_are_those_of_a_double_loop(margin):
    scores = (4 * rows(30)).round() / 4  # ties
    groups = groups_of(30)
    expected = [
        [w, loser]
        for w in range(30)
        for loser in range(30)
        if groups[w] == groups[loser] and scores[w] - scores[loser] > margin
    ]
    assert preference_pairs(scores, groups, margin).tolist() == expected
    assert len(expected) > 20


def test_no_pair_is_an_empty_tensor():
    pairs = preference_pairs(torch.ones(3), [0, 0, 0])
    assert pairs.shape == (0, 2)
    assert pairs.dtype == torch.int64


def test_dpo_is_the_papers_formula():
    """Naively in float64: -log sigmoid(-beta ((|e_w - f_w|^2 - |e_w - r_w|^2) - (|e_l - f_l|^2 - |e_l - r_l|^2)))."""
    shape, generator = (5, 3, 4, 4), torch.Generator().manual_seed(0)
    target_w, target_l, model_w, model_l, ref_w, ref_l = torch.randn(6, *shape, generator=generator).unbind(0)
    losses = [((a - b) ** 2).flatten(1).mean(1) for a, b in
              ((model_w, target_w), (model_l, target_l), (ref_w, target_w), (ref_l, target_l))]  # fmt: skip
    each = []
    for row in range(5):
        w, lose, rw, rl = (
            np.mean((a[row].double().numpy() - b[row].double().numpy()) ** 2)
            for a, b in ((model_w, target_w), (model_l, target_l), (ref_w, target_w), (ref_l, target_l))
        )
        each.append(-np.log(1 / (1 + np.exp(3.0 * ((w - rw) - (lose - rl))))))
    np.testing.assert_allclose(dpo_loss(*losses, beta=3.0, reduction="none").numpy(), each, rtol=1e-4)
    assert dpo_loss(*losses, beta=3.0).item() == pytest.approx(np.mean(each), rel=1e-4)


def test_dpo_is_log_2_at_the_reference_and_finite_far_away():
    losses = torch.tensor([0.3, 0.1])
    assert dpo_loss(losses, losses + 1, losses, losses + 1).item() == pytest.approx(math.log(2))
    far = dpo_loss(losses + 9, losses, losses, losses, reduction="none")
    assert far == pytest.approx(2500 * 9, rel=1e-5)


def test_dpo_pushes_the_winners_loss_down_and_the_losers_up():
    winner, loser = torch.tensor([0.2]).requires_grad_(), torch.tensor([0.2]).requires_grad_()
    before = torch.tensor([0.2]).requires_grad_()
    dpo_loss(winner, loser, before, before, beta=100.0).backward()
    assert winner.grad.item() == pytest.approx(50.0)  # beta sigmoid(0)
    assert loser.grad.item() == pytest.approx(-50.0)
    assert before.grad is None


def test_advantage_weights_are_exponential_and_capped():
    losses, advantages = rows(6).abs(), rows(6, 1, scale=4.0)
    expected = np.minimum(np.exp(advantages.double().numpy() / 0.7), 5.0) * losses.numpy()
    each = advantage_weighted_loss(losses, advantages, temperature=0.7, max_weight=5.0, reduction="none")
    np.testing.assert_allclose(each.numpy(), expected, rtol=1e-5)
    assert advantage_weighted_loss(losses, torch.zeros(6)).item() == pytest.approx(losses.mean().item())
    assert torch.isfinite(advantage_weighted_loss(losses, torch.full((6,), 1e6)))


def test_weighted_losses_of_samples_and_of_pixels():
    prediction = torch.randn(4, 3, 8, 8).requires_grad_()
    pixels, weights = prediction.square(), torch.tensor([0.0, 1.0, 2.0, 1.0]).requires_grad_()
    each = pixels.flatten(1).mean(1)
    loss = weighted_loss(pixels, weights)
    assert loss.item() == pytest.approx(float((each * weights).detach().sum() / 4), rel=1e-6)
    assert torch.equal(loss, weighted_loss(each, weights))
    loss.backward()
    assert not prediction.grad[0].any()
    assert weights.grad is None
    assert torch.allclose(prediction.grad[2], 2 * 2 * prediction[2].detach() / (4 * 192))
    assert weighted_loss(pixels, torch.ones(4)).item() == pytest.approx(pixels.mean().item(), rel=1e-6)
    tokens = torch.rand(4, 16, 8)
    assert torch.allclose(weighted_loss(tokens, torch.ones(4)), tokens.mean())


def test_half_precision_losses_are_averaged_in_float32():
    assert weighted_loss(torch.rand(4, dtype=torch.bfloat16), torch.ones(4)).dtype == torch.float32
    same = torch.full((2,), 0.1, dtype=torch.float16)
    assert dpo_loss(same, same, same, same).item() == pytest.approx(math.log(2))


ONE = torch.ones(3)


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda: weighted_loss(torch.ones(3, 1), ONE), ValueError, r"losses must be \(N,\), got \(3, 1\)"),
    (lambda: weighted_loss(ONE, torch.ones(3, 1)), ValueError, r"weights must be \(N,\)"),
    (lambda: advantage_weighted_loss(ONE, ONE, max_weight=0.0), ValueError, "max_weight must be positive"),
    (lambda: advantage_weighted_loss(ONE, ONE, temperature=0.0), ValueError, "temperature and max_weight must be"),
    (lambda: weighted_loss(ONE, torch.ones(2)), ValueError, r"weights must be \(3,\)"),
    (lambda: weighted_loss(torch.ones(()), ONE), ValueError, "losses must be"),
    (lambda: weighted_loss(ONE, -ONE), ValueError, "negative"),
    (lambda: weighted_loss(ONE, ONE / 0), ValueError, "weights must be finite, but number 0 is inf"),
    (lambda: weighted_loss(ONE, ONE.int()), TypeError, "floating-point"),
    (lambda: weighted_loss(ONE, [1.0] * 3), TypeError, "weights must be a floating-point tensor"),
    (lambda: weighted_loss(ONE, ONE, reduction="sum"), ValueError, "reduction"),
    (lambda: advantage_weighted_loss(ONE, ONE, temperature=0.0), ValueError, "temperature"),
    (lambda: advantage_weighted_loss(ONE, ONE * math.nan), ValueError, "advantages must be finite"),
    (lambda: group_advantages(ONE, [1, 2]), ValueError, "3 keys"),
    (lambda: group_advantages(ONE, "cat"), TypeError, "the text 'cat'"),
    (lambda: group_advantages(ONE, ONE), ValueError, "whole numbers"),
    (lambda: group_advantages(torch.tensor([1.0, math.nan]), [0, 0]), ValueError, "number 1 is nan"),
    (lambda: group_advantages(torch.ones(0), []), ValueError, "scores must be"),
    (lambda: group_advantages(ONE, [0, 0, 0], eps=0.0), ValueError, "eps"),
    (lambda: preference_pairs(ONE, [0, 0, 0], -1.0), ValueError, "margin"),
    (lambda: preference_pairs(torch.ones(3, 1), [0, 0, 0]), ValueError, "scores must be"),
    (lambda: dpo_loss(ONE, ONE, ONE, ONE[:2]), ValueError, r"reference_loser must be \(3,\)"),
    (lambda: dpo_loss(ONE[:, None], ONE, ONE, ONE), ValueError, "winner must be"),
    (lambda: dpo_loss(ONE, ONE, ONE, ONE, beta=0), ValueError, "beta"),
    (lambda: dpo_loss(ONE, ONE, None, ONE), TypeError, "reference_winner"),
])  # fmt: skip
def test_bad_input_is_refused_with_a_reason(call, error, message):
    with pytest.raises(error, match=message):
        call()

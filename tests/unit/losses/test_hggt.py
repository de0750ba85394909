"""HGGT's negative term: the map against a pixel-by-pixel loop, the gradient against differences, the bound."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qa_hooks.losses.hggt import HGGTNegativeLoss, negative_map


def sample(photographs: torch.Tensor, side: int = 24) -> dict[str, torch.Tensor]:
    """An original, an over-sharpened negative and a mildly sharpened positive, as people would judge them."""
    original = photographs[:2, :, 40 : 40 + side, 40 : 40 + side].double()
    detail = original - torch.nn.functional.avg_pool2d(original, 3, 1, 1)
    return {
        "original": original,
        "negative": (original + 4 * detail).clamp(0, 1),
        "gt": (original + 0.5 * detail).clamp(0, 1),
    }


def slow_map(original, image, votes: int) -> np.ndarray:
    """`(H, W)`, with NumPy, pixel by pixel."""
    residual = np.pad(np.abs(original.numpy() - image.numpy()).sum(0), 1, mode="reflect")
    height, width = original.shape[-2:]
    variance = [[np.var(residual[y : y + 3, x : x + 3], ddof=1) for x in range(width)] for y in range(height)]
    return votes / 3 * np.array(variance) ** 0.75


def test_the_map_is_that_of_the_published_formula(photographs):
    images = sample(photographs)
    images["gt"][..., :12] = images["negative"][..., :12]  # where both depart alike, the votes decide
    votes, liked = torch.tensor([3, 2]), torch.tensor([1, 3])
    found = negative_map(images["original"], images["negative"], votes, positive=images["gt"], positive_votes=liked)
    assert found.shape == (2, 1, 24, 24)
    for n in range(2):
        bad = slow_map(images["original"][n], images["negative"][n], int(votes[n]))
        good = slow_map(images["original"][n], images["gt"][n], int(liked[n]))
        expected = np.where(good >= bad, 0, bad)
        np.testing.assert_allclose(found[n, 0].numpy(), expected, rtol=2e-4, atol=1e-7)
    assert found[0].gt(0).all()
    assert not found[1, ..., :11].any()
    assert found[1, ..., 13:].gt(0).all()


def test_without_a_negative_or_a_positive(photographs):
    images = sample(photographs)
    votes = torch.tensor([0, 3])
    found = negative_map(images["original"], images["negative"], votes)
    assert not found[0].any()
    # A ground truth that is the original departs from it nowhere, so it takes nothing away.
    same = negative_map(
        images["original"], images["negative"], votes, positive=images["original"], positive_votes=votes
    )
    assert torch.equal(found, same)


def test_the_loss_is_the_formula(photographs):
    images = {name: image.float() for name, image in sample(photographs).items()}
    pred = (images["original"] + 0.1 * torch.randn_like(images["original"])).clamp(0, 1)
    votes, liked = torch.tensor([3, 2]), torch.tensor([1, 3])
    given = {name: images[name] for name in ("original", "negative")} | {
        "negative_votes": votes,
        "positive_votes": liked,
    }
    loss = HGGTNegativeLoss(reduction="none", margin=0.5)(pred, images["gt"], **given)
    strength = negative_map(
        images["original"], images["negative"], votes, positive=images["gt"], positive_votes=liked
    ).double()
    for n in range(2):
        total = 0.0
        away, enough = (pred[n] - images["negative"][n]).abs(), (images["gt"][n] - images["negative"][n]).abs()
        for c in range(3):
            total += float((strength[n, 0] * torch.minimum(away[c], 0.5 * enough[c])).sum())
        assert float(loss[n]) == pytest.approx(-300 * total / pred[n].numel(), rel=1e-4)


@pytest.mark.parametrize("margin", [1.0, 0.3, float("inf")])
def test_the_gradient_is_that_of_differences(photographs, margin):
    images = sample(photographs, 8)
    noise = torch.Generator().manual_seed(1)
    start = images["negative"] + 0.02 * torch.randn(images["negative"].shape, generator=noise, dtype=torch.float64)
    given = {name: images[name] for name in ("original", "negative")} | {"negative_votes": torch.tensor([3, 1])}
    loss = HGGTNegativeLoss(margin=margin)
    pred = start.clone().requires_grad_()
    loss(pred, images["gt"], **given).backward()
    assert pred.grad.any()
    for place in range(0, start.numel(), 7):
        values = []
        for step in (2e-3, -2e-3):
            moved = start.clone()
            moved.view(-1)[place] += step
            values.append(float(loss(moved, images["gt"], **given)))
        numeric = (values[0] - values[1]) / 4e-3
        distance = (start - images["negative"]).abs().view(-1)[place]
        bound = margin * (images["gt"] - images["negative"]).abs().view(-1)[place]
        if distance < 3e-3 or abs(distance - bound) < 3e-3:
            continue  # a corner of the absolute value or of the minimum
        assert float(pred.grad.view(-1)[place]) == pytest.approx(numeric, rel=0.02, abs=2e-4)


@pytest.mark.filterwarnings("ignore:.*another convention.*:UserWarning")
def test_it_is_bounded_where_the_published_form_is_not(photographs):
    images = {name: image.float() for name, image in sample(photographs).items()}
    given = {name: images[name] for name in ("original", "negative")} | {"negative_votes": torch.tensor([3, 3])}
    ours, published = HGGTNegativeLoss(), HGGTNegativeLoss(margin=float("inf"))
    at_gt = float(ours(images["gt"], images["gt"], **given))
    assert at_gt == pytest.approx(float(published(images["gt"], images["gt"], **given)))
    assert at_gt < 0
    assert float(ours(images["negative"], images["gt"], **given)) == 0
    lowest = {}
    for loss in (ours, published):
        pred = images["original"].clone().requires_grad_()
        optimizer = torch.optim.SGD([pred], lr=50.0)
        for _ in range(60):
            optimizer.zero_grad()
            value = loss(pred, images["gt"], **given)
            value.backward()
            optimizer.step()
        lowest[loss] = float(value.detach())
    assert lowest[ours] >= at_gt - 1e-6
    assert lowest[ours] == pytest.approx(at_gt, rel=1e-3)  # as far as the ground truth, and no further
    assert lowest[published] < 5 * at_gt


def test_a_ground_truth_that_is_the_negative_pushes_nowhere(photographs):
    images = {name: image.float() for name, image in sample(photographs).items()}
    pred = images["original"].clone().requires_grad_()
    given = {name: images[name] for name in ("original", "negative")} | {"negative_votes": torch.tensor([3, 3])}
    HGGTNegativeLoss()(pred, images["negative"], **given).backward()
    assert not pred.grad.any()


def test_it_does_not_depend_on_the_range(photographs):
    images = {name: image.float() for name, image in sample(photographs).items()}
    given = {name: images[name] for name in ("original", "negative")}
    votes = {"negative_votes": torch.tensor([3, 2]), "positive_votes": torch.tensor([2, 0])}
    first = HGGTNegativeLoss()(images["original"], images["gt"], **given, **votes)
    wide = {name: 2 * image - 1 for name, image in given.items()}
    second = HGGTNegativeLoss(value_range=(-1, 1))(2 * images["original"] - 1, 2 * images["gt"] - 1, **wide, **votes)
    assert float(second) == pytest.approx(float(first), rel=1e-4)


@pytest.mark.parametrize("kind", ["constant", "black", "saturated", "identical"])
def test_it_is_finite_in_value_and_gradient(kind):
    flat = {"constant": 0.3, "black": 0.0, "saturated": 1.0, "identical": 0.5}[kind]
    pred = torch.full((1, 3, 2, 2), flat, requires_grad=True)
    other = torch.full((1, 3, 2, 2), flat if kind == "identical" else 1 - flat)
    loss = HGGTNegativeLoss()(pred, other, original=other, negative=pred.detach(), negative_votes=torch.tensor([3]))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(pred.grad).all()


def test_weight_0_computes_nothing():
    pred = torch.rand(2, 3, 8, 8, requires_grad=True)
    loss = HGGTNegativeLoss(weight=0)(pred, pred.detach())
    assert float(loss) == 0
    assert not loss.requires_grad


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"original": None}, "needs original="),
        ({"negative": None}, "needs negative="),
        ({"negative_votes": None}, "needs negative_votes="),
        ({"negative_votes": torch.tensor([1, 2, 3])}, r"negative_votes must be a tensor \(2,\)"),
        ({"negative_votes": 3}, r"negative_votes must be a tensor \(2,\), got int"),
        ({"positive_votes": torch.ones(2, 1)}, r"positive_votes must be a tensor \(2,\)"),
        ({"negative": torch.rand(2, 3, 8, 9)}, "same shape"),
        ({"votes": torch.ones(2)}, "takes no votes"),
    ],
)
def test_bad_input(change, message):
    given = {"original": torch.rand(2, 3, 8, 8), "negative": torch.rand(2, 3, 8, 8), "negative_votes": torch.ones(2)}
    with pytest.raises(ValueError, match=message):
        HGGTNegativeLoss()(torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8), **{**given, **change})


def test_an_original_or_a_negative_in_another_range_is_refused(photographs):
    images = {name: image.float() for name, image in sample(photographs).items()}
    for name in ("original", "negative"):
        given = {**images, name: images[name] * 255, "negative_votes": torch.tensor([3, 2])}
        gt = given.pop("gt")
        with pytest.raises(ValueError, match=f"{name}: values lie in .* but value_range"):
            HGGTNegativeLoss()(gt, gt, **given)


def test_bad_options_and_sizes():
    for margin in (0, -1, True, float("nan")):
        with pytest.raises(ValueError, match="margin must be more than 0"):
            HGGTNegativeLoss(margin=margin)
    thin = torch.rand(1, 3, 1, 8)
    with pytest.raises(ValueError, match="at least 2"):
        negative_map(thin, thin, torch.ones(1))
    with pytest.raises(ValueError, match="belong together"):
        negative_map(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8), torch.ones(1), positive=torch.rand(1, 3, 8, 8))
    with pytest.raises(ValueError, match="needs a target"):
        HGGTNegativeLoss()(torch.rand(1, 3, 8, 8), original=thin, negative=thin, negative_votes=torch.ones(1))

"""A training step that is compiled whole: what it holds of ours is right in it, or says what to write instead."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from contract.table import brightness
from qa_hooks import losses, scorers, weighting

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(not hasattr(torch.compiler, "set_stance"), reason="torch before 2.6"),
]
Step = Callable[[Tensor, Tensor], Tensor]


def balanced() -> Step:
    loss = losses.ScoreLoss(brightness(), balance=0.5, ceiling=0.9)

    def step(pred: Tensor, target: Tensor) -> Tensor:
        fidelity = (pred - target).abs().mean()
        return fidelity + loss(pred, fidelity=fidelity)

    return step


def weighted(weigh: Callable[..., Tensor], **options: bool) -> Step:
    return lambda pred, target: (weigh(pred, **options) * pred.square().mean((1, 2, 3))).mean()


STEPS: dict[str, Callable[[], Step]] = {
    "SSIMLoss": losses.SSIMLoss,
    "MSSSIMLoss": losses.MSSSIMLoss,
    "SSIMDistanceLoss": losses.SSIMDistanceLoss,
    "ScoreLoss": lambda: losses.ScoreLoss(scorers.PSNR()),
    "a balanced ScoreLoss": balanced,
    "OHEM outside": lambda: weighted(torch.compiler.disable(weighting.OHEM(brightness(), worst=0.4))),
    "TopK": lambda: (
        lambda pred, target: weighted(lambda x: weighting.TopK(0.5)(x, scores=x.detach().mean((1, 2, 3))))(pred, target)
    ),
}


def trained(step: Step, compiled: bool) -> list[float]:
    """Losses and gradients of a few steps, more than the calls that look at the images."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    net = nn.Conv2d(3, 3, 3, padding=1)
    whole = lambda x, y: step(net(x), y)  # noqa: E731
    run, found = torch.compile(whole, backend="aot_eager") if compiled else whole, []
    for k in range(5):
        x, y = torch.rand(2, 4, 3, 16, 16, generator=torch.Generator().manual_seed(k))
        net.zero_grad()
        value = run(x, y)
        value.backward()
        found += [value.item(), net.weight.grad.norm().item()]
    return found


@pytest.mark.parametrize("name", STEPS)
def test_a_compiled_step_gives_the_numbers_of_the_plain_one(name):
    assert trained(STEPS[name](), True) == pytest.approx(trained(STEPS[name](), False), rel=1e-4, abs=1e-7)


def test_a_weighter_that_calls_its_scorer_says_what_to_write():
    with pytest.raises(RuntimeError, match=r"torch.compiler.disable\(call\)"):
        trained(weighted(weighting.OHEM(brightness(), worst=0.4)), True)

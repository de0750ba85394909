"""RewardGuard with the base's images beside real ones: what it finds that it does not find without, and its peace."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch

from qa_hooks.callbacks import Hooks, RewardGuard
from qa_hooks.functional.degradations import blur
from qa_hooks.writers import MemoryWriter

SIDE, N = 48, 32
SMALL = {"type": "random", "width": 8}


@pytest.fixture(scope="module")
def crops(photographs) -> torch.Tensor:
    """144 pieces of real photographs, in random order."""
    places = itertools.product(range(0, 145, 24), range(0, 145, 24))
    found = torch.cat([photographs[:, :, top : top + SIDE, left : left + SIDE] for top, left in places])
    return found[torch.randperm(len(found), generator=torch.Generator().manual_seed(0))[:144]]


def faded(images: torch.Tensor) -> torch.Tensor:
    grey = images.mean(1, keepdim=True)
    return grey + 0.4 * (images - grey)


def repeat(images: torch.Tensor) -> torch.Tensor:
    return torch.where(torch.arange(len(images)).view(-1, 1, 1, 1) < 10, images[-1:], images)


TRICKS = {
    "brightness": lambda images: 0.8 * images,
    "contrast": lambda images: 0.5 + 0.65 * (images - 0.5),
    "detail": lambda images: blur(images, 0.8),
    "colourfulness": faded,
    "nearest": repeat,
}


def run(images, real, trick=None, *, steps=6, since=3, **options) -> tuple[RewardGuard, MemoryWriter]:
    clock, writer = [0], MemoryWriter()

    def sample(n: int, generator: torch.Generator) -> torch.Tensor:
        return trick(images[:n]) if trick is not None and clock[0] >= since else images[:n]

    guard = RewardGuard(sample=sample, real=real, every=1, n=N, batch_size=N, extractor=SMALL, **options)
    with warnings.catch_warnings(), Hooks([guard], writer=writer) as hooks:
        warnings.simplefilter("ignore")
        for clock[0] in range(1, steps + 1):
            hooks.step()
    return guard, writer


@pytest.mark.parametrize("kind", TRICKS)
def test_what_the_base_and_real_images_show_together(crops, kind):
    guard, writer = run(crops[:72], crops[72:], TRICKS[kind], base="start")
    assert kind in {finding.kind for finding in guard.found}
    assert guard.alarms == 3  # of the looks at the steps 3 to 6 all but the first
    assert [step for step, _ in writer.images["qa_images/reward_guard/alarm"]] == [4, 5, 6]
    assert not [tag for tag in writer.scalars if "change/" in tag]  # of now alone
    unknown, _ = run(crops[:72], crops[72:], TRICKS[kind])
    assert unknown.alarms == 0
    assert unknown.last[f"change/{kind}"] == guard.last[f"change/{kind}"] != 0


def test_what_does_not_change_is_no_change(crops):
    for options in ({"base": "start"}, {"base": lambda n, generator: crops[:n]}):
        guard, _ = run(crops[:72], crops[72:], **options)
        assert (guard.alarms, guard.found) == (0, [])
        changes = {key: value for key, value in guard.last.items() if key.startswith("change/")}
        assert len(changes) >= 8
        assert set(changes.values()) == {0.0}


@pytest.mark.parametrize("scale", [1, 4], ids=["whole images", "the middle of larger ones"])
def test_a_step_towards_real_images_is_none_to_warn_of(crops, scale):
    size = {"scale_factor": scale, "mode": "bicubic", "antialias": True}
    larger = (torch.nn.functional.interpolate(crops, **size).clamp(0, 1) * 255).round() / 255
    dull = larger[:72] * 0.7

    def better(images: torch.Tensor) -> torch.Tensor:
        return images / 0.7

    guard, _ = run(dull, larger[72:], better, base="start", steps=4)
    assert guard.last["change/brightness"] > 0.05
    assert guard.alarms == 0
    guard, _ = run(larger[:72], larger[72:], lambda images: images * 0.7, base="start", steps=4)
    assert guard.alarms == 1


def test_images_that_the_loop_hands_over_beside_the_base_s(crops):
    guard = RewardGuard(images="fake", base="before", real=crops[72:], every=1, n=24, extractor=SMALL)
    with warnings.catch_warnings(), Hooks([guard]) as hooks:
        warnings.simplefilter("ignore")
        for step in range(1, 6):
            before = crops[8 * step : 8 * step + 24]
            hooks.step(fake=0.7 * before if step > 2 else before, before=before)
            assert (guard.last["change/brightness"] < -0.05) == (step > 2)
    assert guard.alarms == 2


def test_a_run_that_goes_on_judges_as_one_that_was_not_stopped(crops):
    def steps(guard, wanted, clock):
        found = []
        with warnings.catch_warnings(), Hooks([guard]) as hooks:
            warnings.simplefilter("ignore")
            for clock[0] in wanted:
                hooks.step()
                found.append(dict(guard.last, step=clock[0]))
        return found

    def make():
        clock = [0]
        sample = lambda n, g: crops[:n] * (0.8 if clock[0] > 4 else 1.0)  # noqa: E731
        return clock, RewardGuard(sample=sample, base="start", real=crops[72:], every=1, n=N, extractor=SMALL)

    clock, guard = make()
    whole = steps(guard, range(1, 8), clock)
    clock, first = make()
    begun = steps(first, range(1, 4), clock)
    clock, second = make()
    second.load_state_dict(first.state_dict())
    assert begun + steps(second, range(4, 8), clock) == whole
    assert second.alarms == guard.alarms == 2

"""What a `RewardGuard` says: of the range of its images, of its real images, and at an alarm."""

from __future__ import annotations

import math
import re
import warnings

import pytest
import torch
from torch import nn

from qa_hooks.callbacks import GenerativeMonitor, Hooks, RewardGuard, TrainingStopped
from qa_hooks.callbacks.reward_guard.wording import ScorePath, alarm_words
from qa_hooks.images import RangeGuard
from qa_hooks.rewards.alarm_rule import Finding
from qa_hooks.writers import MemoryWriter
from toy_scorers import brightness

REAL = torch.rand(40, 3, 32, 32, generator=torch.Generator().manual_seed(0))
DARK = Finding("dark", 0.3, 0.1, 0.15, 2.0)


def symmetric(n: int, rng: torch.Generator) -> torch.Tensor:
    return torch.randn(n, 3, 32, 32, generator=rng).tanh()


def unit(n: int, rng: torch.Generator) -> torch.Tensor:
    return torch.rand(n, 3, 32, 32, generator=rng)


@pytest.mark.parametrize("options", [{"real": REAL}, {}, {"base": unit, "scorer": brightness()}])
def test_samples_of_another_range_are_told_once(options):
    hooks = Hooks([RewardGuard(sample=symmetric, n=8, every=1, **options)])
    with pytest.warns(UserWarning, match=r"samples: values lie in \[-0.9\d+, 0.9\d+\] under value_range=\(0, 1\)"):
        hooks.step()


def test_a_base_and_handed_over_images_of_another_range_are_told():
    with pytest.warns(UserWarning, match="base: values lie in"):
        Hooks([RewardGuard(sample=unit, base=symmetric, n=8, every=1)]).step()
    with pytest.warns(UserWarning, match="samples: values lie in"):
        Hooks([RewardGuard(images="fake", n=8, every=1)]).step(fake=2 * REAL[:8] - 1)


def test_each_name_has_its_own_warning():
    guard = RangeGuard((-1.0, 1.0))
    with pytest.warns(UserWarning, match="values lie in") as told:
        guard(data={"real": torch.tensor([0.0, 1.0])}, predictions={"fake": torch.tensor([0.0, 1.0])})
    assert [str(warning.message).split(":")[0] for warning in told] == ["real", "fake"]


def test_latents_are_named():
    latents = torch.randn(2, 4, 8, 8)
    with pytest.warns(UserWarning, match="4 channels look like latents: decode them"):
        RangeGuard((0.0, 1.0))(predictions={"pred": latents})
    report = Hooks([RewardGuard(sample=lambda n, rng: torch.randn(n, 16, 8, 8, generator=rng), n=8)]).check()
    assert "16 channels look like latents: decode them to images first" in report


@pytest.mark.parametrize("kind", ["guard", "distance"])
def test_check_tries_the_real_images(kind):
    def report(real: torch.Tensor) -> str:
        if kind == "guard":
            return Hooks([RewardGuard(sample=unit, real=real, n=8)]).check()
        return Hooks([GenerativeMonitor(sample=unit, real=real, n=50, extractor="random")]).check()

    assert "real: (3, 32, 32)" in report(REAL)
    fails = r"the first measurement FAILS: ValueError: real: values lie in \[-"
    assert re.search(fails, report(REAL.mul(3).clamp(0, 2) - 1))
    assert "bring them to one size" in report(torch.rand(40, 3, 24, 24))


def test_the_words_say_what_is_known():
    risen = ScorePath(0.2, 0.4, 0.3, 0.05)
    said = alarm_words([DARK], brightness("bright"), risen, base="start", patience=2)
    assert said == (
        "the samples have moved away from the base (the first look) and the real images on 2 looks in a row: "
        "dark share 0.3, real 0.1, limit 0.15; bright went from 0.2 at the first look to 0.4, which is better and "
        "better than the 0.3 of real images: the reward is being exploited"
    )
    worse = alarm_words([DARK], brightness("bright"), ScorePath(0.4, 0.2))
    assert "from 0.4 at the first look to 0.2, which is worse: not a reward that is exploited, but damage" in worse
    lower = brightness("noise", higher_is_better=False)  # goodness is minus the score
    said = alarm_words([DARK], lower, ScorePath(-13.0, -9.0, -8.0, 2.0))
    assert "noise went from 13 at the first look to 9, which is better and near the 8 of real images: the" in said
    assert "not known without scorer=" in alarm_words([DARK])
    assert "bright is not finite" in alarm_words([DARK], brightness("bright"), ScorePath(0.2, math.nan))
    assert alarm_words([DARK], brightness("bright"), ScorePath(0.2, 0.2)).endswith("to 0.2, which is no change")


@pytest.mark.parametrize(
    ("base", "against", "advice"),
    [
        ("start", "real", 'for a run from random weights leave base="start" out'),
        ("start", "start", 'for a run from random weights leave base="start" out and give real='),
        (None, "start", "for a run from random weights give real="),
        (None, "real", "a model that still learns something else than what it is compared with"),
        (unit, "real", "a model that still learns something else than what it is compared with"),
    ],
)
def test_a_score_that_is_far_from_the_real_level_is_not_called_exploited(base, against, advice):
    """A model that learns from random weights moves, and its score rises, with no reward at all."""
    found = [DARK._replace(against=against)]
    for real, level in (
        (-61.0, "worse than the -61 of real images"),
        (math.nan, "real images score is not known"),
    ):
        said = alarm_words(found, brightness("likelihood"), ScorePath(-198.6, -177.2, real, 20.0), base=base)
        assert "from -198.6 at the first look to -177.2, which is better" in said
        assert level in said
        assert "the reward is being exploited" not in said
        assert said.endswith(advice)
    assert alarm_words(found, brightness("likelihood"), ScorePath(-177.2, -198.6), base=base).endswith(advice)


def test_a_guard_knows_the_real_level(tmp_path):
    """An untrained model that gets brighter below and above what real images are, with the pictures of a lattice."""
    level = [0.0]

    def sample(n: int, rng: torch.Generator) -> torch.Tensor:
        images = torch.rand(n, 3, 32, 32, generator=rng) * 0.02 + level[0]
        images[:, :, ::2] += 0.1 * (level[0] > 0)
        return images.clamp(0, 1)

    real = REAL * 0.1 + 0.6 + torch.linspace(-0.05, 0.05, 40).view(-1, 1, 1, 1)
    for top, words in ((0.3, "still worse than the 0.65 of real images"), (0.8, "better than the 0.65 of real images")):
        level[0] = 0.0
        guard = RewardGuard(brightness("bright"), sample=sample, real=real, base="start", n=16, every=1)
        with warnings.catch_warnings(record=True) as told, Hooks([guard], writer=MemoryWriter()) as hooks:
            warnings.simplefilter("always")
            for _ in range(3):
                hooks.step()
                level[0] = top
        (said,) = [str(warning.message) for warning in told if "moved away" in str(warning.message)]
        assert words in said
        assert ("being exploited" in said) == (top == 0.8)


@pytest.mark.parametrize(("against", "of"), [("real", "real images"), ("start", "images of the first look")])
def test_findings_name_the_images_that_they_compare_with(against, of):
    recall = Finding("recall", 0.778, 0.98, 0.78, 1.1, against)
    assert str(recall) == f"recall of the {of} 0.778, 0.98 among themselves, limit 0.78"
    drift = Finding("drift", 0.875, 0.0, 0.25, 3.5, against)
    assert str(drift) == f"drift 0.875 distances of two {of}, limit 0.25"


@pytest.mark.parametrize("attached", [False, True])
def test_a_guard_that_stops_is_not_put_off_by_the_budget(attached, monkeypatch):
    """A look takes 300 units of the clock and a step one: a budget of a tenth would allow the second in 6000 steps."""
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    net = nn.Conv2d(3, 3, 1)
    optimizer = torch.optim.SGD(net.parameters(), 0.0)

    def sample(n: int, rng: torch.Generator) -> torch.Tensor:
        now[0] += 300
        return REAL[:n] * net.bias.detach().exp().view(3, 1, 1).clamp(max=1)

    with torch.no_grad():
        net.bias.zero_()
    guard = RewardGuard(sample=sample, base="start", n=16, every=2, action="stop")
    hooks = Hooks([guard], budget=0.1)
    if attached:
        hooks.attach(optimizer)

    def train() -> None:
        for _ in range(20):
            now[0] += 1
            with torch.no_grad():
                net.bias -= 0.5  # darker and darker
            net(REAL[:1]).mean().backward()
            optimizer.step()
            if not attached:
                hooks.step()
            if hooks.should_stop:
                return

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if attached:
            with pytest.raises(TrainingStopped, match="moved away from the base"):
                train()
        else:
            train()
    assert hooks.should_stop
    assert guard.alarms == 1
    hooks.close()

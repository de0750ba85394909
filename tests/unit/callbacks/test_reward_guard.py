"""RewardGuard: quiet on honest images, awake on planted tricks, the rule against hand-made looks, and a run's peace."""

from __future__ import annotations

import itertools
import json
import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from qa_hooks.callbacks import EarlyStop, Hooks, RewardGuard, TrainingStopped
from qa_hooks.features import create_extractor
from qa_hooks.folders import watch_folder
from qa_hooks.images import save_image, to_uint8
from qa_hooks.rewards.alarm_rule import DRIFT, KINDS, AlarmRule, Finding, is_suspicious, look_severity
from qa_hooks.rewards.levels import Levels, look_values
from qa_hooks.rewards.measures import mean_distance, measure_change, measure_images
from qa_hooks.scorers import PSNR, FunctionScorer
from qa_hooks.writers import MemoryWriter

SIDE = 48
SMALL = {"type": "random", "width": 8}


@pytest.fixture(scope="module")
def crops(photographs) -> torch.Tensor:
    """144 pieces of real photographs, in random order."""
    places = itertools.product(range(0, 145, 24), range(0, 145, 24))
    pieces = [photographs[:, :, top : top + SIDE, left : left + SIDE] for top, left in places]
    found = torch.cat(pieces)
    return found[torch.randperm(len(found), generator=torch.Generator().manual_seed(0))[:144]]


class Tricked:
    """Real images, and from a step on what a reward was cheated with."""

    def __init__(self, images: torch.Tensor, trick=None, since: int = 3) -> None:
        self.images, self.trick, self.since, self.step = images, trick, since, 0

    def __call__(self, n: int, generator: torch.Generator) -> torch.Tensor:
        assert n <= len(self.images)
        start = int(torch.randint(2, (), generator=generator)) * 16  # another block, other images
        images = self.images[start : start + n]
        return self.trick(images) if self.trick is not None and self.step >= self.since else images


def lattice(images: torch.Tensor) -> torch.Tensor:
    wave = torch.cos(2 * torch.pi * torch.arange(images.shape[-1]) / 3)
    return (images + 0.05 * wave).clamp(0, 1)


def salt(images: torch.Tensor) -> torch.Tensor:
    drawn = torch.rand(images[:, :1].shape, generator=torch.Generator().manual_seed(0))
    return torch.where(drawn < 0.1, 1.0, images)


TRICKS = {
    "peak": lattice,
    "high_frequency": salt,
    "dark": lambda images: (images - 0.4).clamp(min=0),
    "saturated": lambda images: (images + 0.5).clamp(max=1),
    "spread": lambda images: images[:1].expand_as(images) + 1e-4 * torch.arange(len(images)).view(-1, 1, 1, 1),
    "nonfinite": lambda images: images.clone().index_fill_(0, torch.tensor([1]), math.nan),
}


def run(model: Tricked, steps: int = 6, **options) -> tuple[RewardGuard, MemoryWriter, list[str]]:
    writer = MemoryWriter()
    guard = RewardGuard(sample=model, every=1, n=32, extractor=SMALL, **options)
    with warnings.catch_warnings(record=True) as caught, Hooks([guard], writer=writer) as hooks:
        warnings.simplefilter("always")
        for _ in range(steps):
            model.step += 1
            hooks.step()
    return guard, writer, [str(warning.message) for warning in caught]


def test_honest_images_raise_no_alarm(crops):
    for real in (crops[72:], None):
        guard, writer, told = run(Tricked(crops[:72]), real=real)
        assert (guard.alarms, guard.found, told) == (0, [], [])
        assert guard.last["drift"] == 0
        assert writer.images == {}
        assert [step for step, _ in writer.scalars["qa_eval/reward_guard/spread"]] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("real", [True, False])
@pytest.mark.parametrize("kind", TRICKS)
def test_each_trick_is_found_and_named_with_its_numbers(crops, kind, real):
    guard, writer, told = run(Tricked(crops[:72], TRICKS[kind]), real=crops[72:] if real else None)
    found = {finding.kind: finding for finding in guard.found}
    assert kind in found
    assert guard.alarms == 3  # of the looks at the steps 3 to 6 all but the first
    told = [message for message in told if "exploited" in message]
    assert len(told) == 1  # once, though the alarm goes on
    assert "step 4" in told[0]
    assert str(found[kind]).split(",")[0] in told[0].replace(f"{guard.last[kind]:.3g}", f"{found[kind].value:.3g}")
    sheets = writer.images["qa_images/reward_guard/alarm"]
    assert [step for step, _ in sheets] == [4, 5, 6]
    assert sheets[0][1].dtype == torch.uint8


def test_patience_holds_back_a_single_bad_look(crops):
    model = Tricked(crops[:72], lattice, since=3)
    guard = RewardGuard(sample=model, every=1, n=32, real=crops[72:], extractor=SMALL)
    with Hooks([guard]) as hooks:
        for step in (1, 3, 2, 3, 1):
            model.step = step
            hooks.step()
    assert guard.alarms == 0
    assert run(Tricked(crops[:72], lattice), real=crops[72:], patience=1)[0].alarms == 4


def test_what_is_odd_from_the_first_look_on_is_the_model_and_not_the_run(crops):
    guard, _, _ = run(Tricked(crops[:72], lattice, since=0), real=crops[72:])
    assert guard.last["peak"] > 30
    assert guard.alarms == 0


# -- the measurements --------------------------------------------------------------------------------------------------


def test_spread_and_recall_against_loops():
    features = torch.randn(20, 5)
    pairs = [float((a - b).norm()) for a, b in itertools.combinations(features, 2)]
    assert mean_distance(features) == pytest.approx(np.mean(pairs), rel=1e-6)
    assert mean_distance(features[:1].repeat(5, 1)) == 0
    real = torch.randn(40, 5)
    rows = {"features": features, "drift": torch.full((20,), 3.0), "dark": torch.tensor([math.nan, *[0.5] * 19])}
    values = look_values(rows, Levels.of({"features": real}, 20))
    radii = [sorted(float((a - b).norm()) for b in features)[3] for a in features]
    inside = [any(float((r - f).norm()) <= radius for f, radius in zip(features, radii, strict=True)) for r in real]
    assert values["recall"] == pytest.approx(np.mean(inside))
    assert values["dark"] == 0.5
    halves = mean_distance(real)
    assert values["drift"] == pytest.approx(3 / halves, rel=0.1)  # of subsets of 20, about that of all


def test_levels_are_mean_and_worst_tenth():
    rows = {"dark": torch.rand(300), "features": torch.randn(300, 4)}
    levels = Levels.of(rows, 50)
    assert levels.level["dark"] == pytest.approx(rows["dark"].numpy().mean(), rel=1e-5)
    assert levels.width["dark"] == pytest.approx(
        np.quantile(rows["dark"].numpy(), 0.9) - levels.level["dark"], rel=1e-4
    )
    assert levels.level["spread"] == pytest.approx(mean_distance(rows["features"]), rel=0.05)
    assert 0 < levels.width["spread"] < 0.2 * levels.level["spread"]
    with pytest.raises(ValueError, match="at least 8"):
        Levels.of({"features": torch.randn(7, 4)}, 5)


def test_a_change_is_measured_on_pairs(crops):
    extractor = create_extractor(SMALL)
    with torch.no_grad():
        a, b = (measure_images(images, extractor)["features"] for images in (crops[:4], lattice(crops[:4])))
    rows = measure_change(lattice(crops[:4]), crops[:4], b, a)
    assert (rows["change_peak"] > 30).all()
    assert torch.allclose(rows["drift"], (a - b).norm(dim=1))
    with pytest.raises(ValueError, match="same shape"):
        measure_change(crops[:4], crops[:3], a, b)


# -- the rule ----------------------------------------------------------------------------------------------------------


def levels(**more) -> Levels:
    level = {"dark": 0.1, "spread": 10.0, "score": 0.66, "heldout/a": 0.0, "heldout/b": 0.0, "peak": 3.0}
    width = {"dark": 0.05, "spread": 0.5, "score": 0.2, "peak": 1.0}
    return Levels(level, width, dict.fromkeys(level, 1.0), torch.randn(20, 2), **more)


@pytest.mark.parametrize(
    ("looks", "found"),
    [
        ([{"dark": 0.1}, {"dark": 0.16}], ["dark"]),
        ([{"dark": 0.1}, {"dark": 0.149}], []),
        ([{"dark": 0.3}, {"dark": 0.34}], []),  # it never was like the real ones
        ([{"dark": 0.3}, {"dark": 0.2}, {"dark": 0.26}], ["dark"]),  # it had come closer
        ([{"spread": 10.0}, {"spread": 7.9}], ["spread"]),  # a fifth of it is the least width
        ([{"spread": 6.0}, {"spread": 4.1}], []),
        ([{"spread": 6.0}, {"spread": 9.9}, {"spread": 7.8}], ["spread"]),
        ([{"score": 0.2}, {"score": 0.67}], ["score"]),
        ([{"score": 0.2}, {"score": 0.65}], []),
        ([{"score": 0.7}, {"score": 0.75}], []),  # above the real level from the start
        ([{"drift": 0.0}, {"drift": DRIFT + 0.01}], ["drift"]),
        ([{"change_peak": 4.0}, {"change_peak": 8.9}], []),  # against the peaks of real images, 3 + 2 * 3
        ([{"change_peak": 4.0}, {"change_peak": 9.1}], ["change_peak"]),
        ([{"dark": 0.1}, {"dark": math.nan}], []),
    ],
)
def test_limits(looks, found):
    rule = AlarmRule(levels())
    for values in looks:
        rule.look(values)
    assert [finding.kind for finding in rule.found] == found


def test_one_held_out_score_is_not_enough():
    def judged(*held):
        rule = AlarmRule(levels())
        for gain in (0.0, 1.0):
            rule.look({"score": -5 + gain, **{f"heldout/{n}": gain * g for n, g in zip("abc", held, strict=False)}})
        return [finding.kind for finding in rule.found]

    assert judged(-1.0) == []
    assert judged(-1.0, 0.5) == []
    assert judged(-1.0, 0.05) == ["gain"]


def test_an_alarm_takes_one_far_out_or_two_families():
    def found(*pairs):
        return is_suspicious([Finding(kind, 0.0, 0.0, 0.0, severity) for kind, severity in pairs])

    assert found(("dark", 2.0))
    assert not found(("dark", 1.9))
    assert found(("dark", 1.0), ("peak", 1.0))
    assert not found(("dark", 1.0), ("saturated", 1.9))  # one family
    assert not found(("drift", 9.0), ("change_peak", 9.0))  # a model may change
    assert found(("drift", 1.0), ("score", 1.0))
    assert not found()
    assert all(kind.family for kind in KINDS.values())


def test_the_severity_of_a_look_is_what_decides():
    """Against the rule as it is written: one that may stand alone at 2, or two families at 1."""
    generator = torch.Generator().manual_seed(0)
    kinds, outcomes = sorted(KINDS), set()
    for _ in range(500):
        count = int(torch.randint(0, 4, (1,), generator=generator))
        chosen = [kinds[i] for i in torch.randperm(len(kinds), generator=generator)[:count].tolist()]
        severities = (1 + torch.randint(0, 7, (count,), generator=generator) / 4).tolist()
        found = [Finding(kind, 0.0, 0.0, 0.0, severity) for kind, severity in zip(chosen, severities, strict=True)]
        alone = any(KINDS[f.kind].alone and f.severity >= 2 for f in found)
        expected = alone or len({KINDS[f.kind].family for f in found}) >= 2
        assert (look_severity(found) >= 1) == is_suspicious(found) == expected
        outcomes.add(expected)
    assert outcomes == {True, False}
    assert look_severity([Finding("dark", 0, 0, 0, 1.8), Finding("saturated", 0, 0, 0, 1.5)]) == 0.9
    assert look_severity([Finding("drift", 0, 0, 0, 9.0)]) == 0
    assert look_severity([Finding("drift", 0, 0, 0, 9.0), Finding("dark", 0, 0, 0, 1.3)]) == 1.3


def test_what_is_beyond_its_limit_and_does_not_ring_is_said_once(crops, caplog):
    """Each image becomes another one of the set, so that only the drift is beyond its limit."""
    model = Tricked(crops[:72], lambda images: images.roll(1, 0))
    guard, writer, told = run(model, real=crops, base="start", steps=8)
    assert guard.alarms == 0
    assert told == []
    assert [finding.kind for finding in guard.found] == ["drift"]
    assert guard.found[0].severity > 1
    assert guard.last["severity"] == 0
    said = [record.message for record in caplog.records if "no alarm" in record.message]
    assert len(said) == 1
    assert said[0].startswith("RewardGuard(reward_guard), step 4: no alarm by drift ")
    assert "on 2 looks in a row; drift never rings alone, since honest training moves images, too" in said[0]
    again = RewardGuard(sample=model, every=1, n=32, extractor=SMALL, real=crops, base="start")
    again.load_state_dict(guard.state_dict())
    hooks = Hooks([again], writer=writer)
    for _ in range(3):
        hooks.step()
    assert [record.message for record in caplog.records if "no alarm" in record.message] == said


def test_numbers_in_words():
    rule = AlarmRule(levels(), real_level=0.66, patience=1)
    rule.look({"score": 0.2, "dark": 0.04})
    words = [str(finding) for finding in rule.look({"score": 1.21, "dark": 0.3})]
    assert words == ["dark share 0.3, real 0.1, limit 0.15", "score 1.21 above the real level 0.66"]


def test_without_real_images_a_rising_score_is_no_offence():
    rule = AlarmRule(levels(source="start"))
    rule.look({"score": 0.2})
    rule.look({"score": 9.0})
    assert rule.found == []
    assert AlarmRule(levels(source="start"), real_level=1.0).look({"score": 0.2}) == []


# -- in a run ----------------------------------------------------------------------------------------------------------


def brightness(sign: int = 1, name: str = "brightness") -> FunctionScorer:
    return FunctionScorer(lambda x: sign * x.mean((1, 2, 3)), name=name, higher_is_better=sign > 0)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_score_above_the_real_level_together_with_drift(crops, sign):
    model = Tricked(crops[:72], lambda images: 0.5 + images / 2)
    guard, _, told = run(model, scorer=brightness(sign), real=crops[72:], base="start")
    assert {"score", "drift"} <= {finding.kind for finding in guard.found}
    assert "above the real level" in told[0]
    model = Tricked(crops[:72], lambda images: 0.5 + images / 2)
    unjudged, _, _ = run(model, scorer=brightness(sign), real=crops[72:])
    assert unjudged.last["drift"] == guard.last["drift"]  # measured, but a run from nothing has to change
    assert "drift" not in {finding.kind for finding in unjudged.found}
    given, _, _ = run(Tricked(crops[:72]), scorer=brightness(sign), real_level=sign * 0.2, real=crops[72:])
    own = {finding.kind: finding for finding in given.found}
    assert given.alarms == 0
    assert not own or own["score"].level == pytest.approx(0.2 * 1)


def test_stop_raises_when_attached_and_sets_the_flag_otherwise(crops):
    net = nn.Conv2d(3, 3, 1)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    model = Tricked(crops[:72], lattice)

    def guard() -> RewardGuard:
        return RewardGuard(action="stop", sample=model, every=1, n=32, real=crops[72:], extractor=SMALL)

    model.step = 0
    first = guard()

    def train() -> None:
        with warnings.catch_warnings(), Hooks([first]).attach(optimizer):
            warnings.simplefilter("ignore")
            for model.step in range(1, 9):
                optimizer.step()

    with pytest.raises(TrainingStopped, match="spectral peak over its ring"):
        train()
    assert model.step == 4
    state = first.state_dict()

    with warnings.catch_warnings(), Hooks([guard()]) as hooks:
        warnings.simplefilter("ignore")
        for model.step in range(1, 9):
            hooks.step()
            if hooks.should_stop:
                break
    assert model.step == 4

    again = guard()
    again.load_state_dict(state)
    with warnings.catch_warnings(), Hooks([again]) as hooks:  # a run that is resumed past its end stops, too
        warnings.simplefilter("ignore")
        hooks.step()
        assert hooks.should_stop


def test_scale_gets_its_time_and_is_called_again(crops):
    called = []
    run(Tricked(crops[:72], lattice), 9, action="scale", scale=called.append, real=crops[72:])
    assert called == [4, 6, 8]


def test_halving_lora_ends_the_alarm(crops):
    pytest.importorskip("peft")
    from qa_hooks.integrations.peft import inject_lora, scale_lora

    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 1))
    with torch.no_grad():
        net[0].weight.zero_()
        net[1].weight.zero_()
    inject_lora(net, rank=2, alpha=2, targets=["0", "1"])
    images = crops[:32]
    factor = 1.0

    def halve(step: int) -> None:
        nonlocal factor
        factor /= 2
        scale_lora(net, factor)

    def sample(n: int, generator: torch.Generator) -> torch.Tensor:
        return (images[:n] + 0 * net(images[:n]) + drift[0] * factor * (lattice(images[:n]) - images[:n])).clamp(0, 1)

    drift = [0.0]
    guard = RewardGuard(
        base=net, action="scale", scale=halve, sample=sample, every=1, n=32, real=crops[72:], extractor=SMALL
    )
    factors = []
    with warnings.catch_warnings(), Hooks([guard]) as hooks:
        warnings.simplefilter("ignore")
        for step in range(14):
            drift[0] = 4.0 if step else 0.0
            hooks.step()
            factors.append(factor)
    assert factors[0] == 1
    assert 0 < factors[-1] < 0.25
    assert factors[-1] == factors[-3]
    assert not is_suspicious(guard.found)


@pytest.mark.filterwarnings("ignore:.*images are of one colour")
@pytest.mark.parametrize("style", [False, True], ids=["plain", "above a frozen style"])
def test_a_base_with_lora_is_asked_with_the_trained_adapter_off(crops, style):
    peft = pytest.importorskip("peft")
    from qa_hooks.integrations.peft import inject_lora

    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 3, 1))
    if style:  # an adapter of somebody else's, which the base keeps
        config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["0", "2"], init_lora_weights=False)
        peft.inject_adapter_in_model(config, net, "style").requires_grad_(False)
    inputs = crops[:32]
    with torch.no_grad():
        before = (inputs + net(inputs)).clamp(0, 1)
    adapters = inject_lora(net, rank=4)
    with torch.no_grad():
        for parameter in adapters:
            parameter.add_(0.3 * torch.randn_like(parameter))
    sample = lambda n, g: (inputs[:n] + net(inputs[:n])).clamp(0, 1)  # noqa: E731
    by_network = RewardGuard(base=net, sample=sample, every=1, n=32, extractor=SMALL)
    by_function = RewardGuard(base=lambda n, g: before[:n], sample=sample, every=1, n=32, extractor=SMALL)
    for guard in (by_network, by_function):
        with Hooks([guard]) as hooks:
            hooks.step()
    assert by_network.last["drift"] > 0.01
    assert by_network.last["drift"] == pytest.approx(by_function.last["drift"], abs=1e-6)
    assert net[0].training


def test_images_that_the_loop_hands_over(crops):
    options = {"images": "fake", "real": crops[72:], "every": 1, "n": 24, "extractor": SMALL}
    guard, alone = RewardGuard(base="before", **options), RewardGuard(name="alone", **options)
    with warnings.catch_warnings(record=True) as caught, Hooks([guard, alone], writer=MemoryWriter()) as hooks:
        warnings.simplefilter("always")
        for step in range(1, 6):
            before = crops[8 * step : 8 * step + 24]
            hooks.step(fake=lattice(before) if step > 2 else before, before=before)
            assert (guard.last["drift"] > 0) == (step > 2)
    assert (guard.alarms, alone.alarms) == (2, 2)
    assert len(caught) == 2
    with pytest.warns(UserWarning, match="no images named 'fake'"), Hooks([RewardGuard(images="fake")]) as hooks:
        hooks.step(other=crops[:4])


def test_images_of_tiny_batches_are_gathered_over_the_steps(crops):
    options = {"images": "fake", "real": crops[72:], "every": 12, "n": 16, "extractor": SMALL, "patience": 1}
    guard = RewardGuard(brightness(), base="before", **options)
    writer, steps = MemoryWriter(), []
    with warnings.catch_warnings(record=True) as caught, Hooks([guard], writer=writer) as hooks:
        warnings.simplefilter("always")
        for step in range(1, 33):  # looks are due at 1, 12 and 24
            before = crops[2 * step : 2 * step + 2]
            images = {} if step == 4 else {"fake": lattice(before) if step > 20 else before, "before": before}
            hooks.step(**images)
            if guard.last.get("step") == step:
                steps.append(step)
    assert steps == [9, 19, 31]
    assert (guard.alarms, len(caught)) == (1, 1)
    whole = RewardGuard(brightness(), base="before", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Hooks([whole]) as hooks:
            before = crops[2 * 24 : 2 * 24 + 16]
            hooks.step(fake=lattice(before), before=before)
    for key in set(whole.last) - {"step", "severity", "alarms"}:
        assert guard.last[key] == pytest.approx(whole.last[key], rel=1e-4, abs=1e-6), key
    assert writer.images["qa_images/reward_guard/alarm"][0][0] == 31


@pytest.mark.parametrize("cut", [5, 9, 12])
def test_a_look_that_is_half_gathered_goes_on_bit_for_bit(crops, cut):
    def looks(cut: int) -> list[dict]:
        make = lambda: RewardGuard(images="fake", real=crops[72:], every=12, n=16, extractor=SMALL)  # noqa: E731
        guard, found = make(), []
        hooks = Hooks([guard])
        for step in range(1, 21):
            hooks.step(fake=crops[2 * step : 2 * step + 2])
            found.append(dict(guard.last))
            if step == cut:
                state = hooks.state_dict()
                guard = make()
                hooks = Hooks([guard])
                hooks.load_state_dict(state)
                assert str(hooks.state_dict()) == str(state)
        return found

    whole = looks(0)
    assert {look["step"] for look in whole if look} == {8, 19}
    assert looks(cut) == whole


def test_five_steps_and_five_equal_ten_bit_for_bit(crops):
    def make():
        model = Tricked(crops[:72], lattice, since=8)
        return model, RewardGuard(
            brightness(), [brightness(-1, "darkness")], sample=model, every=1, n=32, extractor=SMALL
        )

    def steps(model, hooks, wanted):
        found = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for model.step in wanted:
                hooks.step()
                found.append(dict(hooks.callbacks[0].last))
        return found

    model, guard = make()
    whole = steps(model, Hooks([guard]), range(1, 11))
    model, guard = make()
    hooks = Hooks([guard])
    first = steps(model, hooks, range(1, 6))
    state = hooks.state_dict()
    model, other = make()
    resumed = Hooks([other])
    resumed.load_state_dict(state)
    assert str(resumed.state_dict()) == str(state)
    assert first + steps(model, resumed, range(6, 11)) == whole
    assert other.alarms == 2
    assert torch.equal(other.state_dict()["first"], guard.state_dict()["first"])


def test_the_run_does_not_notice(crops):
    net = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3))
    state = {key: value.clone() for key, value in net.state_dict().items()}
    guard = RewardGuard(
        sample=lambda n, g: net(crops[:n] + 0 * torch.rand(1)).sigmoid(), every=1, n=32, extractor=SMALL
    )
    before = torch.get_rng_state()
    with Hooks([guard]) as hooks:
        hooks.step()
        hooks.step()
    assert guard.last["spread"] > 0
    assert torch.equal(torch.get_rng_state(), before)
    assert net.training
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


def test_its_values_can_decide(crops):
    model = Tricked(crops[:72], lattice)
    guard = RewardGuard(sample=model, every=1, n=32, extractor=SMALL)
    with warnings.catch_warnings(), Hooks([guard, EarlyStop(guard, "peak", mode="min", patience=2)]) as hooks:
        warnings.simplefilter("ignore")
        for model.step in range(1, 5):
            hooks.step()
    assert hooks.should_stop


def test_a_sheet_in_a_folder_large_images_and_another_range(crops, tmp_path):
    large = torch.nn.functional.interpolate(crops[:32], scale_factor=4) * 2 - 1  # 192 pixels: the middle 128 are kept
    model = Tricked(torch.cat([large, large]), lambda images: lattice(images / 2 + 0.5) * 2 - 1)
    guard, _, _ = run(model, 4, value_range=(-1, 1), folder=tmp_path, batch_size=16)
    assert guard.alarms == 1
    assert [path.name for path in tmp_path.iterdir()] == ["alarm_00000004.png"]
    assert guard.state_dict()["first"].shape == (32, 3, 128, 128)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "either sample= .* or images="),
        ({"images": "x", "sample": lambda n, g: None}, ValueError, "either"),
        ({"images": "x", "action": "shout"}, ValueError, "'warn', 'stop', 'scale'"),
        ({"images": "x", "action": "scale"}, ValueError, "go together"),
        ({"images": "x", "scale": print}, ValueError, "go together"),
        ({"images": "x", "base": nn.Identity()}, TypeError, "name of its images"),
        ({"sample": lambda n, g: None, "base": "before"}, TypeError, "callable"),
        ({"images": "x", "scorer": PSNR()}, ValueError, "reference"),
        ({"images": "x", "scorer": 3}, TypeError, "Scorer"),
        ({"images": "x", "heldout": brightness()}, TypeError, "list"),
        ({"images": "x", "heldout": [brightness(), brightness()]}, ValueError, "called 'brightness'"),
        ({"images": "x", "real_level": 1.0}, ValueError, "real_level"),
        ({"images": "x", "scorer": brightness(), "real_level": math.nan}, ValueError, "real_level"),
        ({"images": "x", "scorer": brightness(), "value_range": (-1, 1)}, ValueError, "ranges"),
        ({"images": "x", "real": "/nowhere"}, ValueError, "not a folder"),
        ({"images": "x", "real": torch.rand(2, 3, 8, 8)}, ValueError, "real has 2 images, and at least 8"),
        ({"images": "x", "patience": 0}, ValueError, "patience"),
        ({"sample": lambda n, g: None, "n": 4}, ValueError, "n must be"),
    ],
)
def test_bad_input(options, error, message):
    with pytest.raises(error, match=message):
        RewardGuard(**options)


def test_mistakes_that_show_in_the_run_switch_it_off(crops):
    for options, message in (
        ({"real": crops[:40, :, :32, :32]}, "bring them to one size"),
        ({"base": lambda n, g: crops[:n, :, :32, :32]}, "same shape"),
        ({"real": iter([crops[72:77]])}, "real has 5 images, and at least 8"),
        ({"real": crops[72:] * 2 - 1}, r"real: values lie in [-1, "),
    ):
        _, _, told = run(Tricked(crops[:72]), 2, **options)
        assert len(told) == 1
        assert message in told[0]
    guard = RewardGuard(sample=Tricked(crops), n=32, extractor=SMALL)
    with pytest.raises(ValueError, match="other samples"):
        guard.load_state_dict({**guard.state_dict(), "seed": 1})


# -- qa-hooks watch ----------------------------------------------------------------------------------------------------


def test_watch_raises_the_alarm_and_goes_on_where_it_was(crops, tmp_path):
    def write(folder, images):
        folder.mkdir(parents=True)
        for index, image in enumerate(to_uint8(images)):
            save_image(image, folder / f"{index:03d}.png")

    write(tmp_path / "real", crops[72:])
    samples = tmp_path / "samples"
    options = {"real": tmp_path / "real", "extractor": SMALL, "metrics": ["kid"], "every": 0.01, "once": True}
    options |= {"guard": True, "log_dir": tmp_path / "log", "say": lambda line: None}
    for step in (1, 2, 3):
        images = crops[step : step + 32]
        write(samples / f"step_{step}", lattice(images) if step == 3 else images)
    assert [a for a in watch_folder(samples, **options).alarms if a["key"].startswith("guard_")] == []
    write(samples / "step_4", lattice(crops[4:36]))
    result = watch_folder(samples, **options)  # a new watcher: the third step's suspicion is remembered
    raised = {alarm["key"]: alarm for alarm in result.alarms if alarm["key"].startswith("guard_")}
    assert raised["guard_peak"]["step"] == 4
    assert "spectral peak over its ring" in raised["guard_peak"]["message"]
    assert "guard_peak" in (tmp_path / "log" / "alarms.jsonl").read_text()
    assert json.loads((tmp_path / "log" / "watch.json").read_text())["steps"]["4"]["guard_spread"] > 0
    with pytest.raises(ValueError, match="needs real images"):
        watch_folder(samples, **{**options, "real": None, "scorers": [brightness()], "log_dir": tmp_path / "l2"})

"""The limits of an alarm rule where the base's images are known, and where they are not: against sums by hand."""

from __future__ import annotations

import math

import pytest
import torch

from qa_hooks.rewards.alarm_rule import CLOSE, KINDS, ODD_DEVIATIONS, TOLERANCE, AlarmRule
from qa_hooks.rewards.alarm_rule import ERROR as ERROR_OF_THE_BENCH
from qa_hooks.rewards.levels import Levels, look_values
from qa_hooks.rewards.measures import nearest_distance

LEVEL = {"brightness": 0.5, "nearest": 10.0, "dark": 0.1}
DEVIATION = {"brightness": 0.5, "dark": 0.1}
ERROR = 0.1
CLOSELY = TOLERANCE * (CLOSE + ERROR) * 0.5  # the width of the brightness against the base


def levels(**more) -> Levels:
    return Levels(LEVEL, {"nearest": 0.5, "dark": 0.05}, DEVIATION, **{"error": ERROR, **more})


def found(rule: AlarmRule, kind: str, *looks: tuple[float, float]) -> list[str]:
    """What is found at the last of looks, each a value and what the base's images have."""
    for value, base in looks:
        rule.look({kind: value, f"change/{kind}": value - base} if not math.isnan(base) else {kind: value})
    return [finding.kind for finding in rule.found]


@pytest.mark.parametrize(
    ("value", "base", "is_found"),
    [
        (0.3 - 0.99 * CLOSELY, 0.3, False),  # the base is darker than real images, and the run is as dark as the base
        (0.3 - 1.01 * CLOSELY, 0.3, True),
        (0.4, 0.3, False),  # on the way to what is real
        (0.5 + 0.99 * CLOSELY, 0.3, False),
        (0.5 + 1.01 * CLOSELY, 0.3, True),  # beyond it
        (0.7 + 1.01 * CLOSELY, 0.7, True),
        (0.7 + 0.99 * CLOSELY, 0.7, False),
        (0.5 - 1.01 * CLOSELY, 0.7, True),
        (math.nan, 0.3, False),
    ],
)
def test_a_run_may_go_from_its_base_to_what_is_real(value, base, is_found):
    assert found(AlarmRule(levels()), "brightness", (value, base)) == ["brightness"] * is_found


def test_the_width_has_the_error_of_both_means_in_it_and_never_less_than_the_least():
    images = {"brightness": torch.rand(200), "features": torch.randn(200, 3)}
    made = Levels.of(images, n=50)
    assert made.error == pytest.approx((1 / 50 + 1 / 200) ** 0.5)
    width = TOLERANCE * (CLOSE + made.error) * float(images["brightness"].std())
    level = made.level["brightness"]
    assert found(AlarmRule(made), "brightness", (level + 0.99 * width, level)) == []
    assert found(AlarmRule(made), "brightness", (level + 1.01 * width, level)) == ["brightness"]
    alike = AlarmRule(Levels({"brightness": 0.5}, {}, {"brightness": 1e-3}))
    least = TOLERANCE * KINDS["brightness"].least
    assert found(alike, "brightness", (0.5 + 0.99 * least, 0.5)) == []
    assert found(alike, "brightness", (0.5 + 1.01 * least, 0.5)) == ["brightness"]


def test_a_tolerance_multiplies_the_widths_against_the_base_alone():
    value = 0.5 + 1.5 * CLOSELY
    assert found(AlarmRule(levels()), "brightness", (value, 0.5)) == ["brightness"]
    assert found(AlarmRule(levels(), tolerance=2 * TOLERANCE), "brightness", (value, 0.5)) == []
    for tolerance in (1.0, 9.0):
        assert found(AlarmRule(levels(), tolerance=tolerance), "dark", (0.1, math.nan), (0.16, math.nan)) == ["dark"]


def test_without_a_base_a_run_from_nothing_may_change_as_it_likes():
    assert found(AlarmRule(levels()), "brightness", (0.5, math.nan), (0.0, math.nan), (1.0, math.nan)) == []


def test_without_real_images_nothing_says_which_way_is_right_and_the_limits_are_wide():
    rule = AlarmRule(levels(source="start"))
    wide = ODD_DEVIATIONS * DEVIATION["brightness"]
    assert found(rule, "brightness", (0.5, 0.5), (0.5 + 0.9 * wide, 0.5)) == []
    assert found(rule, "brightness", (0.5 + 1.1 * wide, 0.5)) == ["brightness"]


def test_samples_that_come_closer_to_each_other_than_base_and_real_ones():
    width = TOLERANCE * KINDS["nearest"].close * LEVEL["nearest"]
    for value, base, is_found in (
        (8.0 - 0.9 * width, 8.0, False),
        (8.0 - 1.1 * width, 8.0, True),
        (10.0 - 0.9 * width, 12.0, False),
        (10.0 - 1.1 * width, 12.0, True),
        (20.0, 12.0, False),
    ):
        assert found(AlarmRule(levels()), "nearest", (value, base)) == ["nearest"] * is_found
    few = AlarmRule(levels(error=2 * ERROR_OF_THE_BENCH))  # of a quarter of the images: twice the width
    assert found(few, "nearest", (8.0 - 1.9 * width, 8.0)) == []
    assert found(few, "nearest", (8.0 - 2.1 * width, 8.0)) == ["nearest"]
    assert found(AlarmRule(levels()), "nearest", (10.0, math.nan), (1.0, math.nan)) == []  # no base
    loose = KINDS["nearest"].least * LEVEL["nearest"]
    for value, is_found in ((10.0 - 0.9 * loose, False), (10.0 - 1.1 * loose, True)):
        assert found(AlarmRule(levels(source="start")), "nearest", (value, 10.0)) == ["nearest"] * is_found


def test_the_nearest_distance_of_real_images_is_of_as_many_as_a_look_has():
    """More images lie closer together, so sets of other sizes cannot be compared."""
    features = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    whole = Levels.of({"features": features}, 12).level["nearest"]
    assert whole == pytest.approx(nearest_distance(features), rel=1e-6)
    assert Levels.of({"features": features}, 6).level["nearest"] > whole


def test_a_finding_says_on_which_side_it_is():
    rule = AlarmRule(levels())
    for value, low in ((0.2, True), (0.8, False)):
        rule.look({"brightness": value, "change/brightness": value - 0.5})
        assert rule.found[0].low is low
        limit = 0.5 - CLOSELY if low else 0.5 + CLOSELY
        assert str(rule.found[0]) == f"brightness {value:.3g}, real 0.5, limit {limit:.3g}"


def test_a_look_has_the_nearest_distance_of_the_base_as_a_change():
    features, base = torch.randn(10, 3), torch.randn(10, 3)
    rows = {"features": features, "base_features": base, "change/detail": torch.arange(10.0)}
    values = look_values(rows, Levels.of({"features": torch.randn(30, 3)}, 10))

    def nearest(x: torch.Tensor) -> float:
        distances = torch.cdist(x.double(), x.double()) + 1e9 * torch.eye(10)
        return float(distances.min(1).values.mean())

    assert values["change/nearest"] == pytest.approx(nearest(features) - nearest(base), rel=1e-6)
    assert values["change/detail"] == 4.5
    assert "base_features" not in values


def test_a_state_of_before_goes_on():
    rule = AlarmRule(levels())
    rule.load_state_dict({"best": {"dark": 0.1}, "start": {"dark": 0.1}, "waited": 1})
    assert [finding.kind for finding in rule.look({"dark": 0.3, "brightness": 0.9})] == ["dark"]
    old = AlarmRule(Levels({"dark": 0.1}, {"dark": 0.05}, {"dark": 0.1}, source="start"))
    assert old.look({"dark": 0.1, "brightness": 0.9, "nearest": 1.0, "change/brightness": 0.5}) == []

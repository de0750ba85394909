"""One pipeline of each family against finite differences; `python -m benchmarks pipelines` has all of them."""

from __future__ import annotations

import pytest

from benchmarks.pipelines import FAMILIES, TOLERANCE, errors
from benchmarks.tiny_pipelines.family import build

pytestmark = [pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_is_the_slope_of_the_last_steps(family):
    """At k = 1, 2 and all steps."""
    pipe, call = build(FAMILIES[family], next(iter(FAMILIES[family].members)))
    found = errors(pipe, call)
    assert len(found) > 1
    assert max(found.values()) < TOLERANCE

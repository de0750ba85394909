"""How long the fuzzing tests look: some hundred fixed examples in the suite, an hour of new ones for `make fuzz`."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

LONG = os.environ.get("QA_HOOKS_FUZZ") == "long"


def effort(suite: int, hour: int, **options: int) -> settings:
    """Settings for a test that takes so many examples in the suite, and in an hour."""
    return settings(
        max_examples=int(os.environ.get("QA_HOOKS_FUZZ_EXAMPLES", hour)) if LONG else suite,
        derandomize=not LONG,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        **options,
    )

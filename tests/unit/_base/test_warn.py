"""A warning points at the user's line, however deep inside the package it arises."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path

import torch

import qa_hooks
from qa_hooks.losses import ScoreLoss
from qa_hooks.scorers import FunctionScorer, RankScorer, create_scorer
from qa_hooks.scorers.calibration import Calibration


def lines_of_warnings(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    ours = (__file__, str(Path(qa_hooks.__file__).parent))
    return {(warning.filename, warning.lineno) for warning in caught if warning.filename.startswith(ours)}


def test_it_is_the_callers_line(tmp_path):
    images = torch.rand(60, 3, 24, 24)
    open_ended = FunctionScorer(lambda x: x.mean((1, 2, 3)), name="bright", higher_is_better=True)
    calls = [
        lambda: ScoreLoss(open_ended),
        lambda: ScoreLoss(open_ended, ceiling=1.0, balance=5.0),
        lambda: RankScorer().fit(images, steps=1, crop=16, crops=2, progress=False),
        lambda: create_scorer("giqa-gmm", fit=images, extractor="random"),
    ]
    for call in calls:
        assert lines_of_warnings(call) == {(__file__, inspect.getsourcelines(call)[1])}


def test_a_calibration_that_fails_is_no_warning():
    assert not lines_of_warnings(lambda: Calibration.fit(torch.arange(50.0)))

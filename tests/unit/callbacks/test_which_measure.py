"""What a monitor's value is a measure of, in `best.json`, in tags and on the page."""

from __future__ import annotations

import json

import pytest
import torch

from qa_hooks import FunctionScorer, Hooks, PerceptionDistortion, ScoreMonitor, create_scorer
from qa_hooks.callbacks import BestCheckpoint, ScoreHistogram, ScorePanel
from qa_hooks.folders.reporting.report import report_runs

LUMA = {"type": "psnr", "channel": "y", "crop_border": 2}


def contrast(name="contrast"):
    return FunctionScorer(lambda images: images.std((1, 2, 3)), name=name, higher_is_better=True)


def sample(n, generator):
    return torch.rand(n, 3, 16, 16, generator=generator)


def kept(monitor, metric, folder, log="."):
    """What `best.json` says after a step."""
    best = BestCheckpoint(monitor, metric, save=lambda path: path.write_text("weights"), folder=folder / "best")
    pred = torch.rand(2, 3, 16, 16)
    with Hooks([monitor, best], log_dir=folder / log) as hooks:
        hooks.step(pred=pred, target=pred.flip(3))
    return json.loads((folder / "best" / "best.json").read_text())


@pytest.mark.parametrize(("metric", "measure"), [("distortion", "psnr_y_crop2"), ("perception", "contrast")])
def test_the_axis_that_a_checkpoint_is_kept_by_is_named(tmp_path, metric, measure):
    axes = contrast(), create_scorer(LUMA)
    found = kept(PerceptionDistortion(*axes, images="pred", reference="target"), metric, tmp_path)
    assert found["metric"] == metric
    assert found["spec"].startswith(f"{measure}[")
    report_runs([tmp_path], tmp_path / "page.html")
    assert f"best {metric} of {measure} at step 1" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("kind", [ScoreMonitor, ScorePanel, ScoreHistogram])
def test_every_monitor_of_a_scorer_says_which(kind, tmp_path):
    more = {"real": torch.rand(8, 3, 16, 16)} if kind is ScoreHistogram else {}
    monitor = kind(scorer=contrast(), sample=sample, n=4, **more)
    assert kept(monitor, "mean", tmp_path)["spec"] == f"contrast[{contrast().fingerprint[:4]}]"


def test_a_value_of_another_measure_is_not_compared(tmp_path):
    kept(ScoreMonitor(create_scorer("psnr"), images="pred", reference="target", name="valid"), "mean", tmp_path)
    other = ScoreMonitor(create_scorer(LUMA), images="pred", reference="target", name="valid")
    with (
        pytest.warns(UserWarning, match="no state was loaded"),
        pytest.warns(UserWarning, match=r"value of psnr\[....\], and this one is of psnr_y_crop2\["),
    ):
        kept(other, "mean", tmp_path, log="other")


def test_two_axes_of_one_name_are_refused():
    reference = FunctionScorer(
        lambda images, reference: (images - reference).abs().mean((1, 2, 3)),
        name="contrast", higher_is_better=False, inputs={"reference"},
    )  # fmt: skip
    with pytest.raises(ValueError, match="both axes are called 'contrast'"):
        PerceptionDistortion(contrast(), reference, images="pred", reference="target")

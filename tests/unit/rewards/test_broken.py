"""Images that show nothing are named: by the rule, in NaNGuard, in RewardGuard and beside a run."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from qa_hooks.callbacks import Hooks, NaNGuard, RewardGuard
from qa_hooks.folders import watch_folder
from qa_hooks.images import save_image, to_uint8
from qa_hooks.rewards.broken import broken_images, broken_message
from qa_hooks.scorers import FunctionScorer


def rand(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def kind_of(image: list[list[list[float]]], low: float, high: float) -> str:
    """The rule, pixel by pixel."""
    step = (high - low) / 255
    if any(not math.isfinite(v) for plane in image for row in plane for v in row):
        return "nonfinite"
    planes = [[v for row in plane for v in row] for plane in image]
    if any(max(plane) - min(plane) > step for plane in planes):
        return ""
    return "black" if all(max(plane) <= low + step for plane in planes) else "constant"


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)])
def test_each_image_is_of_the_kind_that_a_loop_finds(low, high):
    span = high - low
    images = low + span * rand(12, 3, 6, 5)
    images[1] = low
    images[2] = low + 0.9 * span / 255 * rand(3, 6, 5)  # rounds to black
    images[3] = high
    images[4] = low + span * torch.tensor([0.2, 0.5, 0.9])[:, None, None]  # one colour
    images[5] = low
    images[5, 1, 2, 2] = low + 2 * span / 255  # one bright pixel
    images[6, 0, 0, 0] = math.nan
    images[7, 2] = math.inf
    images[8, :2] = low  # two black channels
    images[9, :, :3] = low  # half an image
    found = broken_images(images, (low, high))
    for index, image in enumerate(images.tolist()):
        assert [kind for kind, which in found.items() if which[index]] == [k for k in [kind_of(image, low, high)] if k]
    assert {kind: int(which.sum()) for kind, which in found.items()} == {"nonfinite": 2, "black": 2, "constant": 2}


def test_whole_numbers_and_one_pixel():
    images = torch.zeros(3, 1, 4, 4, dtype=torch.uint8)
    images[1], images[2, 0, 0, 0] = 255, 2
    found = broken_images(images)
    assert found["black"].tolist() == [True, False, False]
    assert found["constant"].tolist() == [False, True, False]
    assert not any(which.any() for which in broken_images(torch.zeros(2, 3, 1, 1)).values())


def test_the_message_counts():
    assert broken_message({"black": 0.0}, 8) is None
    message = broken_message({"nonfinite": 0.5, "black": 0.25, "constant": 0.125}, 8)
    assert message.startswith(
        "4 of 8 images are not finite (NaN or infinite), 2 of 8 images are black, 1 of 8 images are"
    )
    assert "float16" in message


def step_with(guard, images) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Hooks([guard]) as hooks:
            for _ in range(2):
                hooks.step(**images)
    return [str(warning.message) for warning in caught]


def test_nan_guard_looks_at_images_that_are_handed_over():
    dead = rand(4, 3, 8, 8)
    dead[:2] = 0
    told = step_with(NaNGuard(every=1), {"fake": dead, "real": rand(4, 3, 8, 8)})
    assert len([text for text in told if "step 1, images 'fake': 2 of 4 images are black" in text]) == len(told) == 1
    dead[1] = 0.3 * rand(3, 8, 8)  # one of four: a night is no accident
    assert step_with(NaNGuard(every=1), {"fake": dead}) == []
    dead[3, 0, 0, 0] = math.nan
    guard = NaNGuard(every=1)
    assert any("images 'fake' is not finite" in text for text in step_with(guard, {"fake": dead}))
    assert guard.found == 2
    with Hooks([NaNGuard(action="stop")]) as hooks, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hooks.step(fake=dead)
        assert hooks.should_stop


def test_reward_guard_names_them_at_the_first_look():
    images = rand(8, 3, 32, 32)

    def sample(n, generator):
        made = images[:n].clone()
        made[0], made[1] = 0, 0.5
        return made

    guard = RewardGuard(sample=sample, real=rand(16, 3, 32, 32), n=8, every=1)
    told = step_with(guard, {})
    assert len([text for text in told if "1 of 8 images are black, 1 of 8 images are of one colour" in text]) == 1
    assert guard.last["black"] == guard.last["constant"] == 0.125
    again = RewardGuard(sample=sample, real=rand(16, 3, 32, 32), n=8, every=1)
    again.load_state_dict(guard.state_dict())
    assert not [text for text in step_with(again, {}) if "black" in text]  # said before


def test_a_watched_run_raises_the_alarm(tmp_path):
    folder = tmp_path / "samples"
    for step in (100, 200):
        for index in range(4):
            image = rand(3, 16, 16) if index or step == 100 else torch.zeros(3, 16, 16)
            (folder / f"step_{step}").mkdir(parents=True, exist_ok=True)
            save_image(to_uint8(image), folder / f"step_{step}" / f"{index}.png")
    bright = FunctionScorer(lambda x: x.mean((1, 2, 3)), name="bright", higher_is_better=True, score_range=(0, 1))
    watched = watch_folder(folder, scorers=bright, once=True, every=0.01, log_dir=tmp_path / "log")
    assert [(alarm["step"], alarm["key"]) for alarm in watched.alarms] == [(200, "broken")]
    assert "1 of 4 images are black" in watched.alarms[0]["message"]

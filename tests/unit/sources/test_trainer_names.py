"""The step in the names of samples, for each trainer of docs/trainers.md, and a watch of a folder in its shape."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
import torch

from qa_hooks.folders import watch_folder
from qa_hooks.images import save_image, to_uint8
from qa_hooks.scorers import FunctionScorer
from qa_hooks.sources.snapshots import list_snapshots, step_of


def sd_scripts(step: int, prompt: int, *, name: str = "a_cat_v2", seed: int | None = 42, suffix: str = "") -> str:
    """`sample/` of sd-scripts (library/train_util.py, sample_image_inference)."""
    moment = time.strftime("%Y%m%d%H%M%S", time.gmtime(1_767_000_000 + step))
    seeded = "" if seed is None else f"_{seed}"
    return f"{name + '_' if name else ''}{step:06d}_{prompt:02d}_{moment}{seeded}{suffix}.png"


def one_trainer(step: int, prompt: int) -> str:
    """`samples/` of OneTrainer (modules/trainer/GenericTrainer.py)."""
    moment = time.strftime("%Y-%m-%d_%H-%M-%S", time.gmtime(1_767_000_000 + step))
    return f"{prompt} - a photo of 2 cats/{moment}-training-sample-{step}-{step // 300}-{step % 300}.jpg"


def ai_toolkit(step: int, prompt: int) -> str:
    """`samples/` of ai-toolkit (jobs/process/BaseSDTrainProcess.py)."""
    return f"{1_767_000_000_000 + 60_000 * step + prompt}__{step:09d}_{prompt}.jpg"


def simple_tuner(step: int, prompt: int) -> str:
    """`validation_images/` of SimpleTuner (simpletuner/helpers/training/validation_images.py)."""
    return f"step_{step}_prompt_{prompt}_step_7_0_1024x1024.png"


SHAPES = {
    "sd-scripts": sd_scripts,
    "sd-scripts without a name": lambda step, prompt: sd_scripts(step, prompt, name="", seed=None),
    "sd-scripts, epochs": lambda step, prompt: sd_scripts(step, prompt).replace(f"_{step:06d}", f"_e{step:06d}"),
    "musubi-tuner": lambda step, prompt: sd_scripts(step, prompt, suffix="_000"),
    "OneTrainer": one_trainer,
    "ai-toolkit": ai_toolkit,
    "SimpleTuner": simple_tuner,
    "own loop": lambda step, prompt: f"step_{step:06d}/{prompt:04d}.png",
}


@pytest.mark.parametrize("name_of", SHAPES.values(), ids=list(SHAPES))
def test_the_step_is_read_from_any_name(name_of):
    rng = random.Random(0)
    for _ in range(200):
        step, prompt = rng.choice([0, rng.randrange(1000), rng.randrange(5_000_000)]), rng.randrange(30)
        assert step_of(Path(name_of(step, prompt))) == step


@pytest.mark.parametrize("name_of", SHAPES.values(), ids=list(SHAPES))
def test_a_folder_of_this_shape_is_watched(name_of, tmp_path):
    """Images get brighter until step 300; one of step 400 is black, as after an overflow."""
    folder = tmp_path / "samples"
    for step, level in ((100, 0.3), (200, 0.5), (300, 0.6), (400, 0.2)):
        for prompt in range(3):
            path = folder / name_of(step, prompt)
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = torch.rand(3, 24, 24, generator=torch.Generator().manual_seed(10 * step + prompt))
            save_image(to_uint8(0 * noise if (step, prompt) == (400, 1) else level + 0.2 * noise), path)
            path.with_suffix(".txt").write_text("a prompt")
    (folder / ".tmp").mkdir()
    save_image(to_uint8(torch.zeros(3, 24, 24)), folder / ".tmp" / Path(name_of(500, 0)).name)
    assert sorted(set(list_snapshots(folder)[1])) == [100, 200, 300, 400]
    bright = FunctionScorer(lambda x: x.mean((1, 2, 3)), name="bright", higher_is_better=True, score_range=(0, 1))
    watched = watch_folder(
        folder, scorers=bright, once=True, every=0.01, log_dir=tmp_path / "watch", alarms=["bright<0.35"]
    )
    assert {step: int(values["n"]) for step, values in watched.steps.items()} == dict.fromkeys((100, 200, 300, 400), 3)
    assert watched.best["step"] == 300
    assert [(alarm["step"], alarm["key"]) for alarm in watched.alarms] == [(400, "broken"), (400, "bright")]

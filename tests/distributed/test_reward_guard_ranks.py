"""Two processes measure, alarm, draw, scale and stop as one does, also when one of them fails."""

from __future__ import annotations

import warnings
from functools import partial

import torch
from ranks import two_ranks

from qa_hooks.callbacks import Hooks, RewardGuard
from qa_hooks.writers import MemoryWriter
from toy_scorers import brightness

SMALL = {"type": "random", "width": 4}


def smooth(n: int, generator: torch.Generator) -> torch.Tensor:
    coarse = torch.rand(n, 3, 6, 6, generator=generator)
    return torch.nn.functional.interpolate(coarse, scale_factor=4, mode="bicubic").clamp(0, 1)


def run(rank: int, world: int, *, n: int = 20, action: str = "warn", real: bool = True, broken: bool = False) -> dict:
    writer, scaled, clock = MemoryWriter(), [], [0]

    def sample(count: int, generator: torch.Generator) -> torch.Tensor:
        if broken and rank == 1:
            raise OSError("the decoder is gone")
        images = smooth(count, generator)
        wave = torch.cos(torch.pi * torch.arange(24))
        return (images + 0.2 * wave).clamp(0, 1) if clock[0] > 2 else images

    images = smooth(60, torch.Generator().manual_seed(9)) if real else None
    guard = RewardGuard(
        brightness(), sample=sample, every=1, n=n, batch_size=8, real=images, extractor=SMALL, action=action,
        scale=scaled.append if action == "scale" else None,
    )  # fmt: skip
    hooks = Hooks([guard], writer=writer)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for clock[0] in range(1, 7):
            hooks.step()
            if hooks.should_stop:
                break
    state = guard.state_dict()
    return {
        "steps": hooks.step_count,
        "last": guard.last,
        "alarms": guard.alarms,
        "found": [str(finding) for finding in guard.found],
        "scaled": scaled,
        "state": {key: state[key] for key in ("rule", "first", "told")},
        "scalars": {tag: points for tag, points in writer.scalars.items() if "perf" not in tag},
        "images": {tag: [picture for _, picture in pictures] for tag, pictures in writer.images.items()},
        "warnings": [str(warning.message) for warning in caught],
    }


def same(a: dict, b: dict) -> bool:
    if a.keys() != b.keys():
        return False
    return all(
        torch.equal(value, b[key]) if isinstance(value, torch.Tensor) else value == b[key] for key, value in a.items()
    )


def check(tmp_path, **options) -> dict:
    (tmp_path / "ranks").mkdir(exist_ok=True)
    first, second = two_ranks(partial(run, world=2, **options), tmp_path / "ranks")
    alone = run(0, 1, **options)
    for key in ("steps", "last", "alarms", "found", "scaled"):
        assert alone[key] == first[key] == second[key], key
    assert same(alone["state"], first["state"])
    assert same(alone["state"], second["state"])
    assert alone["scalars"] == first["scalars"]
    assert second["scalars"] == {}
    assert alone["images"].keys() == first["images"].keys()
    for tag, pictures in alone["images"].items():
        assert all(torch.equal(a, b) for a, b in zip(pictures, first["images"][tag], strict=True))
    assert alone["warnings"] == first["warnings"]
    return alone


def test_two_ranks_are_as_one(tmp_path):
    assert check(tmp_path)["alarms"] == 3


def test_a_rank_without_samples_and_no_real_images(tmp_path):
    assert check(tmp_path, n=8, real=False)["alarms"] == 3


def test_they_stop_together(tmp_path):
    assert check(tmp_path, action="stop")["steps"] == 4


def test_they_scale_together(tmp_path):
    assert check(tmp_path, action="scale")["scaled"] == [4, 6]


def handed_over(rank: int, world: int) -> dict:
    """Batches of 4, of which each process has its share, gathered into looks of 16."""
    options = {"images": "fake", "every": 1, "n": 16, "patience": 1, "extractor": SMALL}
    guard = RewardGuard(brightness(), action="stop", **options)
    looks, images = [], smooth(80, torch.Generator().manual_seed(9)).split(4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hooks = Hooks([guard])
        for step, batch in enumerate(images, 1):
            batch = (batch + 0.2 * torch.cos(torch.pi * torch.arange(24))).clamp(0, 1) if step > 9 else batch
            hooks.step(**({} if step == 2 else {"fake": batch[rank::world]}))
            looks.append(dict(guard.last))
            if hooks.should_stop:
                break
    return {"looks": looks, "alarms": guard.alarms, "step": hooks.step_count}


def test_images_of_the_loop_are_gathered_from_both(tmp_path):
    first, second = two_ranks(partial(handed_over, world=2), tmp_path)
    assert first == second == handed_over(0, 1)
    assert (first["alarms"], first["step"]) == (1, 13)


def test_a_failure_on_one_switches_all_off(tmp_path):
    first, second = two_ranks(partial(run, world=2, broken=True), tmp_path)
    assert [result["alarms"] for result in (first, second)] == [0, 0]
    assert len(first["warnings"]) == 1
    assert "the decoder is gone (on rank 1)" in first["warnings"][0]

"""Folders of snapshots: how their steps are read, and how the collector writes them."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from qa_hooks.callbacks import Hooks, SnapshotCollector
from qa_hooks.sources.snapshots import list_snapshots, step_of

NAMES = {
    "00001000.png": 1000,
    "step_1000/0003.png": 1000,
    "step_00000001/0049.png": 1,
    "fakes000200.png": 200,
    "00007-stylegan2-mnist/fakes000200.png": 200,
    "network-snapshot-000200.png": 200,
    "iter-5/17.png": 5,
    "1000/0003.png": 1000,
    "seed0/step_1000/0003.png": 1000,
    "seed0/fake_samples_epoch_003.png": 3,
    "epoch=3-step=1000.png": 1000,
    "checkpoint-500/validation_0.png": 500,
    "web/images/epoch005_fake_A.png": 5,
    "baboon/baboon_5000.png": 5000,
    "0801/0801_5000.png": 5000,
    "gen7/best.png": 7,
    "Iteration 12/a.png": 12,
    "global_step40_2.jpg": 40,
}


@pytest.mark.parametrize("name", NAMES)
def test_steps_are_read_from_the_names_that_trainers_write(name):
    assert step_of(name) == NAMES[name]


@pytest.mark.parametrize("name", ["best.png", "samples/reals.png"])
def test_a_name_without_a_step_is_named_in_the_error(name):
    with pytest.raises(ValueError, match=rf"{name} has no step in its name; expected .*step_1000/0003.png"):
        step_of(name)


def test_two_numbers_that_could_both_be_the_step_are_not_guessed_at():
    with pytest.raises(ValueError, match=r"seed0/00001000.png has a number .* which is the step"):
        step_of("seed0/00001000.png")


def write(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8), value, dtype=np.uint8)).save(path)


def test_listing_leaves_out_unfinished_folders_and_says_what_else(tmp_path):
    for name in ("step_2/0.png", "step_10/0.png", ".step_00000020.partial/0.png"):
        write(tmp_path / name)
    paths, steps = list_snapshots(tmp_path)
    assert steps == [int(path.parent.name[5:]) for path in paths]
    assert sorted(steps) == [2, 10]
    write(tmp_path / "reals.png")
    with pytest.warns(UserWarning, match=r"1 image of .* left out, .*reals.png has no step"):
        assert sorted(list_snapshots(tmp_path)[1]) == [2, 10]


def test_listing_a_folder_without_snapshots_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="holds no image files"):
        list_snapshots(tmp_path)
    write(tmp_path / ".step_00000020.partial" / "0.png")
    with pytest.raises(ValueError, match="holds no image files"):
        list_snapshots(tmp_path)
    write(tmp_path / "reals.png")
    with pytest.raises(ValueError, match="has no step in its name"):
        list_snapshots(tmp_path)
    with pytest.raises(ValueError, match="not a folder"):
        list_snapshots(tmp_path / "nowhere")


def noise(n, generator):
    return torch.rand(n, 1, 8, 8, generator=generator) * 2 - 1


def collect(folder, steps, sample=noise, **options):
    options = {"every": 2, "n": 3, "value_range": (-1, 1), **options}
    hooks = Hooks([SnapshotCollector(sample, folder=folder, **options)])
    for _ in range(steps):
        hooks.step()
    hooks.close()
    return hooks


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def test_the_collector_writes_what_the_model_makes(tmp_path):
    images = torch.arange(70)[:, None, None, None].expand(-1, 3, 8, 9) / 127.5 - 1  # image k is all grey level k
    calls = iter([images[:64], images[64:]])
    collect(tmp_path, 1, lambda n, generator: next(calls), n=70)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000001"]
    for k in range(70):
        picture = np.asarray(Image.open(tmp_path / "step_00000001" / f"{k:04d}.png"))
        assert picture.shape == (8, 9, 3)
        assert (picture == k).all()


def test_each_step_has_its_own_noise_and_each_run_the_same(tmp_path):
    collect(tmp_path / "a", 4)
    collect(tmp_path / "b", 4)
    collect(tmp_path / "c", 4, seed=1)
    first = contents(tmp_path / "a")
    assert [name.split("/")[0] for name in first] == [f"step_{k:08d}" for k in (1, 2, 4) for _ in range(3)]
    assert first == contents(tmp_path / "b")
    assert len({*first.values(), *contents(tmp_path / "c").values()}) == 18
    assert list_snapshots(tmp_path / "a")[1] == [1] * 3 + [2] * 3 + [4] * 3


@pytest.mark.filterwarnings("ignore:.*already holds")
def test_a_step_is_replaced_whole_and_leaves_nothing_behind(tmp_path):
    collect(tmp_path, 2, n=5)
    collect(tmp_path, 2, n=3, seed=7)
    assert len(list((tmp_path / "step_00000002").iterdir())) == 3
    collect(tmp_path / "fresh", 2, n=3, seed=7)
    expected = contents(tmp_path / "fresh")
    shutil.rmtree(tmp_path / "fresh")
    assert contents(tmp_path) == expected
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("fault", ["raises", "nan", "shape"])
def test_a_failure_never_shows_half_a_step_and_never_stops_training(tmp_path, fault):
    calls = []

    def sample(n, generator):
        calls.append(n)
        if len(calls) == 2 and fault == "raises":
            raise OSError("no memory left")
        images = noise(n, generator)
        return {"nan": images * float("nan"), "shape": images[:, 0]}.get(fault, images)

    with pytest.warns(UserWarning, match="switched off"):
        hooks = collect(tmp_path, 3, sample, n=70)
    assert hooks.step_count == 3
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith(".")]


def test_keep_thins_evenly_and_touches_nothing_else(tmp_path):
    write(tmp_path / "step_best" / "0.png")
    collect(tmp_path, 40, keep=6)
    steps = sorted(int(path.name[5:]) for path in tmp_path.glob("step_0*"))
    assert len(steps) == 6
    assert (steps[0], steps[-1]) == (1, 40)
    assert np.diff(steps).max() <= 2 * 39 / 5  # twice what equal gaps would have
    assert (tmp_path / "step_best" / "0.png").exists()


def test_the_one_nearest_to_its_neighbours_goes(tmp_path):
    """Of steps at unequal distances: the gap that is left by the one that goes is the smallest possible."""
    hooks = Hooks([SnapshotCollector(noise, folder=tmp_path, every=1, n=1, value_range=(-1, 1), keep=4)])
    kept = []
    for step in (1, 2, 10, 13, 30, 40):
        hooks.step(step)
        kept.append([int(path.name[5:]) for path in sorted(tmp_path.glob("step_*"))])
    hooks.close()
    assert kept[3:] == [[1, 2, 10, 13], [1, 10, 13, 30], [1, 13, 30, 40]]


def test_the_run_is_left_alone(tmp_path):
    net = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.BatchNorm1d(64), torch.nn.Unflatten(1, (1, 8, 8)))
    modes = []
    net.register_forward_hook(lambda module, args, output: modes.append((module.training, torch.is_grad_enabled())))
    state, before = torch.get_rng_state(), {k: v.clone() for k, v in net.state_dict().items()}
    collect(tmp_path, 1, lambda n, generator: net(torch.randn(n, 4) * 0.1))
    assert modes == [(False, False)]
    assert net.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_folder_of_another_run_is_noticed_and_an_own_one_is_not(tmp_path):
    hooks = collect(tmp_path, 4)
    with pytest.warns(UserWarning, match=r"already holds step_00000004, and this run is at step \d+"):
        collect(tmp_path, 1)
    resumed = Hooks([SnapshotCollector(noise, folder=tmp_path, every=2, n=3, value_range=(-1, 1))])
    resumed.load_state_dict(hooks.state_dict())
    resumed.step()
    resumed.step()
    resumed.close()
    assert (tmp_path / "step_00000006" / "0002.png").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"n": 0}, "n must be"), ({"every": 0}, "every must be"), ({"keep": 1}, "keep must be"),
     ({"value_range": (1, 0)}, "value_range must be")],
)  # fmt: skip
def test_options_are_checked(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        SnapshotCollector(noise, folder=tmp_path, **options)
    with pytest.raises(TypeError, match="sample must be callable"):
        SnapshotCollector(None, folder=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"folder=.* cannot be written"):
        SnapshotCollector(noise, folder=tmp_path / "file")

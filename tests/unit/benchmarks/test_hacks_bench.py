"""The bench of hacks: what it shows to a guard, what counts as in time, and that it goes on where it was."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from benchmarks import hack_limits, hacks
from benchmarks.hack_kinds import COLOURED, HACKS, hacked
from benchmarks.hack_runs import GENERATORS, TINY
from qa_hooks.features import create_extractor
from qa_hooks.functional import ssim
from qa_hooks.images import save_image


@pytest.mark.parametrize("hack", HACKS)
def test_a_hack_begins_with_nothing_and_changes_more_and_more(hack, photographs):
    images = photographs[:, :, :72, :72]
    before = images.clone()
    assert torch.equal(hacked(images, hack, 0.0), images)
    changes = [float((hacked(images, hack, strength) - images).abs().mean()) for strength in (0.05, 0.5, 1.0)]
    assert changes[0] < changes[1] < changes[2]
    assert changes[2] > 0.005
    full = hacked(images, hack, 1.0)
    assert full.shape == images.shape
    assert 0 <= full.min() <= full.max() <= 1
    assert torch.equal(images, before)
    assert torch.equal(full, hacked(images, hack, 1.0))


@pytest.mark.parametrize("hack", [hack for hack in HACKS if hack not in COLOURED])
def test_grey_digits_can_be_hacked(hack):
    images = torch.rand(12, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(hacked(images, hack, 1.0), images)


def stored(count=5):
    """The same 12 photograph-like images at each look."""
    image = torch.randint(0, 256, (12, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return image.expand(count, -1, -1, -1, -1)


def test_a_guard_sees_the_hack_grow_and_nothing_of_it_in_an_honest_run():
    looks, seen = stored(), []
    guard = lambda images: seen.append(images) or len(seen) == 4  # noqa: E731
    assert hacks.first_alarm(guard, looks, "darkening") == 3
    for number, images in enumerate(seen):
        wanted = looks[0].float() / 255 * (1 - 0.7 * number / 4)
        torch.testing.assert_close(images, wanted, rtol=0, atol=0.5 / 255 + 1e-6)
    seen.clear()
    assert hacks.first_alarm(lambda images: bool(seen.append(images)), looks, hacks.HONEST) is None
    assert all(torch.equal(images, looks[0].float() / 255) for images in seen)
    assert len(seen) == 5


@pytest.mark.parametrize("hack", ["darkening", "salt", "mode collapse"])
def test_too_late_is_where_ssim_or_recall_has_fallen_first(hack):
    looks = stored(21)
    clean, extractor = looks[0].float() / 255, create_extractor("random")

    def fallen(number):
        images = hacks.images_of(looks, hack, number)
        distances = torch.cdist(extractor(clean), extractor(images))
        own = torch.cdist(extractor(images), extractor(images)).kthvalue(4, 1).values  # itself and three others
        recall = (distances <= own).any(1).float().mean()
        return float(ssim(images, clean).mean()) <= 0.8 or float(recall) <= 0.8

    wanted = next((number for number in range(21) if fallen(number)), None)
    assert hacks.too_late(looks, hack) == wanted
    assert (wanted is None) == (hack == "salt")  # of noise 6 % can be salt


def test_in_time_is_not_after_the_look_where_it_shows():
    late = 7
    result = {"alarms": {"a": late, "b": late + 1, "c": None}, "too late": late, "looks": 21}
    assert [hacks.in_time(result, guard) for guard in "abc"] == [True, False, False]
    never = {**result, "too late": None}
    assert [hacks.in_time(never, guard) for guard in "abc"] == [True, True, False]


def test_the_tasks_are_all_there_once_and_grey_images_have_no_colour_hacks():
    found = [task.key for task in hacks.tasks(list(GENERATORS), 2, 3)]
    assert len(found) == len(set(found)) == 2 * (16 + 14 + 14) + 3 * 3
    assert not [key for key in found if "GAN" in key and "colour" in key]


@pytest.fixture
def quick(monkeypatch):
    """Runs that are there already, and two hacks."""
    monkeypatch.setattr(hacks, "trajectory", lambda *_: {"looks": stored(), "real": stored()[0]})
    monkeypatch.setattr(hacks, "scorers", lambda *_: [])
    monkeypatch.setattr(hacks, "HACKS", {name: HACKS[name] for name in ("darkening", "salt")})


def test_it_goes_on_where_it_was_and_takes_a_guard_of_ones_own(tmp_path, quick, monkeypatch):
    (tmp_path / "my_guard.py").write_text(
        "made = []\n"
        "def make(real, base, scorers):\n"
        "    made.append(base.shape)\n"
        "    return lambda images: bool(images.mean() < 0.8 * base.mean())\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    command = ["--tiny", "--out", str(tmp_path), "--generators", "GAN", "--guard", "my_guard:make", "--seeds", "1"]
    hacks.main([*command, "--honest", "1", "--hours", "1e-9"])
    path = next(tmp_path.glob("guard-*/**/results.json"))
    assert json.loads(path.read_text())["found"] == {}
    hacks.main([*command, "--honest", "1"])
    found = json.loads(path.read_text())["found"]
    alarms = {key: result["alarms"]["my_guard:make"] for key, result in found.items()}
    assert alarms == {"GAN/honest/0": None, "GAN/darkening/0": 2, "GAN/salt/0": None}
    assert len(sys.modules["my_guard"].made) == 3
    hacks.main([*command, "--honest", "2"])
    assert len(sys.modules["my_guard"].made) == 4
    page = path.with_suffix(".md").read_text()
    assert "| all hacks | " in page
    assert "0 of 2 (0.00-0.66)" in page


def test_stored_runs_of_other_photographs_are_refused(tmp_path, quick, capsys):
    command = ["--tiny", "--out", str(tmp_path), "--generators", "GAN", "--seeds", "1", "--honest", "1"]
    hacks.main([*command, "--hours", "1e-9"])
    (tmp_path / "photos").mkdir()
    for number in range(10):
        save_image(torch.zeros(3, 8, 8, dtype=torch.uint8), tmp_path / "photos" / f"{number}.png")
    with pytest.raises(SystemExit):
        hacks.main([*command, "--data", str(tmp_path / "photos")])
    assert "results of other settings (data None, now" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "arguments", "words"),
    [
        (hacks, ["--guard", "nothing"], "module:function"),
        (hacks, ["--guard", "no_such_module:make"], "cannot be imported"),
        (hacks, ["--guard", "math:pi"], "cannot be called"),
        (hacks, ["--hours", "0"], "more than 0"),
        (hacks, ["--data", "no_such_folder"], "no_such_folder"),
        (hacks, ["--out", __file__], "cannot be written"),
        (hacks, ["--generators", "VAE"], "invalid choice"),
        (hack_limits, ["--tolerances", "0"], "more than 0"),
        (hack_limits, ["--patience", "0"], "at least 1"),
        (hack_limits, ["--without", "everything"], "invalid choice"),
        (hack_limits, ["--half", "both"], "invalid choice"),
    ],
)
def test_what_cannot_be_run_is_said(command, arguments, words, tmp_path, capsys):
    with pytest.raises(SystemExit):
        command.main(["--out", str(tmp_path), *arguments])
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("generator", list(GENERATORS))
@pytest.mark.slow
def test_an_honest_run_of_each_generator_is_stored_once(generator, tmp_path):
    from benchmarks.hack_runs import trajectory

    first = trajectory(tmp_path, generator, 0, TINY, None)
    assert first["looks"].shape[0] == TINY.looks
    assert first["looks"].dtype == first["real"].dtype == torch.uint8
    assert not torch.equal(first["looks"][0], first["looks"][-1])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = trajectory(tmp_path, generator, 0, TINY, None)
    assert torch.equal(first["looks"], again["looks"])
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before

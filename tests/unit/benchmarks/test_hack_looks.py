"""The bench of hacks measures each look once: what it makes of it is what RewardGuard says, and limits can be tried."""

from __future__ import annotations

import warnings

import pytest
import torch

from benchmarks import hack_limits, hacks
from benchmarks.hack_kinds import CHOSEN_ON, HACKS, LATER
from benchmarks.hack_looks import GUARDS, HONEST, Measured, measure_run, read_measured, write_measured
from qa_hooks.callbacks import Hooks, RewardGuard
from qa_hooks.rewards.levels import Levels
from qa_hooks.scorers import FunctionScorer


def brightness(sign: float, name: str) -> FunctionScorer:
    return FunctionScorer(lambda x: sign * x.mean((1, 2, 3)), name=name, higher_is_better=True)


SCORERS = [brightness(1, "a"), brightness(-1, "b"), brightness(-2, "c")]


@pytest.fixture(scope="module")
def run(photographs) -> tuple[torch.Tensor, torch.Tensor]:
    """12 looks at the same 16 pieces of photographs, a little brighter each time, and 40 other pieces."""
    pieces = photographs.unfold(2, 40, 36).unfold(3, 40, 36).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
    pieces = pieces[torch.randperm(len(pieces), generator=torch.Generator().manual_seed(0))]
    looks = torch.stack([(pieces[:16] * (0.98 + 0.001 * look) * 255).round().to(torch.uint8) for look in range(12)])
    return looks, pieces[40:80]


def alarm_of_reward_guard(run, hack: str, name: str) -> int | None:
    looks, real = run
    known, shown = GUARDS[name], [hacks.images_of(looks, hack, 0)]
    base = shown[0]
    options = {"base": lambda n, _: base[:n]} if known.base else {}
    if known.scorers:
        options |= {"scorer": SCORERS[0], "heldout": SCORERS[1:]}
    guard = RewardGuard(sample=lambda n, _: shown[0][:n], real=real, n=16, every=1, value_range=(0, 1), **options)
    with warnings.catch_warnings(), Hooks([guard]) as hooks:
        warnings.simplefilter("ignore")
        for number in range(len(looks)):
            shown[0] = hacks.images_of(looks, hack, number)
            hooks.step()
            if guard.alarms:
                return number
    return None


@pytest.mark.parametrize("hack", [HONEST, "darkening", "mode collapse"])
def test_a_replay_of_stored_numbers_says_what_the_guard_says(run, hack, tmp_path):
    measured = measure_run(*run, hack, SCORERS)
    write_measured(tmp_path / "run.json", measured)
    again = read_measured(tmp_path / "run.json")
    assert again.looks == measured.looks
    assert (again.late is None) == (hack == HONEST)
    alarms = {name: again.alarm(known) for name, known in GUARDS.items()}
    assert alarms == {name: alarm_of_reward_guard(run, hack, name) for name in GUARDS}
    assert (alarms["real images and base"] is None) == (hack == HONEST)


def test_halves_have_no_run_in_common_and_limits_are_chosen_on_six_hacks():
    everything = list(hacks.tasks(["super-resolution", "GAN"], 4, 6))
    parts = {half: list(hacks.tasks(["super-resolution", "GAN"], 4, 6, half)) for half in ("choose", "report")}
    assert not set(parts["choose"]) & set(parts["report"])
    assert {task.hack for task in parts["choose"]} == {HONEST, *CHOSEN_ON}
    assert {task.hack for task in parts["report"]} == {HONEST, *HACKS}
    assert {task.seed % 2 for task in parts["choose"]} == {0}
    assert {task.seed % 2 for task in parts["report"]} == {1}
    left = [task for task in everything if not task.half]
    assert {task.seed % 2 for task in left} == {0}
    assert not {task.hack for task in left} & set(CHOSEN_ON)
    assert set(LATER) < set(HACKS)
    assert not set(LATER) & set(CHOSEN_ON)


def growing(rate: float, late: int | None) -> Measured:
    """Brightness that grows by `rate` of its least width a look."""
    levels = Levels({"brightness": 0.5}, {}, {"brightness": 0.01})
    looks = [{"brightness": 0.5 + 0.03 * rate * i, "change/brightness": 0.03 * rate * i} for i in range(20)]
    return Measured(levels, looks, late)


def test_the_price_of_limits_is_counted():
    runs = {"hacked": [growing(0.5, 10), growing(0.4, 7)], "honest": [growing(0.05, None), growing(0.12, None)]}
    rows = hack_limits.price(runs, [1.0, 2.0, 100.0], [2], []).splitlines()[2:]
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]
    assert [row[:2] for row in cells] == [["2", "1"], ["2", "2"], ["2", "100"]]
    # severity 2 alone, twice: at 1 from look 4 and 5 on, at 2 from 8 and 10 on
    assert [row[4].split(" (")[0] for row in cells] == ["2 of 2", "1 of 2", "0 of 2"]
    assert [row[5].split(" (")[0] for row in cells] == ["1 of 2", "0 of 2", "0 of 2"]
    assert {row[2].split(" (")[0] for row in cells} == {"0 of 2"}  # without a base
    none = hack_limits.price(runs, [1.0], [2], ["brightness"])
    assert "2 of 2" not in none


def test_commands_measure_once_and_judge_again(run, tmp_path, monkeypatch, capsys):
    looks, real = run
    kept = {name: HACKS[name] for name in ("darkening", "grid pattern")}
    monkeypatch.setattr(hacks, "HACKS", kept)
    monkeypatch.setattr(hacks, "trajectory", lambda *_: {"looks": looks, "real": (real * 255).round().to(torch.uint8)})
    monkeypatch.setattr(hacks, "scorers", lambda *_: SCORERS)
    command = ["--out", str(tmp_path), "--generators", "GAN", "--seeds", "1", "--honest", "2"]
    with pytest.raises(SystemExit):
        hack_limits.main(["--out", str(tmp_path)])
    assert "no measured runs" in capsys.readouterr().err
    hacks.main([*command, "--half", "choose"])
    files = sorted(path.name for path in (tmp_path / "looks").iterdir())
    assert files == ["GAN-darkening-0.json", "GAN-grid pattern-0.json", "GAN-honest-0.json"]
    page = (tmp_path / "choose" / "results.md").read_text()
    assert "| all hacks" in page
    assert "| all that limits were chosen on" in page
    monkeypatch.setattr(hacks, "measure_run", None)  # not called again
    hacks.main([*command, "--half", "choose", "--hours", "1e-9"])
    assert (tmp_path / "choose" / "results.md").read_text() == page
    hacks.main([*command, "--half", "report", "--hours", "1e-9"])
    assert "the time is over" in capsys.readouterr().out
    hack_limits.main(["--out", str(tmp_path), "--generators", "GAN", "--tolerances", "1", "--patience", "1", "2"])
    assert capsys.readouterr().out.count("0 of 1") >= 2

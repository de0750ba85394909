from __future__ import annotations

import contextlib
import json
import math
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from qa_hooks.callbacks import (
    BestCheckpoint,
    EarlyStop,
    GenerativeMonitor,
    Hooks,
    Monitor,
    PerceptionDistortion,
    SampleGrid,
    ScoreHistogram,
    ScoreMonitor,
    ScorePanel,
    TrainingStopped,
)
from qa_hooks.callbacks.readings import Reading
from qa_hooks.scorers import FunctionScorer, create_scorer
from qa_hooks.writers import MemoryWriter


class Told(Monitor):
    """A monitor that measures what it is told: one number a step, and half the width of its interval."""

    def __init__(self, values, half=None, every: int = 1) -> None:
        super().__init__(every=every)
        self.values, self.half, self.last = values, half, {}

    def reduce(self, ctx, part):
        value = self.values[ctx.step - 1]
        self.last = {"step": ctx.step, "fd": value}
        if self.half is not None:
            self.last.update(fd_low=value - self.half, fd_high=value + self.half)

    def state_dict(self):
        return {"last": dict(self.last)}

    def load_state_dict(self, state):
        self.last = dict(state["last"])


class Saver:
    """Writes the step into a file or a folder, and remembers when it was called."""

    def __init__(self, *, folders: bool = False, fails=()) -> None:
        self.folders, self.fails, self.calls, self.step = folders, fails, [], 0

    def __call__(self, path: Path) -> None:
        self.calls.append(self.step)
        if self.folders:
            path.mkdir()
            (path / "half").write_text("")
            path = path / "weights"
        path.write_text("half a check")
        if self.step in self.fails:
            raise OSError(28, "No space left on device")
        path.write_text(str(self.step))


def train(values, folder, *, saver=None, mode="min", half=None, steps=None, state=None, **options):
    """Steps over told values; the hooks, the saver and the callback."""
    monitor, saver = Told(values, half), saver or Saver()
    best = BestCheckpoint(monitor, "fd", mode=mode, save=saver, folder=folder, **options)
    hooks = Hooks([monitor, best])
    if state is not None:
        hooks.load_state_dict(state)
    for step in range(hooks.step_count + 1, (steps or len(values)) + 1):
        saver.step = step
        hooks.step()
    return hooks, saver, best


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.filterwarnings("error")
class TestBestCheckpoint:
    @pytest.mark.parametrize("folders", [False, True])
    def test_only_better_ones_are_saved_and_one_stays(self, tmp_path, folders):
        values = [5.0, math.nan, 4.0, 4.0, 6.0, -math.inf, 3.0, 3.5]
        _, saver, best = train(values, tmp_path, saver=Saver(folders=folders), half=0.5)
        assert saver.calls == [1, 3, 7]
        assert names(tmp_path) == ["best.json", "step_00000007"]
        target = tmp_path / "step_00000007"
        assert (target / "weights" if folders else target).read_text() == "7"
        found = json.loads((tmp_path / "best.json").read_text())
        expected = {"metric": "fd", "mode": "min", "value": 3.0, "low": 2.5, "high": 3.5, "step": 7, "spec": None}
        assert {name: found[name] for name in expected} == expected
        assert (found["path"], found["monitor"]) == ("step_00000007", "Told")
        assert best.best == found["kept"][0]

    def test_higher_can_be_better_and_several_stay(self, tmp_path):
        _, saver, best = train([1.0, 5.0, 2.0, 4.0, 3.0], tmp_path, mode="max", keep=2, suffix=".pt")
        assert saver.calls == [1, 2, 3, 4]
        assert names(tmp_path) == ["best.json", "step_00000002.pt", "step_00000004.pt"]
        found = json.loads((tmp_path / "best.json").read_text())
        assert [entry["value"] for entry in found["kept"]] == [5.0, 4.0]
        assert found["leaving"] == []
        assert best.best["value"] == 5.0

    @pytest.mark.parametrize("folders", [False, True])
    @pytest.mark.filterwarnings("default")
    def test_a_failing_save_keeps_the_old_one_and_tries_again(self, tmp_path, folders):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            _, saver, best = train(
                [5.0, 4.0, 3.0, 4.5, 2.0], tmp_path, saver=Saver(folders=folders, fails=(2, 3)), steps=3
            )
        assert len(caught) == 1
        text = str(caught[0].message)
        assert "4 at step 2 was not saved, the best on disk is still 5 at step 1: OSError: [Errno 28] No space" in text
        assert (saver.calls, best.failures, best.best["step"]) == ([1, 2, 3], 2, 1)
        assert names(tmp_path) == ["best.json", "step_00000001"]
        assert json.loads((tmp_path / "best.json").read_text())["value"] == 5.0
        other = tmp_path / "other"
        with pytest.warns(UserWarning, match="there is none on disk"):
            _, saver, best = train([5.0, 7.0, 6.0], other, saver=Saver(fails=(1,)))
        assert saver.calls == [1, 2, 3]  # 7 is better than nothing
        assert best.best["value"] == 6.0

    @pytest.mark.filterwarnings("default")
    def test_a_save_elsewhere_is_noticed(self, tmp_path):
        with pytest.warns(UserWarning, match=r"save\(path\) wrote nothing at .*exactly the path"):
            _, _, best = train([1.0], tmp_path, saver=lambda path: None)
        assert best.best == {}

    def test_a_kill_at_any_point_leaves_a_whole_one(self, tmp_path, monkeypatch):
        """Each of the file operations of a save is the last one in turn."""

        class Killed(BaseException):
            pass

        count, stop = 0, 0
        for operation in ("rename", "replace", "write_text", "unlink"):
            plain = getattr(Path, operation)

            def counted(path, *arguments, plain=plain, **options):
                nonlocal count
                count += 1
                if count == stop:
                    raise Killed
                return plain(path, *arguments, **options)

            monkeypatch.setattr(Path, operation, counted)
        seen = set()
        for stop in range(1, 30):
            count, folder = -1000, tmp_path / str(stop)
            monitor, saver = Told([2.0, 1.0]), Saver()
            hooks = Hooks([monitor, BestCheckpoint(monitor, "fd", mode="min", save=saver, folder=folder)])
            saver.step = 1
            hooks.step()
            saver.step, count = 2, 0
            try:
                hooks.step()
            except Killed:
                killed = True
            else:
                killed = False
            count = -1000
            found = json.loads((folder / "best.json").read_text())
            assert (folder / found["path"]).read_text() == str(found["step"])
            seen.add(found["step"])
            if not killed:
                break
            # The next start clears the rubble away.
            monitor = Told([2.0, 1.0])
            again = Hooks([monitor, BestCheckpoint(monitor, "fd", mode="min", save=saver, folder=folder)])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                again.step()
            assert not list(folder.glob("partial*"))
        assert seen == {1, 2}
        assert stop > 5

    @pytest.mark.parametrize("operation", range(1, 8))
    def test_a_kill_while_the_same_step_is_saved_again(self, tmp_path, monkeypatch, operation):
        """A resumed run that is not exactly repeatable finds something better at the step of the best checkpoint."""

        class Killed(BaseException):
            pass

        state = train([5.0], tmp_path, saver=Saver(folders=True))[0].state_dict()
        train([5.0, 4.0], tmp_path, saver=Saver(folders=True), state=state)  # and is killed
        count = 0
        for name in ("rename", "replace"):
            plain = getattr(Path, name)

            def counted(path, *arguments, plain=plain):
                nonlocal count
                count += 1
                if count == operation:
                    raise Killed
                return plain(path, *arguments)

            monkeypatch.setattr(Path, name, counted)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with contextlib.suppress(Killed):
                train([5.0, 3.0], tmp_path, saver=Saver(folders=True), state=state)
            monkeypatch.undo()
            named = json.loads((tmp_path / "best.json").read_text())["path"]
            assert (tmp_path / named / "weights").read_text() == "2"  # at any moment, not only after the next start
            _, _, best = train([5.0, 9.0], tmp_path, saver=Saver(folders=True), state=state)
        path, value = ("step_00000002", 4.0) if operation == 1 else ("step_00000002_again", 3.0)  # in place, it counts
        assert (best.best["path"], best.best["value"]) == (path, value)
        assert (tmp_path / path / "weights").read_text() == "2"
        assert names(tmp_path) == ["best.json", path]

    def test_a_resumed_run_agrees_with_its_folder(self, tmp_path):
        values = [5.0, 4.0, 4.5, 3.0, 3.5]
        whole = train(values, tmp_path / "whole")[2]
        hooks = train(values, tmp_path / "cut", steps=3)[0]
        state = hooks.state_dict()
        _, saver, best = train(values, tmp_path / "cut", state=state)
        assert saver.calls == [4]
        assert best.best == whole.best
        assert (tmp_path / "cut" / "best.json").read_text() == (tmp_path / "whole" / "best.json").read_text()

    def test_a_state_that_save_itself_wrote_fits(self, tmp_path):
        monitor, states = Told([5.0, 4.0, 4.5, 3.0]), []

        def save(path):
            states.append(hooks.state_dict())
            path.write_text("")

        hooks = Hooks([monitor, BestCheckpoint(monitor, "fd", mode="min", save=save, folder=tmp_path)])
        hooks.step()
        hooks.step()
        _, saver, _ = train([5.0, 4.0, 4.5, 3.0], tmp_path, state=states[1])  # a warning would be an error
        assert saver.calls == [4]

    def test_the_folder_counts_where_the_state_differs(self, tmp_path):
        values = [5.0, 4.0, 4.5, 3.0, 3.5, 2.0]
        state = train(values, tmp_path, steps=3)[0].state_dict()
        train(values, tmp_path, state=state, steps=4)  # and is killed
        with pytest.warns(
            UserWarning, match="3 at step 4, but the loaded state's best is 4 at step 2; what the folder"
        ):
            _, saver, _ = train(values, tmp_path, state=state, steps=5)
        assert saver.calls == []
        assert names(tmp_path) == ["best.json", "step_00000004"]
        (tmp_path / "step_00000004").unlink()
        with pytest.warns(UserWarning, match="is none, but the loaded state's best is 4 at step 2"):
            _, saver, _ = train(values, tmp_path, state=state, steps=5)
        assert saver.calls == [4]
        with pytest.warns(UserWarning, match="no state was loaded.*give a new run a folder of its own"):
            _, saver, _ = train(values, tmp_path)
        assert saver.calls == [6]

    def test_files_of_others_are_refused(self, tmp_path):
        train([1.0], tmp_path / "a")
        with pytest.raises(ValueError, match=r"belongs to .*'min'.*, this is .*'max'"):
            train([1.0], tmp_path / "a", mode="max")
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "best.json").write_text('{"value": 3}')
        with pytest.raises(ValueError, match="not written by BestCheckpoint, or is damaged"):
            train([1.0], tmp_path / "b")

    def test_values_that_were_made_in_another_way_are_not_compared(self, tmp_path):
        for n, expected in ((100, {"fd": "fd_random[n=100]"}), (200, {"fd": "fd_random[n=200]"})):
            monitor = Told([1 / n, 2.0])
            monitor.spec = expected
            best = BestCheckpoint(monitor, "fd", mode="min", save=Saver(), folder=tmp_path)
            hooks = Hooks([monitor, best])
            if n == 100:
                hooks.step()
                assert json.loads((tmp_path / "best.json").read_text())["spec"] == "fd_random[n=100]"
                state = hooks.state_dict()
        hooks.load_state_dict({**state, "step": 0})
        with pytest.warns(
            UserWarning, match=r"of fd_random\[n=100\], and this one is of fd_random\[n=200\]: these cannot"
        ):
            hooks.step()
        assert names(tmp_path) == ["best.json", "step_00000001"]

    def test_scores_on_other_ground_truths_are_not_compared(self, tmp_path):
        images, psnr = torch.rand(8, 3, 16, 16), create_scorer("psnr")
        state = {}
        for number, truths in enumerate((images, images.flip(0))):
            monitor = ScoreMonitor(psnr, sample=lambda n, _: images[:n] * 0.9, reference=truths, every=1)
            best = BestCheckpoint(monitor, "mean", save=Saver(), folder=tmp_path)
            hooks = Hooks([monitor, best], writer=MemoryWriter())
            if number == 0:
                hooks.step()
                state = hooks.state_dict()
                assert " on the ground truths " in json.loads((tmp_path / "best.json").read_text())["spec"]
        hooks.load_state_dict({**state, "step": 0})
        with pytest.warns(UserWarning, match=r"on the ground truths \w{4}, and this one is of .*these cannot be"):
            hooks.step()

    def test_a_whole_checkpoint_of_a_network(self, tmp_path):
        torch.manual_seed(0)
        net = nn.Linear(3, 3)
        monitor = Told([2.0, 1.0, 3.0])
        best = BestCheckpoint(monitor, "fd", mode="min", save=lambda path: torch.save(net.state_dict(), path),
                              folder=tmp_path, suffix=".pt")  # fmt: skip
        hooks, weights = Hooks([monitor, best]), []
        for _ in range(3):
            with torch.no_grad():
                net.weight.add_(1)
            weights.append(net.weight.detach().clone())
            hooks.step()
        saved = torch.load(tmp_path / best.best["path"], weights_only=True)
        assert torch.equal(saved["weight"], weights[1])


class TestEarlyStop:
    def stopped_at(self, values, *, half=None, state=None, **options) -> int | None:
        monitor = Told(values, half)
        hooks = Hooks([monitor, EarlyStop(monitor, "fd", **{"mode": "min", "patience": 2, **options})])
        if state is not None:
            hooks.load_state_dict(state)
        for _ in range(hooks.step_count, len(values)):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                hooks.step()
            if hooks.should_stop:
                return hooks.step_count
        return None

    @pytest.mark.parametrize(
        ("values", "options", "expected"),
        [
            ([5, 4, 3, 2, 1], {}, None),
            ([5, 4, 4, 4, 1], {}, 4),
            ([5, 6, 4, 6, 6], {}, 5),
            ([5, 6, 7, 8], {"mode": "max"}, None),
            ([5, 6, 6, 5], {"mode": "max"}, 4),
            ([5.0, 4.9, 4.8, 4.7], {"min_delta": 0.15}, None),  # each second one is enough
            ([5.0, 4.9, 4.8, 4.7], {"min_delta": 0.5}, 3),
            ([5, math.nan, math.nan], {}, 3),
            ([5, math.nan, 4, -math.inf, math.nan], {}, 5),
            ([math.nan, math.nan], {}, 2),
        ],
    )
    def test_when(self, values, options, expected):
        assert self.stopped_at([float(value) for value in values], **options) == expected

    def test_only_certain_improvements(self):
        values = [5.0, 4.5, 4.0, 3.5, 3.0]  # each interval is +-1: two of them, independent, are 1.41 apart by chance
        assert self.stopped_at(values, half=1.0) is None
        assert self.stopped_at(values, half=1.0, certain=True) == 3
        assert self.stopped_at(values, half=1.0, certain=True, patience=3) is None  # 3.5 is 1.5 below 5
        assert self.stopped_at(values, half=1.07, certain=True, patience=3) == 4
        assert self.stopped_at([-value for value in values], half=1.0, certain=True, patience=3, mode="max") is None
        assert self.stopped_at(values, half=math.nan, certain=True) == 3

    def test_the_interval_is_taken_on_the_side_that_matters(self):
        best, new = Reading(1, 5.0, low=4.9, high=9.0), Reading(2, 4.0, low=0.0, high=4.3)
        assert new.beats(best, "min", certain=True)
        assert not Reading(2, 4.0, low=3.9, high=5.2).beats(best, "min", certain=True)
        assert not Reading(2, 8.0, low=7.9, high=8.1).beats(best, "max", certain=True)
        assert Reading(2, 9.5, low=9.4, high=9.6).beats(best, "max", certain=True)

    def test_a_best_value_without_an_interval_can_be_beaten(self):
        """A density of 0 at the first look has none, and must not be the best for ever."""
        first = Reading(1, 0.0)
        assert Reading(2, 0.3, low=0.1, high=0.5).beats(first, "max", certain=True)
        assert not Reading(2, 0.3, low=-0.1, high=0.7).beats(first, "max", certain=True)
        assert not Reading(2, 0.3).beats(first, "max", certain=True)

    def test_without_intervals_it_says_so(self):
        monitor = Told([1.0])
        with pytest.warns(
            UserWarning, match=r"Told gives no interval for 'fd', which certain=True needs; it has \['fd"
        ):
            Hooks([monitor, EarlyStop(monitor, "fd", mode="min", patience=1, certain=True)]).step()

    def test_attached_it_raises_out_of_the_optimizer(self):
        parameter, monitor = nn.Parameter(torch.zeros(1)), Told([1.0, 2.0])
        optimizer = torch.optim.SGD([parameter], lr=0.1)
        hooks = Hooks([monitor, EarlyStop(monitor, "fd", mode="min", patience=1)]).attach(optimizer)
        parameter.grad = torch.ones(1)
        optimizer.step()
        with pytest.raises(TrainingStopped, match="1 measurements without an improvement; the best was 1 at step 1"):
            optimizer.step()
        assert hooks.should_stop

    def test_a_resumed_run_stops_where_the_whole_one_does(self):
        values = [5.0, 4.0, 4.5, 4.6, 4.7, 1.0]
        assert self.stopped_at(values, patience=3) == 5
        monitor = Told(values)
        hooks = Hooks([monitor, EarlyStop(monitor, "fd", mode="min", patience=3)])
        for _ in range(3):
            hooks.step()
        state = json.loads(json.dumps(hooks.state_dict()))
        assert self.stopped_at(values, patience=3, state=state) == 5

    def test_a_run_that_is_resumed_past_its_end_stops_again(self):
        values = [5.0, 6.0, 6.0, 6.0, 6.0, 6.0]
        monitor = Told(values)
        hooks = Hooks([monitor, EarlyStop(monitor, "fd", mode="min", patience=2)])
        for _ in range(2):
            hooks.step()
        with pytest.warns(UserWarning, match="should_stop is set"):
            hooks.step()
        state = json.loads(json.dumps(hooks.state_dict()))
        assert self.stopped_at(values, patience=2, state=state) == 4

    def test_a_loop_that_goes_on_is_told_once(self):
        monitor = Told([5.0] * 6)
        hooks = Hooks([monitor, EarlyStop(monitor, "fd", mode="min", patience=1)])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(6):
                hooks.step()
        assert [str(w.message).count("should_stop is set") for w in caught] == [1]


@pytest.fixture
def make(tmp_path):
    return {
        "best": lambda monitor, metric="fd": BestCheckpoint(
            monitor, metric, mode="min", save=Saver(), folder=tmp_path / "x"
        ),
        "stop": lambda monitor, metric="fd": EarlyStop(monitor, metric, mode="min", patience=3),
    }


@pytest.mark.parametrize("kind", ["best", "stop"])
class TestBoth:
    def test_an_unknown_metric_lists_what_there_is(self, make, kind):
        monitor = Told([1.0], half=0.1)
        with pytest.warns(UserWarning, match=r"Told measures no 'fid'; it has \['fd', 'fd_high', 'fd_low'\]"):
            Hooks([monitor, make[kind](monitor, "fid")]).step()

    def test_the_monitor_comes_first(self, make, kind):
        monitor = Told([1.0])
        callback = make[kind](monitor)
        for order in ([callback, monitor], [callback], [Told([1.0]), callback]):
            with pytest.raises(ValueError, match=r"\(Told.fd\) reads Told, which must come before it"):
                Hooks(order)
        Hooks([monitor, callback])

    def test_only_new_measurements_count(self, make, kind):
        monitor = Told([float(9 - step) for step in range(9)], every=3)
        callback = make[kind](monitor)
        hooks, seen = Hooks([monitor, callback]), []
        plain = callback._watched.new
        callback._watched.new = lambda step, **options: seen.append(step) or plain(step, **options)
        for _ in range(9):
            hooks.step()
        assert seen == [1, 3, 6, 9]

    def test_a_measurement_that_the_budget_put_off_is_not_read_again(self, make, kind):
        monitor = Told([3.0] * 9)
        callback = make[kind](monitor)
        hooks = Hooks([monitor, callback])
        hooks.step()
        hooks._callbacks.budget.allows = lambda callback, step: not callback.budgeted
        for _ in range(8):
            hooks.step()
        assert not hooks.should_stop
        assert getattr(callback, "waited", 0) == 0

    def test_bad_arguments(self, make, kind):
        grid = SampleGrid(lambda n, g: torch.rand(n, 1, 8, 8), every=1)
        with pytest.raises(TypeError, match=r"has \.last, such as ScoreMonitor, got SampleGrid"):
            make[kind](grid)
        with pytest.raises(TypeError, match="got str"):
            make[kind]("fd")


class TestDirections:
    """A monitor knows which direction of its values is better; a wrong mode would keep the worst for a week."""

    def test_the_monitor_knows(self):
        real = torch.rand(60, 1, 16, 16)
        bright = FunctionScorer(lambda x: x.mean((1, 2, 3)), name="bright", higher_is_better=False)

        def sample(n, generator):
            return torch.rand(n, 1, 16, 16, generator=generator)

        psnr, niqe = create_scorer("psnr"), create_scorer("niqe_bsd100")
        directions = {
            GenerativeMonitor(sample, real, extractor="random", n=60): {"fd": "min", "kid": "min", "recall": "max"},
            ScoreMonitor(bright, sample=sample): {"mean": "min"},
            ScoreMonitor(psnr, images="fake", reference="real"): {"mean": "max"},
            ScorePanel(sample, bright): {"mean": "min", "worst": "min"},
            ScoreHistogram(sample, real, bright): {"overlap": "max", "ks": "min", "mean": "min"},
            PerceptionDistortion(niqe, psnr, images="a", reference="b"): {"perception": "min", "distortion": "max"},
        }
        for monitor, known in directions.items():
            for metric, mode in known.items():
                assert EarlyStop(monitor, metric, patience=1).mode == mode
                assert EarlyStop(monitor, metric, mode=mode, patience=1).mode == mode
                wrong = {"min": "max", "max": "min"}[mode]
                with pytest.raises(ValueError, match=f'better for .{metric}. of .*, so that mode="{wrong}" keeps the'):
                    EarlyStop(monitor, metric, mode=wrong, patience=1)

    def test_a_change_has_no_best(self):
        bright = FunctionScorer(lambda x: x.mean((1, 2, 3)), name="bright", higher_is_better=False)
        sample = lambda n, generator: torch.rand(n, 1, 16, 16, generator=generator)  # noqa: E731
        for monitor, metric in ((ScoreMonitor(bright, sample=sample), "change"), (ScorePanel(sample, bright), "fell")):
            with pytest.raises(ValueError, match=f"measures no '{metric}'.*it measures mean"):
                EarlyStop(monitor, metric, patience=1)

    def test_what_is_not_known_has_to_be_said(self):
        monitor = ScoreMonitor(create_scorer("psnr"), images="fake", reference="real")
        for own, metric in ((Told([1.0]), "fd"), (monitor, "std")):
            with pytest.raises(ValueError, match=f"which direction of '{metric}' is better. Write mode="):
                EarlyStop(own, metric, patience=1)
            assert EarlyStop(own, metric, mode="max", patience=1).mode == "max"


def test_more_bad_arguments(tmp_path):
    monitor = Told([1.0])
    with pytest.raises(ValueError, match=r'mode must be "min" \(lower is better\) or "max", got .lower'):
        EarlyStop(monitor, "fd", mode="lower", patience=1)
    with pytest.raises(ValueError, match="patience must be a whole number"):
        EarlyStop(monitor, "fd", mode="min", patience=0)
    with pytest.raises(ValueError, match="min_delta must be"):
        EarlyStop(monitor, "fd", mode="min", patience=1, min_delta=-1)
    with pytest.raises(TypeError, match="save must be callable"):
        BestCheckpoint(monitor, "fd", mode="min", save="best.pt", folder=tmp_path)
    with pytest.raises(ValueError, match="keep must be a whole number"):
        BestCheckpoint(monitor, "fd", mode="min", save=Saver(), folder=tmp_path, keep=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"folder=.*cannot be written"):
        BestCheckpoint(monitor, "fd", mode="min", save=Saver(), folder=tmp_path / "file")


def test_with_a_real_monitor(tmp_path, digits):
    contrast = FunctionScorer(lambda x: x.std((1, 2, 3)), name="contrast", higher_is_better=True, value_range=(-1, 1))
    monitor = ScoreMonitor(contrast, every=1, images="x")
    saver = Saver()
    hooks = Hooks([monitor, BestCheckpoint(monitor, "mean", mode="max", save=saver, folder=tmp_path)])
    for strength in (0.5, 0.9, 0.7):
        hooks.step(x=digits[:20] * strength)
    found = json.loads((tmp_path / "best.json").read_text())
    assert found["step"] == 2
    assert found["value"] == pytest.approx(float((digits[:20] * 0.45 + 0.5).std((1, 2, 3)).mean()))


class Killed(BaseException):
    """What a kill at a file operation is in these tests."""


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.filterwarnings("ignore:.*what the folder holds counts")
def test_a_kill_at_every_file_operation_leaves_no_checkpoint_too_many(tmp_path, monkeypatch, keep):
    """Each operation of a save, and of the start after it, is the last one in turn; the next start cleans up."""
    stop, killed = 0, True
    while killed:
        stop, killed, folder = stop + 1, False, tmp_path / str(stop)
        train([4.0, 3.0], folder, keep=keep)
        (folder / "notes.txt").write_text("mine")
        (folder / "step_ten").write_text("mine")
        with monkeypatch.context() as patch:
            count = 0
            for operation in ("rename", "replace", "write_text", "unlink"):
                plain = getattr(Path, operation)

                def counted(path, *arguments, plain=plain, last=stop, **options):
                    nonlocal count
                    count += 1
                    if count >= last:
                        raise Killed
                    return plain(path, *arguments, **options)

                patch.setattr(Path, operation, counted)
            for values in ([9.0, 9.0, 2.0], [9.0, 9.0, 9.0, 1.0]):
                try:
                    train(values, folder, keep=keep)
                except Killed:
                    killed = True
        _, _, best = train([9.0], folder, keep=keep)
        kept = json.loads((folder / "best.json").read_text())["kept"]
        assert names(folder) == sorted(["best.json", "notes.txt", "step_ten", *(entry["path"] for entry in kept)])
        assert len(kept) == keep
        assert best.best["value"] == min(entry["value"] for entry in kept)
    assert stop > 8


def test_a_checkpoint_that_came_in_place_without_being_named_is_removed(tmp_path, monkeypatch):
    monitor = Told([5.0, 4.0, 3.0])
    best = BestCheckpoint(monitor, "fd", mode="min", save=lambda path: path.write_text("x"), folder=tmp_path)
    hooks = Hooks([monitor, best])
    hooks.step()

    def stale(*_):
        raise OSError("Stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", stale)
        with pytest.warns(UserWarning, match="was not saved, the best on disk is still 5"):
            hooks.step()
    hooks.step()
    assert [path.name for path in tmp_path.glob("step_*")] == ["step_00000003"]


class TestOnlyItsOwnFiles:
    def monitor(self):
        scorer = FunctionScorer(lambda x: x.mean((1, 2, 3)), name="brightness", higher_is_better=True)
        return ScoreMonitor(scorer, every=1, images="x")

    def test_a_best_json_that_names_another_place_is_refused(self, tmp_path):
        precious = tmp_path / "precious"
        precious.mkdir()
        (precious / "thesis.tex").write_text("years of work")
        monitor, folder = self.monitor(), tmp_path / "best"
        save = lambda path: path.write_text("x")  # noqa: E731
        best = BestCheckpoint(monitor, "mean", mode="max", save=save, folder=folder)
        Hooks([monitor, best]).step(x=torch.zeros(2, 1, 4, 4))
        facts = json.loads((folder / "best.json").read_text())
        for path in ("../precious", str(precious), "step_00000001/../../precious"):
            facts["kept"][0]["path"] = path
            (folder / "best.json").write_text(json.dumps(facts))
            with pytest.raises(ValueError, match="no checkpoint of BestCheckpoint"):
                BestCheckpoint(self.monitor(), "mean", mode="max", save=save, folder=folder)
        assert (precious / "thesis.tex").exists()

    def test_files_of_the_users_are_left_alone(self, tmp_path):
        for name in ("partial_results", "partial_step_1", "step_notes"):
            (tmp_path / name).mkdir()
        (tmp_path / "partial_step_00000003.pt").write_text("half")
        monitor = self.monitor()
        save = lambda path: path.write_text("x")  # noqa: E731
        best = BestCheckpoint(monitor, "mean", mode="max", save=save, folder=tmp_path, suffix=".pt")
        Hooks([monitor, best]).step(x=torch.zeros(2, 1, 4, 4))
        names = {path.name for path in tmp_path.iterdir()}
        assert names == {"partial_results", "partial_step_1", "step_notes", "best.json", "step_00000001.pt"}


def test_the_best_checkpoint_of_the_step_that_stops_is_kept(tmp_path):
    scorer = FunctionScorer(lambda x: x.mean((1, 2, 3)), name="brightness", higher_is_better=True)
    monitor = ScoreMonitor(scorer, every=1, images="x")
    stop = EarlyStop(monitor, "std", mode="min", patience=2)
    best = BestCheckpoint(monitor, "mean", mode="max", save=lambda p: p.write_text("x"), folder=tmp_path)
    hooks = Hooks([monitor, stop, best])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(1, 6):
            hooks.step(x=torch.full((2, 1, 4, 4), step / 10))
            if hooks.should_stop and step == 3:
                assert best.best["step"] == 3
    assert len([w for w in caught if "should_stop is set" in str(w.message)]) == 1

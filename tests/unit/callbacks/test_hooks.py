from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import time
import warnings

import pytest
import torch
from torch import nn
from torch.optim.optimizer import _global_optimizer_post_hooks

from qa_hooks.callbacks import Callback, Hooks, Monitor, NaNGuard, SampleGrid, TrainingStopped
from qa_hooks.penalties import DriftPenalty
from qa_hooks.weighting import OHEM
from qa_hooks.writers import MemoryWriter


class Log(Callback):
    def __init__(self, every: int = 1, key: str = "Log") -> None:
        self.every, self.key, self.events, self.images = every, key, [], []

    @property
    def state_key(self) -> str:
        return self.key

    def on_train_start(self, ctx):
        self.events.append("start")

    def on_step_end(self, ctx):
        self.events.append(ctx.step)
        self.images.append(dict(ctx.images))

    def on_train_end(self, ctx):
        self.events.append("end")

    def state_dict(self):
        return {"count": len(self.events)}

    def load_state_dict(self, state):
        self.count = state["count"]


class Broken(Callback):
    def on_step_end(self, ctx):
        torch.randn(3)
        raise KeyError("no such thing")


class Slow(Monitor):
    runs = 0

    def local(self, ctx):
        time.sleep(0.02)
        self.runs += 1


def step(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()


@pytest.fixture
def optimizer() -> torch.optim.Optimizer:
    return torch.optim.Adam([nn.Parameter(torch.zeros(3))], lr=0.1)


def test_events_come_in_order():
    log = Log(every=2)
    with Hooks([log]) as hooks:
        for _ in range(5):
            hooks.step()
    assert log.events == ["start", 2, 4, "end"]


def test_images_arrive_without_their_graph():
    log = Log()
    hooks = Hooks([log])
    hooks.step(fake=torch.ones(1, 1, 2, 2, requires_grad=True) * 2)
    assert not log.images[0]["fake"].requires_grad


def test_tracked_terms_and_records_become_means():
    class Term:
        terms = {"ssim": torch.tensor(1.0)}  # noqa: RUF012

    writer, term = MemoryWriter(), Term()
    with Hooks([], writer=writer, track={"qagan": term}, log_every=2) as hooks:
        for value in (1.0, 3.0, 5.0):
            term.terms = {"ssim": torch.tensor(value)}
            hooks.record(d_loss=torch.tensor(value * 2, requires_grad=True))
            hooks.step()
    assert writer.scalars["qa_loss/qagan/ssim"] == [(2, 2.0), (3, 5.0)]
    assert writer.scalars["qa_train/d_loss/mean"] == [(2, 4.0), (3, 10.0)]


def test_a_failing_callback_is_switched_off_and_training_goes_on():
    log = Log()
    hooks = Hooks([Broken(), log])
    before = torch.get_rng_state()
    with pytest.warns(UserWarning, match="Broken failed and is switched off.*no such thing"):
        hooks.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hooks.step()
    assert log.events == ["start", 1, 2]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_failing_writer_stops_the_logging_not_the_training():
    class FullDisk(MemoryWriter):
        def scalar(self, tag, value, step):
            raise OSError("No space left on device")

    log = Log()
    hooks = Hooks([log], writer=FullDisk(), log_every=1)
    hooks.record(loss=1.0)
    with pytest.warns(UserWarning, match="logging is switched off.*No space left"):
        hooks.step()
    for _ in range(2):
        hooks.record(loss=1.0)
        hooks.step()
    hooks.close()
    assert log.events == ["start", 1, 2, 3, "end"]


def test_a_wrong_call_of_the_writer_is_the_callbacks_own_fault():
    class Wrong(Callback):
        def on_step_end(self, ctx):
            ctx.writer.scalar("a/b", "abc", ctx.step)

    writer = MemoryWriter()
    hooks = Hooks([Wrong()], writer=writer, log_every=1)
    hooks.record(loss=1.0)
    with pytest.warns(UserWarning, match="Wrong failed and is switched off"):
        hooks.step()
    assert writer.scalars["qa_train/loss/mean"] == [(1, 1.0)]


def test_means_are_written_when_the_block_fails():
    writer = MemoryWriter()

    def run():
        with Hooks([], writer=writer) as hooks:
            hooks.record(loss=1.0)
            hooks.step()
            raise KeyError("the user's own")

    with pytest.raises(KeyError):
        run()
    assert writer.scalars["qa_train/loss/mean"] == [(1, 1.0)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_ends(tmp_path):
    code = (
        f"import os, sys\nfrom qa_hooks import Hooks\nh = Hooks([], log_dir={str(tmp_path)!r})\nh.record(loss=1.0)\n"
        "h.step()\npid = os.fork()\nif pid == 0: sys.exit(0)\nos.waitpid(pid, 0)"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_an_unwritable_log_folder_fails_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        Hooks([], log_dir=tmp_path / "file" / "run")


def test_bad_arguments():
    with pytest.raises(ValueError, match="two callbacks have the state key 'Log'"):
        Hooks([Log(), Log()])
    with pytest.raises(TypeError, match="must be qa_hooks Callbacks, got function"):
        Hooks([lambda ctx: None])
    with pytest.raises(ValueError, match=r"track\['net'\] has no .terms"):
        Hooks([], track={"net": nn.Linear(1, 1)})
    with pytest.raises(ValueError, match="not both"):
        Hooks([], writer=MemoryWriter(), log_dir="x")
    for budget in (5, "5%"):
        with pytest.raises(ValueError, match="budget"):
            Hooks([], budget=budget)
    with pytest.raises(ValueError, match="log_every"):
        Hooks([], log_every=0)
    with pytest.raises(TypeError, match="must be a list of callbacks"):
        Hooks(Log())
    with pytest.raises(TypeError, match=r"lacks \['scalar'"):
        Hooks([], writer="runs/x")


def test_terms_are_logged_once_when_they_are_new():
    """Lazy regularisation with two critic steps per generator step: the skipped call must not hide the applied one."""
    writer, penalty = MemoryWriter(), DriftPenalty(value_range=(0, 1), weight=1.0, interval=2)
    images = torch.ones(2, 1, 1, 1)
    with Hooks([], writer=writer, track={"drift": penalty}, log_every=1) as hooks:
        for critic_steps in (2, 2, 0):
            for _ in range(critic_steps):
                penalty(lambda x: x.sum((1, 2, 3)), images, images)
            hooks.step()
    assert writer.scalars == {"qa_loss/drift/drift": [(1, 1.0), (2, 1.0)]}


def test_what_is_recorded_or_handed_over_is_checked():
    hooks = Hooks([])
    with pytest.raises(TypeError, match=r"hooks.record\(loss=...\) takes a number or a tensor, got 'abc'"):
        hooks.record(loss="abc")
    with pytest.raises(TypeError, match=r"hooks.step\(fake=...\) takes a tensor .* got a list with int"):
        hooks.step(fake=[1])
    with pytest.raises(TypeError, match="capture needs a module"):
        hooks.capture("x", len)
    with pytest.raises(TypeError, match="must be what state_dict"):
        hooks.load_state_dict(None)


def test_the_log_says_once_what_a_logged_mean_is():
    class Telling(MemoryWriter):
        told = []  # noqa: RUF012

        def describe(self, tag, meaning):
            assert tag not in self.scalars  # it goes with the first value
            self.told.append((tag, str(meaning)))

    penalty = DriftPenalty(value_range=(0, 1), weight=0.5)
    critic, images = lambda x: 2 * x.mean((1, 2, 3)), torch.ones(2, 1, 8, 8)
    writer = Telling()
    with Hooks(writer=writer, track={"qagan": penalty}, log_every=1) as hooks:
        for _ in range(2):
            penalty(critic, images, images)
            hooks.record(loss=1.0)
            hooks.step()
    assert writer.scalars["qa_loss/qagan/drift"] == [(1, 4.0), (2, 4.0)]  # without the weight
    assert sorted(writer.told) == [
        ("qa_loss/qagan/drift", "a term without its weight; mean of all calls since the last point"),
        ("qa_train/loss/mean", "recorded by the loop; mean of all calls since the last point"),
    ]


def test_means_are_written_when_nobody_closes(tmp_path):
    code = f"from qa_hooks import Hooks\nh = Hooks([], log_dir={str(tmp_path)!r})\nh.record(loss=2.0)\nh.step()"
    subprocess.run([sys.executable, "-c", code], check=True)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (event,) = EventAccumulator(str(tmp_path)).Reload().Scalars("qa_train/loss/mean")
    assert (event.step, event.value) == (1, 2.0)


class TestAttach:
    def test_one_hooks_for_an_optimizer(self, optimizer):
        first = Hooks([]).attach(optimizer)
        with pytest.raises(RuntimeError, match="has hooks already"):
            Hooks([]).attach(optimizer)
        step(optimizer)
        first.close()
        Hooks([]).attach(optimizer)

    def test_a_callback_that_cannot_attach_leaves_nothing_behind(self, optimizer):
        class Refuses(Callback):
            def attach(self, optimizer):
                raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            Hooks([NaNGuard("stop"), Refuses()]).attach(optimizer)
        assert not optimizer._optimizer_step_post_hooks
        assert not optimizer._optimizer_step_pre_hooks

    def test_disagreeing_counts_are_reported(self, optimizer):
        for _ in range(3):
            step(optimizer)
        hooks = Hooks([]).attach(optimizer)
        hooks.load_state_dict({**hooks.state_dict(), "step": 500})
        with pytest.warns(UserWarning, match="the loaded hooks are at step 500, the optimizer makes step 4"):
            step(optimizer)
        assert hooks.step_count == 4

    def test_the_optimizer_calls_the_hooks(self, optimizer):
        log = Log()
        with Hooks([log]).attach(optimizer):
            step(optimizer)
            step(optimizer)
        step(optimizer)  # detached by now
        assert log.events == ["start", 1, 2, "end"]

    def test_explicit_steps_are_refused_beside_it(self, optimizer):
        hooks = Hooks([]).attach(optimizer)
        with pytest.raises(RuntimeError, match="remove hooks"):
            hooks.step()
        with pytest.raises(RuntimeError, match="second attach"):
            hooks.attach(optimizer)
        with pytest.raises(TypeError, match="needs a torch optimizer"):
            Hooks([]).attach(nn.Linear(1, 1))

    def test_wrappers_are_unwrapped(self, optimizer):
        from accelerate import Accelerator

        log = Log()
        prepared = Accelerator(cpu=True).prepare(optimizer)
        with Hooks([log]).attach(prepared):
            step(prepared)
        assert log.events == ["start", 1, "end"]

    def test_accumulation_counts_optimizer_steps(self, optimizer):
        from accelerate import Accelerator

        log, accelerator = Log(), Accelerator(cpu=True, gradient_accumulation_steps=2)
        net, prepared = accelerator.prepare(nn.Linear(2, 1), torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1))
        with Hooks([log]).attach(prepared):
            for _ in range(6):
                with accelerator.accumulate(net):
                    step(prepared)
        assert log.events == ["start", 1, 2, 3, "end"]

    def test_steps_skipped_by_a_fused_optimizer_do_not_count(self):
        net = nn.Linear(4, 1)
        optimizer = torch.optim.Adam(net.parameters(), fused=True)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        log = Log()
        with Hooks([log]).attach(optimizer):
            for scale in (1.0, float("inf"), 1.0):
                loss = (net(torch.ones(2, 4)) * scale).sum()
                optimizer.zero_grad()
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
        assert log.events == ["start", 1, 2, "end"]

    def test_the_x_axis_survives_a_resume(self, optimizer):
        for _ in range(7):
            step(optimizer)
        saved = optimizer.state_dict()
        resumed = torch.optim.Adam([nn.Parameter(torch.zeros(3))], lr=0.1)
        log = Log()
        with Hooks([log]).attach(resumed):
            resumed.load_state_dict(saved)
            step(resumed)
        assert log.events == ["start", 8, "end"]

    def test_nothing_is_said_of_an_optimizer_where_a_check_was_all(self, optimizer):
        """After it, any other optimizer's step shows that there is a run, and that it uses another optimizer."""
        before = dict(_global_optimizer_post_hooks)
        hooks = Hooks([], writer=MemoryWriter()).attach(optimizer)
        hooks.check()
        hooks.check()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            hooks.close()
        assert dict(_global_optimizer_post_hooks) == before
        other = torch.optim.SGD([nn.Parameter(torch.zeros(3))], 0.1)
        for run in (lambda hooks: step(other), lambda hooks: hooks.record(loss=0.0)):
            hooks = Hooks([], writer=MemoryWriter()).attach(optimizer)
            hooks.check()
            run(hooks)
            with pytest.warns(UserWarning, match="never made a step"):
                hooks.close()

    def test_what_a_check_makes_a_captured_network_put_out_does_not_count(self, optimizer):
        net, seen = nn.Conv2d(3, 3, 1), Log()
        grid = SampleGrid(lambda n, rng: net(torch.rand(n, 3, 8, 8, generator=rng)), n=4)
        hooks = Hooks([grid, seen], writer=MemoryWriter())
        hooks.capture("fake", net)
        hooks.check()
        assert hooks._captures.images == {}

    def test_silence_is_reported(self, optimizer):
        with pytest.warns(UserWarning, match="never made a step"):
            Hooks([Log()]).attach(optimizer).close()
        hooks = Hooks([Log()]).attach(optimizer)
        for _ in range(199):
            hooks.record(loss=0.0)
        with pytest.warns(UserWarning, match="200 calls and no optimizer step"):
            hooks.record(loss=0.0)


class TestCapture:
    def test_keeps_the_last_output(self, optimizer):
        log, net = Log(), nn.Conv2d(1, 3, 1)
        with Hooks([log]).attach(optimizer) as hooks:
            hooks.capture("fake", net)
            out = net(torch.ones(2, 1, 4, 4))
            step(optimizer)
        assert torch.equal(log.images[0]["fake"], out)

    def test_what_monitors_put_out_does_not_count(self, optimizer):
        log, net = Log(), nn.Conv2d(1, 3, 1)
        grid = SampleGrid(lambda n, rng: net(torch.rand(n, 1, 4, 4, generator=rng)).sigmoid(), every=1, n=5)
        with Hooks([grid, log]).attach(optimizer) as hooks:
            hooks.capture("fake", net)
            net(torch.ones(2, 1, 4, 4))
            step(optimizer)
            step(optimizer)
        assert [images["fake"].shape[0] for images in log.images] == [2, 2]

    def test_copies_and_saved_modules_are_free_of_it(self, optimizer, tmp_path):
        log, net = Log(), nn.Conv2d(1, 3, 1)
        with Hooks([log]).attach(optimizer) as hooks:
            hooks.capture("fake", net)
            ema = copy.deepcopy(net)
            pickle.loads(pickle.dumps(net))(torch.ones(4, 1, 4, 4))
            net(torch.ones(2, 1, 4, 4))
            ema(torch.ones(3, 1, 4, 4))
            step(optimizer)
        assert log.images[0]["fake"].shape[0] == 2

    def test_what_is_no_image_is_refused(self):
        hooks, net = Hooks([]), nn.Linear(2, 2)
        hooks.capture("fake", net)
        with pytest.warns(UserWarning, match=r"no batch of images .* but \(1, 2\)"):
            net(torch.ones(1, 2))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            net(torch.ones(1, 2))


class TestState:
    def test_round_trip(self):
        hooks = Hooks([Log(key="a"), Log(key="b")])
        hooks.step()
        state = hooks.state_dict()
        other = Hooks([Log(key="a"), Log(key="b")])
        other.load_state_dict(state)
        assert other.step_count == 1
        assert other.callbacks[0].count == 2

    def test_survives_a_safe_file(self, tmp_path):
        from qa_hooks.penalties import QAGANPenalty

        penalty = QAGANPenalty("none", value_range=(-1, 1))
        hooks = Hooks([NaNGuard()], track={"qagan": penalty})
        hooks.record(loss=torch.tensor(1.0))
        torch.save(hooks.state_dict(), tmp_path / "hooks.pt")
        hooks.load_state_dict(torch.load(tmp_path / "hooks.pt", weights_only=True))

    def test_missing_and_unknown_keys_raise_and_name_the_remedy(self):
        state = Hooks([Log(key="a")]).state_dict()
        with pytest.raises(ValueError, match=r"missing \['b'\], unknown \['a'\]; Hooks\(..., strict=False\)"):
            Hooks([Log(key="b")]).load_state_dict(state)
        Hooks([Log(key="b")], strict=False).load_state_dict(state)


class TestBudget:
    def test_the_cost_is_told_once_and_logged(self, caplog):
        caplog.set_level("INFO", logger="qa_hooks")
        writer = MemoryWriter()
        hooks = Hooks([Slow(every=1)], writer=writer)
        hooks.step()
        hooks.step()
        out = caplog.text
        assert out.count("Slow took ") == 1
        assert "of the run" in out
        assert len(writer.scalars["qa_perf/Slow/seconds"]) == 2

    def test_monitors_stay_under_their_share(self, monkeypatch):
        """A step takes 1 s and a measurement 10: with a fifth of the time one fits in each 50 s, once it is known."""
        now = [0.0]
        monkeypatch.setattr("time.perf_counter", lambda: now[0])
        ran = []

        class Ten(Monitor):
            def local(self, ctx):
                now[0] += 10
                ran.append(now[0])

        hooks = Hooks([Ten(every=1)], budget=0.2)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for _ in range(490):
                now[0] += 1
                hooks.step()
        (words,) = [str(warning.message) for warning in told]
        assert words.startswith("Ten has not run since step 1, and step 6 is too soon again")
        allowed = 0.2 * (now[0] - 1)  # the clock starts at the first step
        assert 10 * len(ran) <= allowed < 10 * (len(ran) + 1)


class TestNaNGuard:
    def test_names_the_term(self):
        hooks = Hooks([NaNGuard(every=1)])
        hooks.record(d_loss=1.0, g_loss=float("nan"))
        with pytest.warns(UserWarning, match="step 1: train/g_loss is not finite"):
            hooks.step()

    def test_one_nan_is_counted_once(self):
        guard = NaNGuard(every=1)
        hooks = Hooks([guard])
        hooks.record(loss=float("nan"))
        with pytest.warns(UserWarning, match="train/loss"):
            hooks.step()
        for _ in range(5):
            hooks.step()
        assert guard.found == 1

    def test_stop_without_attach_sets_the_flag(self):
        hooks = Hooks([NaNGuard("stop")])
        hooks.record(loss=float("inf"))
        with pytest.warns(UserWarning, match="should_stop is set"):
            hooks.step()
        assert hooks.should_stop

    def bad_step(self, optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            group["params"][0].grad = torch.tensor([1.0, float("nan"), 1.0])
        optimizer.step()

    def test_skip_leaves_weights_and_moments_alone(self, optimizer):
        (parameter,) = optimizer.param_groups[0]["params"]
        guard = NaNGuard("skip")
        with Hooks([guard]).attach(optimizer):
            step(optimizer)
            weights = parameter.detach().clone()
            moments = optimizer.state[parameter]["exp_avg"].clone()
            with pytest.warns(UserWarning, match="1 of 1 parameters are not finite; the step is skipped"):
                self.bad_step(optimizer)
            assert torch.equal(parameter, weights)
            assert torch.equal(optimizer.state[parameter]["exp_avg"], moments)
            step(optimizer)
        assert guard.skips == 1
        assert not torch.equal(parameter, weights)

    def test_stop_raises_before_the_step(self, optimizer):
        (parameter,) = optimizer.param_groups[0]["params"]
        hooks = Hooks([NaNGuard("stop")]).attach(optimizer)
        with pytest.raises(TrainingStopped, match="not finite"):
            self.bad_step(optimizer)
        assert torch.equal(parameter, torch.zeros(3))
        with pytest.warns(UserWarning, match="never made a step"):
            hooks.close()

    def test_a_skipped_step_does_not_count(self, optimizer):
        log = Log()
        with Hooks([NaNGuard("skip"), log]).attach(optimizer):
            step(optimizer)
            with pytest.warns(UserWarning, match="skipped"):
                self.bad_step(optimizer)
            step(optimizer)
        assert log.events == ["start", 1, 2, "end"]
        assert all(int(state["step"]) == 2 for state in optimizer.state.values())

    def test_it_ends_with_the_hooks(self, optimizer):
        guard = NaNGuard("skip")
        with Hooks([guard]).attach(optimizer):
            step(optimizer)
        self.bad_step(optimizer)
        assert guard.skips == 0
        assert torch.isnan(optimizer.param_groups[0]["params"][0][1])

    def test_two_guards_with_names(self, optimizer):
        other = torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.1)
        guards, log = [NaNGuard("skip", name="g"), NaNGuard("skip", optimizer=other, name="d")], Log()
        with Hooks([*guards, log]).attach(optimizer):
            other.param_groups[0]["params"][0].grad = torch.full((2,), float("inf"))
            with pytest.warns(UserWarning, match="skipped"):
                other.step()
            step(optimizer)
            step(optimizer)
        assert [guard.skips for guard in guards] == [0, 1]
        assert optimizer.state_dict()["state"][0]["step"] == 2  # a critic's skipped step leaves these hooks counting
        assert log.events == ["start", 1, 2, "end"]

    @pytest.mark.filterwarnings("ignore:.*never made a step")
    def test_skip_cannot_guard_a_closure(self):
        lbfgs = torch.optim.LBFGS([nn.Parameter(torch.zeros(2))])
        with Hooks([NaNGuard("skip")]).attach(lbfgs), pytest.raises(ValueError, match="in a closure"):
            lbfgs.step(lambda: torch.tensor(0.0))

    def test_warn_changes_nothing(self, optimizer):
        with Hooks([NaNGuard(every=1)]).attach(optimizer), pytest.warns(UserWarning, match="not finite"):
            self.bad_step(optimizer)
        assert torch.isnan(optimizer.param_groups[0]["params"][0][1])

    def test_bad_arguments(self):
        with pytest.raises(ValueError, match="action must be one of"):
            NaNGuard("explode")
        with pytest.raises(ValueError, match='"skip" must see every step'):
            NaNGuard("skip", every=10)
        with pytest.raises(ValueError, match="every must be a whole number"):
            NaNGuard(every=2.7)
        with pytest.warns(UserWarning, match="sees no gradients"):
            Hooks([NaNGuard("skip")]).step()


def test_stopping_is_told_and_not_raised(stops_at):
    parameter, stops = nn.Parameter(torch.zeros(1)), []
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    hooks = Hooks([stops_at(2), NaNGuard("skip")])
    hooks.attach(optimizer, on_stop=lambda: stops.append(hooks.step_count))
    for step in range(4):
        parameter.grad = torch.ones(1) * (float("nan") if step == 0 else 1.0)
        if step == 0:
            with pytest.warns(UserWarning, match="skipped"):
                optimizer.step()
        elif step == 2:
            with pytest.warns(UserWarning, match="enough; hooks.should_stop is set"):
                optimizer.step()
        else:
            optimizer.step()
    assert hooks.step_count == 3
    assert hooks.should_stop
    assert stops == [2, 3]
    hooks.close()
    optimizer.step()
    assert hooks.step_count == 3


def test_on_stop_must_be_callable(optimizer):
    with pytest.raises(TypeError, match="on_stop must be callable as on_stop\\(\\), got int"):
        Hooks().attach(optimizer, on_stop=3)
    Hooks().attach(optimizer)  # the refused one left nothing behind


def test_a_stop_waits_for_the_others_of_its_step(optimizer, stops_at):
    log = Log()
    hooks = Hooks([stops_at(2), log]).attach(optimizer)
    step(optimizer)
    with pytest.raises(TrainingStopped, match="enough"):
        step(optimizer)
    assert log.events == ["start", 1, 2]
    hooks.close()


def test_a_writer_may_come_later_where_there_is_none(tmp_path):
    class Closing(MemoryWriter):
        closed = False

        def close(self) -> None:
            self.closed = True

    own, late, later = MemoryWriter(), Closing(), MemoryWriter()
    for hooks in (Hooks(writer=own, log_every=1), Hooks(log_every=1)):
        with hooks:
            hooks.use_writer(late).use_writer(later)
            hooks.record(loss=1.0)
            hooks.step()
    with Hooks(log_dir=tmp_path, log_every=1) as hooks:
        hooks.use_writer(later)
        hooks.record(loss=1.0)
        hooks.step()
    points = {"qa_train/loss/mean": [(1, 1.0)]}
    assert (own.scalars, late.scalars, later.scalars) == (points, points, {})
    assert not late.closed  # it is its maker's
    with pytest.raises(TypeError, match="writer must have the methods of a Writer; int lacks"):
        Hooks().use_writer(3)


def test_objects_print_as_what_they_are():
    grid = SampleGrid(lambda n, rng: torch.rand(n, 1, 4, 4), every=7, name="ema")
    assert repr(grid) == "SampleGrid(ema, every=7)"
    assert repr(Broken()) == "Broken(every=1)"
    hooks = Hooks([grid, NaNGuard()], writer=MemoryWriter(), track={"ohem": OHEM(worst=0.25)})
    text = "Hooks([SampleGrid(ema, every=7), NaNGuard(nan, every=10)], writer=MemoryWriter, track=['ohem'], step=0)"
    assert repr(hooks) == text
    assert repr(Hooks()) == "Hooks([], track=[], step=0)"
    assert repr(OHEM(worst=0.25)).startswith("OHEM(scores=, ")
    assert "worst=0.25" in repr(OHEM(worst=0.25))


def test_warnings_point_at_the_users_line(optimizer):
    hooks = Hooks([Broken()]).attach(optimizer)
    with pytest.warns(UserWarning, match="Broken failed") as told:
        step(optimizer)
    hooks.close()
    assert told[0].filename == __file__


def test_an_optimizer_that_never_steps_is_told_of_at_exit_too():
    code = (
        "import torch; from qa_hooks import Hooks\n"
        "used, other = (torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.1) for _ in range(2))\n"
        "hooks = Hooks([]).attach(other)\n"
        "used.step()\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr
    assert told.count("never made a step") == 1
    quiet = subprocess.run([sys.executable, "-c", code + "other.step()\n"], capture_output=True, text=True, check=True)
    assert "never made a step" not in quiet.stderr
    failed = subprocess.run([sys.executable, "-c", code + "1 / 0\n"], capture_output=True, text=True)
    assert "ZeroDivisionError" in failed.stderr  # the error that the user has to see stands last
    assert "never made a step" not in failed.stderr

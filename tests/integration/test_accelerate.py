"""`attach(accelerator, hooks)` in a real Accelerate loop: accumulation, bf16, trackers, checkpoints, stops."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState
from accelerate.utils import ProjectConfiguration
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from qa_hooks.callbacks import Callback, Hooks, SampleGrid, ScoreMonitor
from qa_hooks.integrations.accelerate import TrackerWriter, attach, without_padding
from qa_hooks.losses import SSIMLoss
from qa_hooks.scorers import FunctionScorer
from qa_hooks.writers import MemoryWriter

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def brightness() -> FunctionScorer:
    return FunctionScorer(lambda x: x.mean((1, 2, 3)), name="brightness", higher_is_better=True, value_range=(-1, 1))


class Script:
    """A denoiser trained by an Accelerate script; `watched=False` is the script without us."""

    def __init__(self, digits, folder, *, watched=True, precision="bf16", writer=None, stop=None, log=True) -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        torch.manual_seed(0)
        self.accelerator = Accelerator(
            cpu=True,
            mixed_precision=precision,
            gradient_accumulation_steps=2,
            log_with="tensorboard" if log else None,
            project_config=ProjectConfiguration(str(folder), logging_dir=str(folder)),
        )
        if log:
            self.accelerator.init_trackers("run")
        net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1))
        loader = torch.utils.data.DataLoader(digits[:88], batch_size=16, shuffle=True)
        self.model, self.optimizer, self.loader = self.accelerator.prepare(
            net, torch.optim.AdamW(net.parameters()), loader
        )
        self.loss = SSIMLoss(weight=0.0, value_range=(-1, 1))
        if not watched:
            return
        sample = lambda n, rng: self.model(torch.randn(n, 1, 16, 16, generator=rng)).clamp(-1, 1)  # noqa: E731
        callbacks: list[Callback] = [
            SampleGrid(sample, every=4, n=9, value_range=(-1, 1)),
            ScoreMonitor(brightness(), every=3, sample=sample, n=8),
        ]
        callbacks += [stop] if stop is not None else []
        self.hooks = Hooks(callbacks, writer=writer, track={"ssim": self.loss}, log_every=2)
        attach(self.accelerator, self.hooks, optimizer=self.optimizer)

    def epochs(self, count: int) -> Script:
        """Six micro-steps and so three optimizer steps each, the last batch with 8 of 16 images."""
        for _ in range(count):
            for images in self.loader:
                with self.accelerator.accumulate(self.model):
                    prediction = self.model(images + 0.3 * torch.randn_like(images))
                    loss = (prediction - images).square().mean() + self.loss(prediction, images)
                    self.accelerator.backward(loss)
                    self.optimizer.step()
                    self.optimizer.zero_grad()
                if self.accelerator.check_trigger():
                    return self
        return self

    def weights(self) -> list[torch.Tensor]:
        return [value.clone() for value in self.accelerator.unwrap_model(self.model).state_dict().values()]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def points(writer: MemoryWriter) -> dict:
    return {tag: values for tag, values in writer.scalars.items() if "qa_perf" not in tag}


def test_the_run_is_the_users_and_the_trackers_hold_scalars_and_images(digits, tmp_path):
    plain = Script(digits, tmp_path / "plain", watched=False).epochs(2).weights()
    script = Script(digits, tmp_path / "watched").epochs(2)
    assert same(plain, script.weights())
    assert script.hooks.step_count == 6  # of 12 micro-steps
    script.hooks.close()
    script.accelerator.end_training()
    events = EventAccumulator(str(tmp_path / "watched" / "run")).Reload()
    assert [event.step for event in events.Scalars("qa_eval/brightness/mean")] == [1, 3, 6]
    assert [event.step for event in events.Images("qa_images/samples/grid")] == [1, 4]
    assert events.Images("qa_images/samples/grid")[0].width > 16
    assert "qa_eval/brightness/histogram" in events.Tags()["histograms"]


def test_six_steps_equal_three_saved_and_three_resumed(digits, tmp_path):
    writer = MemoryWriter()
    whole = Script(digits, tmp_path, writer=writer).epochs(2)
    expected = whole.weights()

    first = Script(digits, tmp_path, writer=MemoryWriter()).epochs(1)
    first.accelerator.save_state(str(tmp_path / "state"))
    files = sorted(path.name for path in (tmp_path / "state").glob("custom_checkpoint_*"))
    assert files == ["custom_checkpoint_0.pkl"]
    torch.load(tmp_path / "state" / files[0], weights_only=True)  # plain tensors and numbers

    curve = MemoryWriter()
    second = Script(digits, tmp_path, writer=curve)
    torch.rand(7)
    second.accelerator.load_state(str(tmp_path / "state"))
    assert second.hooks.step_count == 3
    second.epochs(1)
    assert second.hooks.step_count == 6
    assert same(expected, second.weights())
    after = {tag: [p for p in values if p[0] > 3] for tag, values in points(writer).items()}
    assert points(curve) == {tag: values for tag, values in after.items() if values}


def test_without_an_optimizer_the_loop_hands_images_over(digits, tmp_path):
    script = Script(digits, tmp_path, watched=False)
    writer = MemoryWriter()
    hooks = Hooks([ScoreMonitor(brightness(), every=1, images="pred")], writer=writer)
    attach(script.accelerator, hooks)
    rows = []
    for images in script.loader:
        with script.accelerator.accumulate(script.model):
            script.accelerator.backward(script.model(images).mean())
            script.optimizer.step()
            script.optimizer.zero_grad()
        if script.accelerator.sync_gradients:
            rows.append(len(images))
            hooks.step(pred=without_padding(script.accelerator, images))
    assert rows == [16, 16, 8]  # one process: nothing is padded
    assert len(writer.scalars["qa_eval/brightness/mean"]) == 3
    script.accelerator.save_state(str(tmp_path / "state"))
    hooks.step_count = 0
    script.accelerator.load_state(str(tmp_path / "state"))
    assert hooks.step_count == 3


@pytest.mark.filterwarnings("ignore:enough; hooks.should_stop is set")
def test_a_stop_reaches_the_trigger(digits, tmp_path, stops_at):
    script = Script(digits, tmp_path, writer=MemoryWriter(), stop=stops_at(2)).epochs(3)
    assert script.hooks.step_count == 2
    assert script.hooks.should_stop


@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_the_scaler_skips_do_not_count(fused):
    accelerator, net = Accelerator(cpu=True), nn.Linear(2, 1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = AcceleratedOptimizer(
        torch.optim.SGD(net.parameters(), lr=0.1, fused=fused), device_placement=False, scaler=scaler
    )
    hooks = attach(accelerator, Hooks(writer=MemoryWriter()), optimizer=optimizer)
    for step in range(4):
        scaler.scale(net(torch.ones(1, 2)).sum() * (float("inf") if step == 1 else 1.0)).backward()
        optimizer.step()
        assert optimizer.step_was_skipped == (step == 1) or fused  # which always "steps"
        optimizer.zero_grad()
    assert hooks.step_count == 3


def test_without_trackers_it_says_so_once(digits, tmp_path):
    with pytest.warns(UserWarning, match="the accelerator has no trackers") as caught:
        Script(digits, tmp_path, log=False).epochs(1)
    assert len([w for w in caught if "no trackers" in str(w.message)]) == 1


def test_numpy_numbers_are_not_lost(digits, tmp_path):
    import numpy as np

    script = Script(digits, tmp_path)
    script.hooks._writer.scalar("qa_eval/x/mean", np.float32(0.5), 1)
    script.accelerator.end_training()
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    assert events.Scalars("qa_eval/x/mean")[0].value == 0.5


class StandIn:
    """A tracker that notes what it is given; one with `images=False` takes none, as MLflow's."""

    def __init__(self, name: str, images: bool = True) -> None:
        self.name, self.got = name, []
        if images:
            self.log_images = lambda values, step: self.got.append((values, step))

    def log(self, values, step) -> None:
        self.got.append((values, step))


def test_every_tracker_gets_what_it_can_take():
    trackers = [StandIn("mlflow", images=False), StandIn("aim"), StandIn("comet_ml")]
    writer = TrackerWriter(SimpleNamespace(trackers=trackers))
    writer.scalar("a", torch.tensor(0.25), 3)
    writer.image("b", torch.zeros(3, 4, 5, dtype=torch.uint8), 3)
    writer.histogram("c", torch.rand(9), 3)
    assert all(tracker.got[0] == ({"a": 0.25}, 3) for tracker in trackers)
    assert all(type(tracker.got[0][0]["a"]) is float for tracker in trackers)
    assert len(trackers[0].got) == 1
    assert trackers[1].got[1][0]["b"].shape == (4, 5, 3)
    assert trackers[2].got[1][0]["b"][0].shape == (4, 5, 3)


def test_what_does_not_fit_is_refused(digits, tmp_path):
    script = Script(digits, tmp_path, watched=False)
    with pytest.raises(TypeError, match=r"must be an accelerate.Accelerator"):
        attach(script.optimizer, Hooks(), optimizer=script.optimizer)
    with pytest.raises(TypeError, match=r"must be a qa_hooks.Hooks"):
        attach(script.accelerator, [], optimizer=script.optimizer)
    with pytest.raises(TypeError, match="attach needs a torch optimizer"):
        attach(script.accelerator, Hooks(), optimizer=script.model)
    attach(script.accelerator, Hooks(), optimizer=script.optimizer)
    with pytest.raises(RuntimeError, match="has hooks already"):
        attach(script.accelerator, Hooks(), optimizer=script.optimizer)

"""What all tests share: real photographs and digits, and a check that nothing of the `test` extra was missing."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of programs that tests start
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # so in the background of a shell, and programs would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)  # the tensors are small, and two busy processes on two cores starve each other's threads
TEST_EXTRA = ("skimage", "scipy", "wandb", "torch_fidelity", "transformers", "lightning", "peft", "ray")
TEST_EXTRA += ("denoising_diffusion",)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """With QA_HOOKS_REQUIRE_EXTRAS=test a skip for want of such a package fails the run."""
    if "test" not in os.environ.get("QA_HOOKS_REQUIRE_EXTRAS", ""):
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    for report in reporter.stats.get("skipped", []) if reporter else []:
        reason = str(report.longrepr)
        if any(f"could not import '{name}" in reason for name in TEST_EXTRA):
            reporter.write_line(f"\nskipped, but the test extra is required: {report.nodeid}: {reason}", red=True)
            session.exitstatus = 1


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(scope="session")
def photographs() -> torch.Tensor:
    """Four real photographs, `(4, 3, 192, 192)` in [0, 1], shipped with scikit-image."""
    data = pytest.importorskip("skimage.data")
    crops = [data.astronaut()[:192, 150:342], data.coffee()[100:292, 200:392], data.chelsea()[50:242, 100:292]]
    crops.append(data.rocket()[100:292, 200:392])
    return torch.stack([torch.from_numpy(crop.copy()).permute(2, 0, 1).float() / 255 for crop in crops])


@pytest.fixture(scope="session")
def digits() -> torch.Tensor:
    """1400 handwritten digits, `(1400, 1, 16, 16)` in [-1, 1]."""
    from qa_hooks.demo import load_digits_images

    return load_digits_images().train


@pytest.fixture
def critic() -> torch.nn.Module:
    """A small convolutional critic for `(N, 1, 16, 16)`."""
    torch.manual_seed(1)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3, stride=2, padding=1),
        torch.nn.LeakyReLU(0.2),
        torch.nn.Conv2d(8, 16, 3, stride=2, padding=1),
        torch.nn.Tanh(),
        torch.nn.Flatten(),
        torch.nn.Linear(256, 1),
    )


@pytest.fixture
def fresh_accelerate():
    """Its state is global to the process."""
    state = pytest.importorskip("accelerate.state")

    def reset() -> None:
        state.AcceleratorState._reset_state(reset_partial_state=True)
        state.GradientState._reset_state()

    reset()
    yield
    reset()


@pytest.fixture
def stops_at():
    """Makes callbacks that end training after a step."""
    from qa_hooks.callbacks import Callback, TrainingStopped

    class StopsAt(Callback):
        def __init__(self, step: int) -> None:
            self.step = step

        def on_step_end(self, ctx) -> None:
            if ctx.step == self.step:
                raise TrainingStopped("enough")

    return StopsAt

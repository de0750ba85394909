"""Hooks in Transformers' and Lightning's trainers, and trackers through Accelerate, on two gloo processes."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest
import torch
from ranks import two_ranks
from torch import nn

from qa_hooks.callbacks import Callback, Hooks, SampleGrid, ScoreMonitor, TrainingStopped
from qa_hooks.integrations.accelerate import attach
from qa_hooks.integrations.lightning import lightning_callback
from qa_hooks.integrations.transformers import trainer_callback
from qa_hooks.scorers import FunctionScorer
from qa_hooks.writers import MemoryWriter

IMAGES = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def environment(rank: int, port: int) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", GROUP_RANK="0")
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="test", WANDB_MODE="offline")
    warnings.simplefilter("ignore")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1))


class StopsOnOneRank(Callback):
    def on_step_end(self, ctx) -> None:
        if ctx.rank == 1 and ctx.step == 5:
            raise TrainingStopped("enough")


def hooks_of(net: nn.Module, **options) -> Hooks:
    score = FunctionScorer(lambda x: x.mean((1, 2, 3)), name="brightness", higher_is_better=True)
    sample = lambda n, rng: net(torch.rand(n, 1, 8, 8, generator=rng)).clamp(0, 1)  # noqa: E731
    monitors = [ScoreMonitor(score, every=2, sample=sample, n=8), SampleGrid(sample, every=4, n=4)]
    return Hooks([*monitors, StopsOnOneRank()], **options)


def transformers_trainer(rank: int) -> dict:
    import transformers

    environment(rank, 29521)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, images):
            return {"loss": (self.net(images) - images).square().mean()}

    folder = Path(os.environ["TMPDIR"])
    arguments = transformers.TrainingArguments(
        output_dir=str(folder / "transformers"),
        use_cpu=True,
        ddp_backend="gloo",
        max_steps=12,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        report_to=[],
        save_steps=4,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    model, writer = Model(), MemoryWriter()
    hooks = hooks_of(model.net, writer=writer)
    data = [{"images": image} for image in IMAGES]
    trainer = transformers.Trainer(model, arguments, train_dataset=data, callbacks=[trainer_callback(hooks)])
    trainer.train()
    kept = folder / "transformers" / "checkpoint-4" / "qa_hooks.safetensors"
    return result(hooks, writer, model.net, trainer.state.global_step, trainer.accelerator.num_processes) | {
        "kept": kept.is_file()
    }


def lightning_trainer(rank: int) -> dict:
    import lightning.pytorch as pl
    from lightning.fabric.plugins.environments import TorchElasticEnvironment

    environment(rank, 29522)

    class Denoiser(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def training_step(self, batch, batch_idx):
            return (self.net(batch) - batch).square().mean()

        def configure_optimizers(self):
            return torch.optim.Adam(self.net.parameters())

    module, writer = Denoiser(), MemoryWriter()
    hooks = hooks_of(module.net, writer=writer)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        plugins=[TorchElasticEnvironment()],
        max_steps=12,
        accumulate_grad_batches=2,
        callbacks=[lightning_callback(hooks)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, torch.utils.data.DataLoader(IMAGES, batch_size=2))
    return result(hooks, writer, module.net, trainer.global_step, trainer.world_size)


def result(hooks: Hooks, writer: MemoryWriter, net: nn.Module, steps: int, world: int) -> dict:
    return {
        "steps": steps,
        "hooks": hooks.step_count,
        "stop": hooks.should_stop,
        "world": world,
        "points": [step for step, _ in writer.scalars.get("qa_eval/brightness/mean", [])],
        "weights": torch.cat([p.detach().flatten() for p in net.parameters()]),
    }


def trackers(rank: int) -> dict:
    from accelerate import Accelerator

    environment(rank, 29523)
    folder = Path(os.environ["TMPDIR"])
    accelerator = Accelerator(cpu=True, log_with=["tensorboard", "wandb"], project_dir=str(folder))
    accelerator.init_trackers("run", init_kwargs={"wandb": {"dir": str(folder), "settings": {"console": "off"}}})
    net = network()
    model, optimizer = accelerator.prepare(net, torch.optim.SGD(net.parameters(), lr=0.01))
    hooks = attach(accelerator, hooks_of(net), optimizer=optimizer)
    for step in range(8):
        accelerator.backward((model(IMAGES[8 * step + 4 * rank :][:4]) - 0.5).square().mean())
        optimizer.step()
        optimizer.zero_grad()
        if accelerator.check_trigger():
            break
    hooks.close()
    for tracker in accelerator.trackers:  # as end_training does, which ends the process group as well
        tracker.finish()
    return {"steps": hooks.step_count, "trackers": len(accelerator.trackers), "stop": hooks.should_stop}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("trained", [transformers_trainer, lightning_trainer])
def test_a_trainer_on_two_ranks(trained, folder):
    pytest.importorskip("transformers" if trained is transformers_trainer else "lightning.pytorch")
    first, second = two_ranks(trained, folder)
    for found in (first, second):
        assert found["world"] == 2
        assert found["steps"] == found["hooks"] == 5  # one rank alone asked for the end
        assert found["stop"]
    assert first["points"] == [1, 2, 4]
    assert second["points"] == []
    assert torch.equal(first["weights"], second["weights"])
    assert first.get("kept", True)


def test_trackers_on_two_ranks(folder):
    pytest.importorskip("wandb")
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    first, second = two_ranks(trackers, folder)
    assert first["steps"] == second["steps"] == 5
    assert first["stop"]
    assert second["stop"]
    read = events.EventAccumulator(str(folder / "run")).Reload()
    assert [point.step for point in read.Scalars("qa_eval/brightness/mean")] == [1, 2, 4]
    assert [point.step for point in read.Images("qa_images/samples/grid")] == [1, 4]
    runs = list(folder.glob("wandb/offline-run-*/*.wandb"))
    assert len(runs) == 1  # the main process alone
    assert runs[0].stat().st_size > 1000

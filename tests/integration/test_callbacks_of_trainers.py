"""Hooks inside a real Lightning `Trainer` and a real Transformers `Trainer`."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from qa_hooks.callbacks import Callback, Hooks, SampleGrid, ScoreMonitor
from qa_hooks.integrations import lightning as lightning_adapter
from qa_hooks.integrations.lightning import lightning_callback
from qa_hooks.integrations.transformers import trainer_callback
from qa_hooks.losses import SSIMLoss
from qa_hooks.writers import MemoryWriter
from toy_scorers import brightness

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*another convention.*:UserWarning"),
]


def denoiser() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1))


def make_hooks(net: nn.Module, *more: Callback, loss: SSIMLoss | None = None) -> tuple[Hooks, MemoryWriter]:
    def sample(n, generator):
        torch.rand(3)  # a careless function
        return net(torch.randn(n, 1, 16, 16, generator=generator)).clamp(-1, 1)

    score = brightness(value_range=(-1, 1))
    writer = MemoryWriter()
    monitor = ScoreMonitor(score, every=2, sample=sample, n=8)
    hooks = Hooks(
        [SampleGrid(sample, every=4, n=4, value_range=(-1, 1)), monitor, *more],
        writer=writer,
        track={"ssim": loss} if loss is not None else None,
        log_every=2,
    )
    return hooks, writer


def points(writer: MemoryWriter) -> dict:
    return {tag: values for tag, values in writer.scalars.items() if "qa_perf" not in tag}


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


# -- Lightning --------------------------------------------------------------------------------------------------------


def lightning_module(optimizers: int = 1):
    pl = pytest.importorskip("lightning.pytorch")

    class Denoiser(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = denoiser()
            self.quality = SSIMLoss(weight=0.1, value_range=(-1, 1))

        def training_step(self, batch, batch_idx):
            prediction = self.net(batch + 0.3 * torch.randn_like(batch))
            return (prediction - batch).square().mean() + self.quality(prediction, batch)

        def configure_optimizers(self):
            return torch.optim.Adam(self.net.parameters())

    return Denoiser()


def fit(digits, tmp_path, module, *callbacks, steps: int = 6, accumulate: int = 2, checkpoint=None):
    pl = pytest.importorskip("lightning.pytorch")
    loader = torch.utils.data.DataLoader(digits[:48], batch_size=8)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        accumulate_grad_batches=accumulate,
        callbacks=list(callbacks),
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        barebones=False,
    )
    torch.manual_seed(5)
    trainer.fit(module, loader, ckpt_path=checkpoint)
    return trainer


def test_lightning_counts_optimizer_steps_and_changes_nothing(digits, tmp_path):
    plain, watched = lightning_module(), lightning_module()
    fit(digits, tmp_path, plain)
    hooks, writer = make_hooks(watched.net, loss=watched.quality)
    fit(digits, tmp_path, watched, lightning_callback(hooks))
    assert same(plain.net, watched.net)
    assert hooks.step_count == 6  # of twelve batches
    assert [step for step, _ in writer.scalars["qa_eval/brightness/mean"]] == [1, 2, 4, 6]
    assert [step for step, _ in writer.scalars["qa_loss/ssim/ssim_loss"]] == [2, 4, 6]
    assert [step for step, _ in writer.images["qa_images/samples/grid"]] == [1, 4]
    assert hooks._over


@pytest.mark.filterwarnings("ignore:enough; hooks.should_stop is set")
def test_lightning_stops_when_a_callback_says_so(digits, tmp_path, stops_at):
    module = lightning_module()
    hooks, _ = make_hooks(module.net, stops_at(3))
    trainer = fit(digits, tmp_path, module, lightning_callback(hooks))
    assert hooks.step_count == 3
    assert trainer.global_step == 3


def test_lightning_keeps_the_state_of_hooks_in_its_checkpoints(digits, tmp_path):
    whole = lightning_module()
    hooks, expected = make_hooks(whole.net, loss=whole.quality)
    fit(digits, tmp_path, whole, lightning_callback(hooks))

    first = lightning_module()
    hooks, _ = make_hooks(first.net, loss=first.quality)
    trainer = fit(digits, tmp_path, first, lightning_callback(hooks), steps=3)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    saved = torch.load(tmp_path / "half.ckpt", weights_only=True)["callbacks"]["qa_hooks"]
    assert saved["step"] == 3
    assert saved["callbacks"]["ScoreMonitor(brightness)"]["last"]["step"] == 2

    second = lightning_module()
    hooks, writer = make_hooks(second.net, loss=second.quality)
    fit(digits, tmp_path, second, lightning_callback(hooks), checkpoint=tmp_path / "half.ckpt")
    assert hooks.step_count == 6
    assert [step for step, _ in writer.scalars["qa_eval/brightness/mean"]] == [4, 6]
    assert set(points(writer)) == set(points(expected))


def test_lightning_ends_the_hooks_when_training_fails(digits, tmp_path):
    module = lightning_module()
    hooks, _ = make_hooks(module.net)
    module.training_step = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        fit(digits, tmp_path, module, lightning_callback(hooks))
    assert hooks._over


def test_lightning_messages(digits, tmp_path, monkeypatch):
    module = lightning_module()
    with pytest.raises(TypeError, match=r"must be a qa_hooks.Hooks"):
        lightning_callback([])
    with pytest.raises(ValueError, match="the module has 1 optimizer"):
        fit(digits, tmp_path, module, lightning_callback(Hooks(), optimizer=1))
    for name in lightning_adapter.PACKAGES:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match="qa-hooks\\[lightning\\]"):
        lightning_callback(Hooks())


# -- Transformers -----------------------------------------------------------------------------------------------------


class Autoencoder(nn.Module):
    """What a Trainer trains: `forward` gives a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.net = denoiser()
        self.quality = SSIMLoss(weight=0.1, value_range=(-1, 1))

    def forward(self, pixel_values, labels=None):
        prediction = self.net(pixel_values)
        loss = (prediction - pixel_values).square().mean() + self.quality(prediction, pixel_values)
        return {"loss": loss, "prediction": prediction}


def train(digits, tmp_path, model, *callbacks, steps: int = 6, resume=None, **options):
    transformers = pytest.importorskip("transformers")
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "out"),
        max_steps=steps,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        save_steps=3,
        save_strategy="steps",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        seed=1,
        lr_scheduler_type="constant",
        logging_strategy="no",
        **options,
    )
    data = [{"pixel_values": image, "labels": 0} for image in digits[:48]]
    trainer = transformers.Trainer(model, arguments, train_dataset=data, callbacks=list(callbacks))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_transformers_counts_optimizer_steps_and_changes_nothing(digits, tmp_path):
    plain, watched = Autoencoder(), Autoencoder()
    train(digits, tmp_path, plain)
    hooks, writer = make_hooks(watched.net, loss=watched.quality)
    train(digits, tmp_path, watched, trainer_callback(hooks))
    assert same(plain, watched)
    assert hooks.step_count == 6  # of twelve micro-steps
    assert [step for step, _ in writer.scalars["qa_eval/brightness/mean"]] == [1, 2, 4, 6]
    assert [step for step, _ in writer.scalars["qa_loss/ssim/ssim_loss"]] == [2, 4, 6]
    assert hooks._over


@pytest.mark.filterwarnings("ignore:enough; hooks.should_stop is set")
def test_transformers_stops_when_a_callback_says_so(digits, tmp_path, stops_at):
    model = Autoencoder()
    hooks, _ = make_hooks(model.net, stops_at(2))
    assert train(digits, tmp_path, model, trainer_callback(hooks)).state.global_step == 2


def test_transformers_resumes_bit_for_bit(digits, tmp_path):
    whole = Autoencoder()
    hooks, expected = make_hooks(whole.net, loss=whole.quality)
    train(digits, tmp_path / "whole", whole, trainer_callback(hooks))

    first = Autoencoder()
    hooks, _ = make_hooks(first.net, loss=first.quality)
    train(digits, tmp_path, first, trainer_callback(hooks), steps=3)
    folder = tmp_path / "out" / "checkpoint-3"
    assert (folder / "qa_hooks.safetensors").is_file()

    second = Autoencoder()
    hooks, writer = make_hooks(second.net, loss=second.quality)
    train(digits, tmp_path, second, trainer_callback(hooks), resume=str(folder))
    assert same(whole, second)
    assert points(writer) == {
        tag: kept for tag, values in points(expected).items() if (kept := [p for p in values if p[0] > 3])
    }


def test_transformers_messages(digits, tmp_path):
    with pytest.raises(TypeError, match=r"must be a qa_hooks.Hooks"):
        trainer_callback([])
    model = Autoencoder()
    train(digits, tmp_path, model, steps=3)
    hooks, _ = make_hooks(model.net)
    resume = str(tmp_path / "out" / "checkpoint-3")
    with pytest.warns(UserWarning, match=r"qa_hooks.safetensors does not exist"):
        train(digits, tmp_path, Autoencoder(), trainer_callback(hooks), steps=4, resume=resume)
    assert hooks.step_count == 4  # the optimizer knows


def test_a_state_that_cannot_be_written_does_not_end_the_training_of_transformers(digits, tmp_path):
    class Odd(Callback):
        def state_dict(self):
            return {1: "a key that is no string"}

    model = Autoencoder()
    hooks, _ = make_hooks(model.net, Odd())
    with pytest.warns(UserWarning, match="qa_hooks.safetensors was not written.*TypeError") as caught:
        trainer = train(digits, tmp_path, model, trainer_callback(hooks))
    assert trainer.state.global_step == 6
    assert len([w for w in caught if "was not written" in str(w.message)]) == 1  # of two checkpoints
    assert not list(tmp_path.rglob("qa_hooks.safetensors*"))

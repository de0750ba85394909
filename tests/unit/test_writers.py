from __future__ import annotations

import sys

import pytest
import torch

from qa_hooks.writers import GROUPS, MemoryWriter, TensorBoardWriter, WandbWriter, make_tag


def fill(writer) -> None:
    for step in (1, 5):
        writer.scalar("qa_loss/ssim/mean", 0.25 * step, step)
    writer.image("qa_images/samples/grid", torch.full((3, 4, 6), 200, dtype=torch.uint8), 5)
    writer.histogram("qa_eval/niqe/histogram", torch.randn(50), 5)
    writer.close()


def test_tags_are_made_in_one_place():
    assert make_tag("loss", "my loss", "a/b") == "qa_loss/my_loss/a_b"
    with pytest.raises(ValueError, match="group must be one of"):
        make_tag("other", "a", "b")
    assert len(GROUPS) == 7


def test_tensorboard_files_can_be_read_back(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fill(TensorBoardWriter(tmp_path / "run"))
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("qa_loss/ssim/mean")] == [(1, 0.25), (5, 1.25)]
    image = events.Images("qa_images/samples/grid")[0]
    assert (image.width, image.height, image.step) == (6, 4, 5)
    assert events.Histograms("qa_eval/niqe/histogram")[0].histogram_value.num == 50


def test_a_folder_that_cannot_be_written_fails_at_once(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match=r"log_dir=.*cannot be written"):
        TensorBoardWriter(tmp_path / "file" / "run")


def test_memory_keeps_everything():
    writer = MemoryWriter()
    fill(writer)
    assert writer.scalars == {"qa_loss/ssim/mean": [(1, 0.25), (5, 1.25)]}
    assert writer.images["qa_images/samples/grid"][0][1].shape == (3, 4, 6)


@pytest.fixture
def wandb_run(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = wandb.init(mode="offline", dir=str(tmp_path), project="test")
    yield run
    run.finish()


def test_wandb_points_do_not_disturb_the_users_steps(wandb_run):
    writer = WandbWriter()
    for step in range(4):
        wandb_run.log({"mine": float(step)}, step=step)
        writer.scalar("qa_train/a/mean", 10.0 * step, step + 1)
        writer.scalar("qa_train/b/mean", 20.0 * step, step + 1)
        assert wandb_run.step == step
    writer.image("qa_images/samples/grid", torch.zeros(3, 4, 6, dtype=torch.uint8), 4)
    writer.histogram("qa_eval/niqe/histogram", torch.randn(50), 4)
    wandb_run.log({"mine": 4.0}, step=4)
    assert wandb_run.summary["mine"] == 3.0  # row 4 is still open
    assert wandb_run.summary["qa_train/a/mean"] == 30.0
    assert wandb_run.summary["qa_train/b/mean"] == 60.0
    assert wandb_run.summary["qa_step"] == 4


def test_wandb_rows_of_our_own(wandb_run):
    fill(WandbWriter(wandb_run, exclusive=True))
    assert wandb_run.step == 1  # the first of two points is complete
    assert wandb_run.summary["qa_loss/ssim/mean"] == 0.25


def test_wandb_says_when_points_are_lost(wandb_run):
    with pytest.warns(UserWarning, match="exclusive=True"):
        fill(WandbWriter(wandb_run))


def test_wandb_needs_a_run():
    pytest.importorskip("wandb")
    with pytest.raises(ValueError, match="no W&B run is active"):
        WandbWriter()


def test_a_missing_wandb_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"pip install 'qa-hooks\[wandb\]'"):
        WandbWriter()

"""`qa-hooks demo sr` and `demo diffusion`, with few steps."""

from __future__ import annotations

import pytest

from qa_hooks.cli import main
from qa_hooks.images import load_image


def test_super_resolution(tmp_path, capsys):
    assert main(["demo", "sr", "--out", str(tmp_path), "--steps", "2"]) == 0
    printed = capsys.readouterr().out
    assert "| variant | PSNR | SSIM | NIQE |" in printed
    assert "| L1 + SSIM loss |" in printed
    assert load_image(tmp_path / "sr" / "strip.png").shape[0] == 3
    assert sorted(path.name for path in (tmp_path / "sr").iterdir()) == ["L1", "L1_SSIM_loss", "strip.png"]


@pytest.mark.filterwarnings("ignore:.*images are of one colour", "ignore:.*another convention")
def test_diffusion(tmp_path, capsys):
    pytest.importorskip("peft")
    from qa_hooks.demo import run_diffusion_demo

    rows = run_diffusion_demo(tmp_path, steps=3, reward_steps=1, samples=24)
    assert [row["model"] for row in rows] == ["base", "reward", "reward + KL"]
    assert "[" in rows[0]["recall"]
    assert f"tensorboard --logdir {tmp_path}" in capsys.readouterr().out
    assert (tmp_path / "samples.png").is_file()


def test_data_belongs_to_the_gan(tmp_path, capsys):
    assert main(["demo", "sr", "--out", str(tmp_path), "--data", "x"]) == 1
    assert "--data is for demo gan" in capsys.readouterr().err

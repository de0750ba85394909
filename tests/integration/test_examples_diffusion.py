"""The diffusion example, run as a user runs it, with few steps: on the digits, and on a Stable Diffusion on disk."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("peft")

import tiny_pipelines as tiny
from diffusers import DDIMScheduler, StableDiffusionPipeline

from qa_hooks.demo.diffusion import peak_memory, train_digits_pipeline
from qa_hooks.images import load_image

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> str:
    command = [sys.executable, str(ROOT / "examples" / "diffusion_reward_lora.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def cells(out: str, name: str) -> list[str]:
    return next(line for line in out.splitlines() if line.startswith(f"| {name} |")).split(" | ")


def test_the_digits_end_with_tables_pictures_and_an_adapter(tmp_path):
    recipes = ["ReFL", "recommended"]
    out = run(
        "--base-steps", "3", "--steps", "2", "--batch-size", "4", "--every", "1", "--looks", "16", "--samples", "60",
        "--recipes", *recipes, "--out", str(tmp_path),
    )  # fmt: skip
    rows = json.loads((tmp_path / "results.json").read_text())["found"]
    assert list(rows) == ["real, other half", "base", *recipes]
    for name in recipes:
        assert rows[name]["steps"] == 2
        assert rows[name]["CPU s/step"] > 0
        assert rows[name]["MiB"] > 1
        assert rows[name]["KL"] > rows["base"]["KL"] == 0
        assert rows[name]["fd"] > rows["real, other half"]["fd"]
        assert (tmp_path / name.replace(" ", "_") / "pytorch_lora_weights.safetensors").stat().st_size > 1000
    # The adapter that was loaded gives the numbers of the one that was trained, and without it they are the base's.
    tables = out.split("saved, loaded into a fresh copy, and scaled:")[1:]
    for name, table in zip(recipes, tables, strict=True):
        assert cells(table, "adapter x 0")[1] == f"{rows['base']['reward']:.3g}"
        assert cells(table, "adapter x 1")[1] == f"{rows[name]['reward']:.3g}"
    height, width = load_image(tmp_path / "samples.png").shape[-2:]
    assert width == 24 * (32 + 6) + 6
    assert height > 3 * (32 + 6 + 13)  # each row under its name


def test_a_stable_diffusion_from_disk(tmp_path):
    save_tiny_pipeline(tmp_path / "sd")
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    out = run(
        "--pipeline", str(tmp_path / "sd"), "--reward", "niqe_bsd100", "--prompts", str(tmp_path / "prompts.txt"),
        "--recipes", "last-k1", "ReFL", "KL-10", "--steps", "2", "--batch-size", "2", "--samples", "8",
        "--sampling-steps", "2", "--every", "1", "--looks", "8", "--out", str(tmp_path / "out"),
    )  # fmt: skip
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["found"]
    assert list(rows) == ["base", "last-k1", "KL-10"], "ReFL has no pipeline"
    assert rows["last-k1"]["reward"] != rows["base"]["reward"]
    assert rows["KL-10"]["KL"] > 0
    assert "adapter x 0.5" in out


def save_tiny_pipeline(folder: Path) -> None:
    """A Stable Diffusion of random weights with a text encoder and a tokenizer of single letters, for 96 pixels."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    tokenizer = CLIPTokenizer({word: i for i, word in enumerate(words)}, [], model_max_length=16)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    config = CLIPTextConfig(
        vocab_size=len(words), max_position_embeddings=16, bos_token_id=0, eos_token_id=1, pad_token_id=1, **sizes
    )
    unet = tiny.unet()
    unet.register_to_config(sample_size=48)
    pipe = StableDiffusionPipeline(
        tiny.vae(), CLIPTextModel(config), tokenizer, unet, DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.save_pretrained(folder)


def test_a_base_that_was_trained_is_read_and_another_one_trained(tmp_path):
    images = torch.rand(20, 1, 16, 16) * 2 - 1
    first = train_digits_pipeline(images, tmp_path, steps=2).unet
    again = train_digits_pipeline(images, tmp_path, steps=2).unet
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    other = train_digits_pipeline(images, tmp_path, steps=3).unet
    assert not torch.equal(next(first.parameters()), next(other.parameters()))


def test_peak_memory_counts_what_lives_at_the_same_time():
    there = torch.zeros(2**20)  # made before, and changed in place

    def function() -> None:
        kept = torch.zeros(2**18)  # 1 MiB
        torch.zeros(2**19)  # 2 MiB, gone at once
        more = torch.zeros(2**18)
        there.add_(1)
        del kept, more

    assert peak_memory(function, torch.device("cpu")) == pytest.approx(3.0, abs=0.05)

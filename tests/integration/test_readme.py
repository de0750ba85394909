"""The README's lines, pasted into a stranger's script and run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from toy_scorers import brightness

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()

STRANGER = """
import torch
from torch import nn
torch.manual_seed(0)
G = nn.Sequential(nn.Linear(128, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 256), nn.Tanh())
G.append(nn.Unflatten(1, (1, 16, 16)))
D = nn.Sequential(nn.Flatten(), nn.Linear(256, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))
opt_G, opt_D = (torch.optim.Adam(net.parameters(), 1e-3, betas=(0.0, 0.9)) for net in (G, D))
loader = digits[:640].split(64)
"""

REST_OF_THE_LOOP = """
    opt_D.zero_grad()
    d_loss.backward()
    opt_D.step()
    g_loss = -D(G(torch.randn(len(real), 128))).mean()
    opt_G.zero_grad()
    g_loss.backward()
    opt_G.step()
"""


def test_the_diff_of_the_first_screen_runs(digits, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.chdir(tmp_path)
    (diff,) = re.findall(r"```diff\n(.*?)```", README, re.S)
    patched = "\n".join(line[1:] for line in diff.splitlines() if not line.startswith("-"))
    scope: dict = {"digits": digits}
    exec(STRANGER + patched + REST_OF_THE_LOOP, scope)
    hooks = scope["hooks"]
    assert hooks.step_count == 10
    hooks.close()
    (folder,) = (tmp_path / "runs").iterdir()
    tags = EventAccumulator(str(folder)).Reload().Tags()
    assert "qa_loss/qagan/ssim" in tags["scalars"]
    assert "qa_images/samples/grid" in tags["images"]


def test_every_row_of_the_table_runs(digits, photographs, critic):
    """What stands in the right column of "I have ... / I write ..." is code."""
    import qa_hooks

    rows = re.findall(r"^\| [^|]+ \| `([^`]+)`", README.split("## What to write")[1].split("##")[0], re.M)
    assert len(rows) >= 9
    real, fake = digits[:64], torch.tanh(torch.randn(64, 1, 16, 16))
    generator = torch.nn.Sequential(
        torch.nn.Linear(4, 3 * 96 * 96), torch.nn.Unflatten(1, (3, 96, 96)), torch.nn.Tanh()
    )
    scope = {
        **{name: getattr(qa_hooks, name) for name in qa_hooks.__all__},
        "D": critic, "real": real, "fake": fake, "batches": digits[:512].split(64), "d_loss": 0.0, "loss": 0.0,
        "pred": photographs.clone().requires_grad_(), "target": photographs, "metric": lambda x: x.std((1, 2, 3)),
        "F": torch.nn.functional, "G": lambda z: z, "z": fake.clone().requires_grad_(), "g_loss": 0.0,
        "optimizer": torch.optim.Adam(critic.parameters()), "sample": lambda n, rng: generator(torch.randn(n, 4)),
    }  # fmt: skip
    for row in rows:
        exec(row.replace('Hooks([...], log_dir="runs/x")', "Hooks([NaNGuard()])"), scope)
    assert scope["d_loss"].requires_grad
    assert scope["loss"].requires_grad
    assert scope["g_loss"].requires_grad


@pytest.mark.filterwarnings("ignore:a component has about")
def test_the_lines_on_giqa_run(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(
        r"```python\n(.*?)```", README.split("## Scores for generated images")[1].split("## ")[0], re.S
    )
    scope: dict = {"real_images": digits[:300], "samples": digits[300:340]}
    exec(code.replace('"resnet50"', '"random"'), scope)
    assert len(scope["best"]) == 36
    weights = scope["ohem"](digits[:20])
    assert sorted(set(weights.tolist())) == pytest.approx([20 / 24, 40 / 24])


def test_the_lines_on_checkpoints_run(digits, tmp_path, monkeypatch):
    from qa_hooks import GMMScorer
    from qa_hooks.images import save_image, to_uint8

    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for number, image in enumerate(to_uint8(digits[:80], (-1, 1))):
        save_image(image, tmp_path / "photos" / f"{number}.png")
    (code,) = re.findall(r"```python\n(.*?)```", README.split("## Which checkpoint")[1].split("## Scores")[0], re.S)
    small = code.replace('"inception"', '"random"').replace("10_000", "64").replace("5000", "2")
    scope: dict = {"digits": digits}
    exec(STRANGER, scope)
    G, optimizer = scope["G"], scope["opt_G"]
    scope["sample"] = lambda n, rng: G(torch.randn(n, 128, generator=rng))
    scope["scorer"] = GMMScorer("random", components=1, pca=8, value_range=(-1, 1)).fit(digits[:100], progress=False)
    exec(small, scope)
    for _ in range(4):
        optimizer.zero_grad()
        G(torch.randn(16, 128)).square().mean().backward()
        optimizer.step()
    scope["hooks"].close()
    assert len(list((tmp_path / "best").glob("step_*.pt"))) == 1
    assert scope["monitor"].last["fd"] > 0


@pytest.mark.filterwarnings("ignore:rank puts too few held-out pairs")
def test_the_lines_on_super_resolution_run(photographs, tmp_path, monkeypatch):
    from qa_hooks.images import save_image, to_uint8
    from qa_hooks.scorers import RankScorer, create_scorer

    monkeypatch.chdir(tmp_path)
    for kind, gain in (("original", 1.0), ("enhanced", 1.1)):
        (tmp_path / "photos" / kind).mkdir(parents=True)
        for number, image in enumerate(photographs):
            save_image(
                to_uint8((image * gain)[None].clamp(0, 1), (0, 1))[0], tmp_path / "photos" / kind / f"{number}.png"
            )
    RankScorer().fit(photographs, steps=3, progress=False).save("rank.safetensors")
    choose, tune = re.findall(
        r"```python\n(.*?)```", README.split("## Super-resolution")[1].split("## Diffusion")[0], re.S
    )
    scope: dict = {"torch": torch, "candidates": photographs.repeat(2, 1, 1, 1).view(4, 2, 3, 192, 192)}
    scope["scorer"] = create_scorer("niqe_bsd100")
    exec(choose, scope)
    item = scope["data"][0]
    assert (item["gt"].shape, item["lq"].shape) == ((3, 128, 128), (3, 32, 32))
    assert scope["target"].shape == photographs.shape
    hr = photographs[:, :, :64, :64]
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Conv2d(8, 8, 3, padding=1))
    net.append(torch.nn.Conv2d(8, 3, 3, padding=1))
    scope = {"torch": torch, "net": net, "lr": hr, "hr": hr}
    exec(tune, scope)
    scope["loss"].backward()
    assert any(p.grad is not None and bool((p.grad != 0).any()) for p in net.parameters())


def test_the_lines_on_diffusion_run(tmp_path, monkeypatch):
    import tiny_pipelines

    from qa_hooks import Hooks

    monkeypatch.chdir(tmp_path)
    pipe, call = tiny_pipelines.stable_diffusion()
    bright = brightness("bright", score_range=(0.0, 1.0))
    scope: dict = {"torch": torch, "pipe": pipe, "Hooks": Hooks, "scorer": bright, "loader": [call] * 2}
    (code,) = re.findall(r"```python\n(.*?)```", README.split("## Diffusion")[1].split("## NIQE")[0], re.S)
    code = code.replace("pipe(prompts, num_inference_steps=20", "pipe(**prompts, num_inference_steps=3")
    watched = "lambda n, generator: torch.rand(n, 3, 16, 16, generator=generator)"  # this pipeline has no tokenizer
    exec(re.sub(r"(?<=watched = )PipelineSampler\(.*\)", watched, code), scope)
    assert scope["guard"].last["step"] == 1
    assert scope["hooks"].step_count == 2
    assert (tmp_path / "adapter" / "pytorch_lora_weights.safetensors").is_file()


def test_no_placeholder_is_left():
    assert "@" not in re.sub(r"`[^`]*`|```.*?```", "", README, flags=re.S)


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#:]+)\)", README))
def test_links_lead_somewhere(link):
    assert (ROOT / link).exists()

"""The dial in other people's training: Diffusers' scripts, Accelerate's states, and what a step costs."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("datasets")

import test_diffusers_scripts as scripts
import tiny_pipelines as tiny
from accelerate import Accelerator
from diffusers import DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel, UNet2DModel
from test_diffusers_scripts import world  # noqa: F401  # a fixture
from torch.utils.flop_counter import FlopCounterMode

from qa_hooks.data import QualityTable
from qa_hooks.integrations.diffusers import QualityAdapter
from qa_hooks.integrations.diffusers.denoising import denoising_loss

pytestmark = pytest.mark.filterwarnings("ignore")  # the scripts' own
PAGE = (Path(__file__).resolve().parents[2] / "docs" / "quality_dial.md").read_text()


def lines_of(kind: str) -> str:
    return re.search(rf"^```diff {kind} dial\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL).group(1)


@pytest.fixture(scope="module", params=["no", "bf16"])
def trained(request, world, tmp_path_factory):  # noqa: F811
    """The folders of both scripts, with the lines of the page."""
    found = {}
    for kind, files in scripts.SCRIPTS.items():
        out = tmp_path_factory.mktemp(f"{kind} {request.param}")
        patch = lines_of(kind).replace("pyiqa:musiq", str(world / "gmm.safetensors"))
        (out / "train.py").write_text(scripts.add_lines(files["stand-in"].read_text(), patch))
        options = ["--mixed_precision", request.param, "--gradient_accumulation_steps", "2"]
        command = [str(out / "train.py"), *scripts.arguments(kind, world, out), *options]
        scripts.Runner("stand-in", world, out)._run_here(command, out)
        found[kind] = out
    return found


def test_the_lines_train_a_dial_that_loads(trained, world):  # noqa: F811
    pipe = StableDiffusionPipeline.from_pretrained(world / "sd", safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    folder = trained["text-to-image"]
    table = QualityTable.load(folder / "quality.csv")
    assert table.fingerprint
    adapter = QualityAdapter.load(folder / "dial.safetensors", pipe.unet, scores=table)
    assert adapter.scores.fingerprints == (table.fingerprint,)
    fresh = QualityAdapter(UNet2DConditionModel.from_pretrained(world / "sd" / "unet"), table)
    moved = [not torch.equal(a, b) for a, b in zip(adapter.parameters(), fresh.parameters(), strict=True)]
    assert all(moved)

    def image(**options) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        sizes = {"height": scripts.SIDE, "width": scripts.SIDE, "num_inference_steps": 2, "output_type": "pt"}
        return pipe("part 1", generator=generator, **sizes, **options).images

    with adapter.quality(0.5):
        turned = image()
    assert not torch.equal(turned, image())
    folder = trained["unconditional"]
    unet = UNet2DModel.from_pretrained(folder / "unet")
    adapter = QualityAdapter.load(folder / "dial.safetensors", unet)
    assert adapter.branches[0].project.weight.abs().sum() > 0
    assert len(list(folder.rglob("custom_checkpoint_0.pkl"))) == 1


@pytest.mark.parametrize("kind", scripts.SCRIPTS)
def test_three_lines_are_the_dials_own(kind):
    added = "\n".join(line[1:].strip() for line in lines_of(kind).splitlines() if line.startswith("+"))
    named = [s for s in ast.parse(added.replace("return ", "_ = ")).body if re.search(
        r"QualityAdapter\(|adapter\.parameters|adapter\.condition", ast.unparse(s))]  # fmt: skip
    assert len(named) == 3
    assert max(map(len, lines_of(kind).splitlines())) <= 121


def run(folder: Path, steps: list[int], seed: int = 0) -> list[torch.Tensor]:
    """Weights after these steps with accumulation over two micro-steps, going on from the state in the folder."""
    table = QualityTable([str(i) for i in range(8)], torch.arange(8.0)[:, None], "bright", True)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    unet = tiny.stable_diffusion()[0].unet.requires_grad_(False)
    adapter = QualityAdapter(unet, table, drop=(0.3, 0.0, 0.0))
    optimizer = accelerator.prepare(torch.optim.AdamW(adapter.parameters(), lr=1e-2))
    accelerator.register_for_checkpointing(adapter)
    if steps[0]:
        accelerator.load_state(str(folder))
    q = adapter.of_images(table)
    for step in steps:
        for micro in range(2):
            generator = torch.Generator().manual_seed(10 * step + micro)
            clean, text = (torch.randn(8, *shape, generator=generator) for shape in ((4, 8, 8), (4, 16)))
            with accelerator.accumulate(adapter):
                adapter.condition(q)
                condition = {"encoder_hidden_states": text}
                loss = denoising_loss(unet, DDPMScheduler(), clean, condition=condition, generator=generator).mean()
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
    accelerator.save_state(str(folder))
    return [p.detach().clone() for p in adapter.parameters()]


def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(tmp_path):
    whole = run(tmp_path / "whole", [0, 1, 2, 3])
    run(tmp_path / "parts", [0, 1])
    parts = run(tmp_path / "parts", [2, 3])
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_what_a_step_and_a_sample_cost():
    """Counted in products, which no other process slows: the adapter at most 10 % more, and scale 0 nothing."""
    torch.manual_seed(0)
    kinds = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "mid_block_type": "UNetMidBlock2DCrossAttn"}
    kinds |= {"up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
    unet = UNet2DConditionModel(32, cross_attention_dim=64, block_out_channels=(64, 128), attention_head_dim=8, **kinds)
    unet.requires_grad_(False)
    text, x = torch.randn(2, 77, 64), torch.randn(2, 4, 32, 32, requires_grad=True)

    def products(adapter: QualityAdapter | None, train: bool, scale: float = 1.0) -> int:
        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(train):
            if adapter is None:
                output = unet(x, 5, text).sample
            elif train:
                adapter.condition(torch.zeros(2))
                output = unet(x, 5, text).sample
            else:
                with adapter.quality(1.0, scale=scale, guidance=False):
                    output = unet(x, 5, text).sample
            if train:
                output.sum().backward()
        return counter.get_total_flops()

    plain = {train: products(None, train) for train in (True, False)}
    adapter = QualityAdapter(unet, QualityTable(["a", "b"], torch.tensor([[0.0], [1.0]]), "bright", True))
    assert plain[True] < products(adapter, True) <= 1.1 * plain[True]
    assert plain[False] < products(adapter, False) <= 1.1 * plain[False]
    assert products(adapter, False, scale=0.0) == plain[False]

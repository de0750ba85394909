"""The dial in other people's training: Diffusers' scripts, Accelerate's states, and what a step costs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("datasets")

import test_diffusers_scripts as scripts
import tiny_pipelines as tiny
from accelerate import Accelerator
from diffusers import DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel, UNet2DModel
from safetensors.torch import load_file
from test_diffusers_scripts import world  # noqa: F401  # a fixture
from torch.utils.flop_counter import FlopCounterMode

from qa_hooks.data import QualityTable
from qa_hooks.integrations.diffusers import QualityAdapter
from qa_hooks.integrations.diffusers.denoising import denoising_loss

pytestmark = pytest.mark.filterwarnings("ignore")  # the scripts' own
PAGE = (Path(__file__).resolve().parents[2] / "docs" / "quality_dial.md").read_text()


def lines_of(kind: str) -> str:
    return re.search(rf"^```diff {kind}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL).group(1)


class Variant(NamedTuple):
    """A script with lines of the page."""

    kind: str  # of `scripts.SCRIPTS`
    lines: tuple[str, ...]
    file: str | None = None  # another script of Diffusers, for which there is no stand-in


VARIANTS = {
    "text-to-image": Variant("text-to-image", ("text-to-image dial",)),
    "text-to-image, the adapter alone": Variant("text-to-image", ("text-to-image dial", "adapter alone")),
    "unconditional": Variant("unconditional", ("unconditional dial",)),
    "full": Variant("text-to-image", ("text-to-image dial",), "text_to_image/train_text_to_image.py"),
    "full, the adapter alone": Variant(
        "text-to-image", ("text-to-image dial", "adapter alone"), "text_to_image/train_text_to_image.py"
    ),
}
EACH_RANK = 'adapter.save(f"rank {accelerator.process_index} of {accelerator.num_processes}.safetensors")'
CASES = [
    pytest.param(source, name, id=f"{source}, {name}")
    for source in ("stand-in", "diffusers")
    for name, variant in VARIANTS.items()
    if (scripts.EXAMPLES if source == "diffusers" else variant.file is None)
]


class Trained(NamedTuple):
    """Where a script was run."""

    variant: Variant
    folder: Path
    command: list[str]


def write(source: str, name: str, world: Path, out: Path, *, dial: bool = True, after: str = "") -> Trained:  # noqa: F811
    """The script with its lines, and the command that runs it; `after` is put before its end."""
    variant = VARIANTS[name]
    path = scripts.SCRIPTS[variant.kind][source] if variant.file is None else Path(scripts.EXAMPLES, variant.file)
    script = path.read_text()
    for part in variant.lines if dial else ():
        script = scripts.add_lines(script, lines_of(part).replace("pyiqa:musiq", str(world / "gmm.safetensors")))
    end = "    accelerator.end_training()\n"
    script = script.replace(end, f"    {after}\n{end}") if after else script
    out.mkdir(exist_ok=True)
    (out / "train.py").write_text(script)
    arguments = scripts.arguments(variant.kind, world, out)
    if variant.file is not None:  # it knows neither, and samples in an autocast of CUDA
        for option in ("--validation_prompt", "--num_validation_images"):
            place = arguments.index(option)
            del arguments[place : place + 2]
    return Trained(variant, out, [str(out / "train.py"), *arguments])


def start(trained: Trained, world: Path, *options: str) -> None:  # noqa: F811
    scripts.Runner("", world, trained.folder)._run_here([*trained.command, *options], trained.folder)


@pytest.fixture(scope="module", params=[(case, precision) for case in CASES for precision in ("no", "bf16")],
                ids=lambda param: f"{param[0].id}, {param[1]}")  # fmt: skip
def trained(request, world, tmp_path_factory):  # noqa: F811
    """One run of each script, with accumulation."""
    (case, precision) = request.param
    out = tmp_path_factory.mktemp("run")
    run = write(*case.values, world, out)
    start(run, world, "--mixed_precision", precision, "--gradient_accumulation_steps", "2")
    return run


def test_the_lines_train_a_dial_that_loads(trained, world):  # noqa: F811
    table = QualityTable.load(trained.folder / "quality.csv")
    assert table.fingerprint
    dial = trained.folder / "dial.safetensors"
    if trained.variant.kind == "unconditional":
        unet = UNet2DModel.from_pretrained(trained.folder / "unet")
        adapter = QualityAdapter.load(dial, unet, scores=table)
        assert adapter.branches[0].project.weight.abs().sum() > 0
        assert list(trained.folder.rglob("custom_checkpoint_0.pkl"))
        return
    pipe = StableDiffusionPipeline.from_pretrained(world / "sd", safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    adapter = QualityAdapter.load(dial, pipe.unet, scores=table)
    assert adapter.scores.fingerprints == (table.fingerprint,)
    fresh = QualityAdapter(UNet2DConditionModel.from_pretrained(world / "sd" / "unet"), table)
    assert all(not torch.equal(a, b) for a, b in zip(adapter.parameters(), fresh.parameters(), strict=True))

    def image(**options) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        sizes = {"height": scripts.SIDE, "width": scripts.SIDE, "num_inference_steps": 2, "output_type": "pt"}
        return pipe("part 1", generator=generator, **sizes, **options).images

    with adapter.quality(0.5):
        turned = image()
    assert not torch.equal(turned, image())
    if "adapter alone" in trained.variant.lines:
        trained_of = network_of(trained)
        untouched = network_of(trained, world / "sd")
        assert all(not part.any() for name, part in trained_of.items() if "lora.up" in name or "lora_B" in name)
        assert all(torch.equal(part, untouched[name]) for name, part in trained_of.items() if name in untouched)


def network_of(trained: Trained, folder: Path | None = None) -> dict[str, torch.Tensor]:
    """What the script has saved beside the dial: a LoRA, or the whole network."""
    folder = trained.folder if folder is None else folder
    lora = folder / "pytorch_lora_weights.safetensors"
    whole = folder / "unet" / "diffusion_pytorch_model.safetensors"
    return load_file(lora if lora.exists() else whole)


@pytest.mark.parametrize(("source", "name"), [case for case in CASES if case.values[1] in ("text-to-image", "full")])
def test_an_untrained_dial_leaves_the_first_step_of_the_network_as_it_is(source, name, world, tmp_path):  # noqa: F811
    runs = [write(source, name, world, tmp_path / str(dial), dial=dial) for dial in (True, False)]
    for run in runs:
        start(run, world, "--max_train_steps", "1")
    with_dial, without = map(network_of, runs)
    assert with_dial.keys() == without.keys()
    assert all(torch.equal(with_dial[part], without[part]) for part in without)


@pytest.mark.slow
@pytest.mark.parametrize(("source", "name"), CASES)
def test_two_processes_end_with_one_dial(source, name, world, tmp_path):  # noqa: F811
    run = write(source, name, world, tmp_path / "out", after=EACH_RANK)
    environment = {**os.environ, "PYTHONPATH": str(scripts.HERE.parents[1]), "HF_HUB_OFFLINE": "1"}
    environment |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*launcher, *run.command], cwd=run.folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [load_file(run.folder / f"rank {rank} of 2.safetensors") for rank in range(2)]
    saved = load_file(run.folder / "dial.safetensors")
    assert all(torch.equal(part, other[key]) for other in ranks for key, part in saved.items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "name"), [case for case in CASES if case.values[0] == "diffusers" and "alone" not in case.values[1]]
)
def test_a_resumed_script_has_the_dial_of_its_checkpoint(source, name, world, tmp_path):  # noqa: F811
    run = write(source, name, world, tmp_path / "out")
    start(run, world)
    (checkpoint,) = sorted(run.folder.glob("checkpoint-*"))[:1]
    script = Path(run.command[0])
    load = re.search(r"^( *)accelerator\.load_state\(.*$", script.read_text(), re.MULTILINE)
    keep = f'{load[1]}adapter.save("loaded.safetensors")'
    script.write_text(script.read_text().replace(load[0], f"{load[0]}\n{keep}"))
    more = [] if VARIANTS[name].kind == "unconditional" else ["--max_train_steps", "4"]
    start(run, world, "--resume_from_checkpoint", checkpoint.name, *more)
    loaded = load_file(run.folder / "loaded.safetensors")
    stored = torch.load(checkpoint / "custom_checkpoint_0.pkl", weights_only=True)
    assert all(torch.equal(part, stored[key]) for key, part in loaded.items())


@pytest.mark.parametrize("kind", scripts.SCRIPTS)
def test_three_lines_are_the_dials_own(kind):
    added = "\n".join(line[1:].strip() for line in lines_of(f"{kind} dial").splitlines() if line.startswith("+"))
    named = [line for line in added.splitlines() if re.search(
        r"QualityAdapter\(|add_param_group|adapter\.condition", line)]  # fmt: skip
    assert len(named) == 3
    assert max(map(len, lines_of(f"{kind} dial").splitlines())) <= 121


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

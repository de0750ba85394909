"""Tune a diffusion model on a quality score through LoRA, and see what it gains, what it loses and when to stop.

    python examples/diffusion_reward_lora.py                            # a DDPM of digits, a quarter of an hour
    python examples/diffusion_reward_lora.py --flow                     # a flow-matching model of digits
    python examples/diffusion_reward_lora.py --recipes recommended --seed 1
    python examples/diffusion_reward_lora.py --pipeline PATH_OR_NAME --reward pyiqa:musiq --prompts prompts.txt

The model of the digits is trained first and kept in --out. Its reward is GMM-GIQA fitted on one half of the real
images; the held-out scores were fitted on the other half, in other features. It ends with a table, sample grids, a
TensorBoard run, and the adapter saved, loaded and scaled. What came out is in docs/diffusion.md. A run that was
stopped goes on with the same command; other settings, such as the lines above, want another --out each.
"""

from __future__ import annotations

import argparse
import copy
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from qa_hooks import GMMScorer, Hooks, SampleGrid, create_scorer
from qa_hooks.callbacks import RewardGuard
from qa_hooks.demo import Evaluator, load_digits_images
from qa_hooks.demo.diffusion import distances_to_base, peak_memory, train_digits_pipeline
from qa_hooks.demo.results import load_column, results_of, run_example, save_column
from qa_hooks.demo.tables import write_table
from qa_hooks.drawing.named_rows import named_rows
from qa_hooks.evaluation import make_reference, measure
from qa_hooks.images import save_image, to_uint8
from qa_hooks.integrations.diffusers import (
    PipelineSampler,
    RewardFinetuner,
    grad_last_steps,
    predicted_image,
    reward_sample,
)
from qa_hooks.integrations.diffusers.prediction import add_noise
from qa_hooks.integrations.peft import inject_lora, load_lora, save_lora, scale_lora
from qa_hooks.losses import ScoreLoss


class Recipe(NamedTuple):
    method: str = "last"
    k: int = 1
    kl_weight: float = 0.0
    ceiling: bool = False
    action: str = "warn"  # of the guard
    longer: int = 1  # times --steps


RECIPES = {
    "last-k1": Recipe(),
    "last-k5": Recipe(k=5),
    "random": Recipe("random"),
    "ReFL": Recipe("refl"),
    "LV": Recipe("lv"),
    "guard-stops": Recipe(action="stop", longer=3),
    "KL-10": Recipe(kl_weight=10.0),
    "KL-10-ceiling": Recipe(kl_weight=10.0, ceiling=True),
    "KL-30-k5": Recipe(k=5, kl_weight=30.0),
    "recommended": Recipe(kl_weight=100.0),
    "predicted-image": Recipe("predicted", kl_weight=100.0),
}


class Task(NamedTuple):
    """What is tuned, on which score, and what it is judged by."""

    pipeline: Any
    call: dict[str, Any]  # options of the pipeline
    reward: Any
    heldout: list[Any]
    ceiling: float | None
    prompts: list[str] | None = None
    real: Tensor | None = None
    evaluator: Any = None

    def sampler(self, pipe: Any) -> PipelineSampler:
        return PipelineSampler(pipe, self.prompts, batch_size=4 if self.prompts else 128, **self.call)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps of each recipe")
    parser.add_argument("--batch-size", type=int, default=32, help="images of one step")
    parser.add_argument("--lr", type=float, default=1e-3, help="of AdamW on the adapter")
    parser.add_argument("--kl-scale", type=float, default=1.0, help="the deviation of single images' rewards over 8")
    parser.add_argument("--rank", type=int, default=8, help="of the adapter; alpha is the same")
    parser.add_argument("--every", type=int, default=10, help="steps between two looks of the guard")
    parser.add_argument("--looks", type=int, default=128, help="images of a look")
    parser.add_argument("--samples", type=int, default=512, help="images that a row of the table is measured on")
    parser.add_argument("--base-steps", type=int, default=1400, help="of training the model of the digits")
    parser.add_argument("--flow", action="store_true", help="a model of the digits by flow matching")
    parser.add_argument("--pipeline", help="a Stable Diffusion to tune instead: a folder, or a name on the hub")
    parser.add_argument(
        "--reward", default="niqe_bsd100", help="with --pipeline: a scorer, such as pyiqa:musiq, or a file"
    )
    parser.add_argument("--heldout", nargs="*", default=[], help="with --pipeline: scorers that are only watched")
    parser.add_argument("--ceiling", type=float, help="with --pipeline: a score beyond which nothing is paid")
    parser.add_argument("--prompts", type=Path, help="with --pipeline: a text file, one prompt in each line")
    parser.add_argument("--sampling-steps", type=int, default=20, help="with --pipeline")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/diffusion_reward_lora"))
    return parser.parse_args()


def digits_task(args: argparse.Namespace) -> Task:
    torch.set_num_threads(1)  # networks this small are slower on more
    digits = load_digits_images()
    pipeline = train_digits_pipeline(digits.train, args.out / "base", steps=args.base_steps, flow=args.flow)
    real, evaluator = (digits.train + 1) / 2, Evaluator(digits)
    half, other = real.chunk(2)

    def fit(name: str, extractor: Any, images: Tensor) -> GMMScorer:
        scorer = GMMScorer(extractor, 7, pca=0.9, reg_covar=1e-2).fit(images, progress=False)
        scorer.name = name
        return scorer

    reward = fit("giqa_gmm", {"type": "random", "width": 16}, half)
    heldout = [fit("other", {"type": "random", "width": 16, "seed": 1}, other), fit("cnn", evaluator.extractor, other)]
    ceiling = float(reward(other).median())  # not of the images that it was fitted on, whose scores are too high
    return Task(pipeline, {"num_inference_steps": 10}, reward, heldout, ceiling, None, real, evaluator)


def pipeline_task(args: argparse.Namespace) -> Task:
    from diffusers import DDIMScheduler, DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(args.pipeline, safety_checker=None)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu").set_progress_bar_config(disable=True)
    prompts = args.prompts.read_text().splitlines() if args.prompts else ["a photograph of a garden", "a portrait"]
    reward, *heldout = (create_scorer(spec).to(pipeline.device) for spec in (args.reward, *args.heldout))
    return Task(pipeline, {"num_inference_steps": args.sampling_steps}, reward, heldout, args.ceiling, prompts)


def tune(task: Task, name: str, recipe: Recipe, args: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """The pipeline with a trained adapter, and what the training cost."""
    pipe = copy.copy(task.pipeline)
    pipe.unet = copy.deepcopy(task.pipeline.unet)
    adapters = inject_lora(pipe.unet, rank=args.rank, alpha=args.rank)
    optimizer = torch.optim.AdamW(adapters, lr=args.lr)

    def sample(generator: torch.Generator) -> Tensor:
        if task.prompts is None:
            noise = torch.randn(args.batch_size, 1, 16, 16, generator=generator)
            if recipe.method == "predicted":
                return denoised(task, pipe, noise, generator)
            options = {"num_steps": task.call["num_inference_steps"], "method": recipe.method, "k": recipe.k}
            return reward_sample(pipe.unet, pipe.scheduler, noise, **options)
        chosen = torch.randint(len(task.prompts), (args.batch_size,), generator=generator)
        with grad_last_steps(pipe, recipe.k):
            prompts = [task.prompts[i] for i in chosen.tolist()]
            return pipe(prompts, generator=generator, output_type="pt", **task.call).images

    reward = ScoreLoss(task.reward, ceiling=task.ceiling if recipe.ceiling else None)
    kl_weight = args.kl_scale * recipe.kl_weight
    tuner = RewardFinetuner(sample, reward, denoiser=pipe.unet, kl_weight=kl_weight, seed=args.seed)
    look: dict[str, Any] = {"sample": task.sampler(pipe), "real": task.real, "every": args.every, "n": args.looks}
    look["extractor"] = task.evaluator.extractor if task.evaluator else "random"
    guard = RewardGuard(task.reward, task.heldout, pipe.unet, action=recipe.action, **look)
    grid = SampleGrid(task.sampler(pipe), n=32, every=max(1, args.steps // 2))

    def step() -> None:
        loss, _ = tuner.step(tuner.generator())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(adapters, 1.0)
        optimizer.step()

    folder, steps = args.out / name, recipe.longer * args.steps
    row: dict[str, Any] = {"alarm": "-", "MiB": 0.0}
    seconds: list[float] = []
    with Hooks([guard, grid], log_dir=folder, track={"reward": tuner}, log_every=5) as hooks:
        for number in tqdm(range(steps), desc=name, unit="step", disable=None):
            started = time.process_time()
            if number == 1:
                row["MiB"] = peak_memory(step, pipe.device)
            else:
                step()
                seconds.append(time.process_time() - started)
            hooks.step()
            if guard.alarms and row["alarm"] == "-":
                row["alarm"] = hooks.step_count
            if hooks.should_stop:
                break
    return pipe, {"steps": hooks.step_count, **row, "CPU s/step": sum(seconds) / max(1, len(seconds))}


def denoised(task: Task, pipe: Any, noise: Tensor, generator: torch.Generator) -> Tensor:
    """Real images, noised to random levels and cleaned by one call of the denoiser: an ordinary training batch."""
    chosen = torch.randint(len(task.real), (len(noise),), generator=generator)
    levels = pipe.scheduler.timesteps[torch.randint(len(pipe.scheduler.timesteps), (len(noise),), generator=generator)]
    noisy = add_noise(pipe.scheduler, 2 * task.real[chosen] - 1, noise, levels)
    images, _ = predicted_image(pipe.scheduler, pipe.unet(noisy, levels).sample, levels, noisy)
    return images


@torch.no_grad()
def judge(task: Task, images: Tensor) -> dict[str, Any]:
    """The columns of the table that images tell."""
    row = {"reward": float(task.reward(images).mean())}
    row |= {f"held out: {scorer.name}": float(scorer(images).mean()) for scorer in task.heldout}
    if task.evaluator is not None:
        extractor = task.evaluator.extractor
        reference = make_reference(extractor, task.real, progress=False)
        found = measure(extractor(to_uint8(images, (0, 1))), reference, ["fd", "pr"], extractor=extractor)
        row |= {key: found[key].value for key in ("fd", "precision", "recall")}
    return row


def judge_samples(task: Task, pipe: Any, n: int) -> tuple[dict[str, Any], Tensor]:
    """The row, with the distance to the base on the way; and images from the same noise in each row."""
    with distances_to_base(pipe.unet) if pipe is not task.pipeline else nullcontext([0.0]) as distances:
        images = task.sampler(pipe)(n, torch.Generator().manual_seed(1))
    return judge(task, images) | {"KL": sum(distances) / len(distances)}, images[:24].cpu()


def scaled(task: Task, adapter: Path, n: int) -> dict[str, dict[str, Any]]:
    """The saved adapter in a fresh copy of the base, from off to fully on."""
    pipe = copy.copy(task.pipeline)
    pipe.unet = copy.deepcopy(task.pipeline.unet)
    load_lora(pipe.unet, adapter)
    rows = {}
    for scale in (0.0, 0.25, 0.5, 0.75, 1.0):
        scale_lora(pipe.unet, scale)
        rows[f"adapter x {scale:g}"] = judge_samples(task, pipe, n)[0]
    return rows


def show(rows: dict[str, dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    cells = {name: [row.get(key, "-") for key in columns] for name, row in rows.items()}
    text = [[name, *(f"{c:.3g}" if isinstance(c, float) else str(c) for c in row)] for name, row in cells.items()]
    print("\n" + write_table(["", *columns], text))


def main() -> None:
    args = parse()
    store = results_of(args, without=("recipes",))
    task = pipeline_task(args) if args.pipeline else digits_task(args)
    if "real, other half" not in store and task.real is not None:
        store.add("real, other half", judge(task, task.real.chunk(2)[1][: args.samples]))
    recipes = [name for name in args.recipes if task.prompts is None or RECIPES[name].method == "last"]
    for name in ("base", *recipes):
        if name in store:
            print(f"{name}: done before")
            continue
        pipe, cost = (task.pipeline, {}) if name == "base" else tune(task, name, RECIPES[name], args)
        row, pictures = judge_samples(task, pipe, args.samples)
        save_column(to_uint8(pictures, (0, 1)), args.out / "pictures" / f"{name}.png")
        if name != "base":
            save_lora(pipe.unet, args.out / name)
        store.add(name, cost | row)
    show({name: row for name, row in store.found.items() if name in ("real, other half", "base", *recipes)})
    columns = {name: load_column(args.out / "pictures" / f"{name}.png") for name in ("base", *recipes)}
    shown = {name: torch.stack(column) for name, column in columns.items()}
    save_image(named_rows(shown, scale=2), args.out / "samples.png")
    for name in dict.fromkeys((recipes[0], recipes[-1])):
        print(f"\n{name}, saved, loaded into a fresh copy, and scaled:")
        show(scaled(task, args.out / name, args.samples))
    print(f"\nrows of {args.out / 'samples.png'}, from the same noise: base, {', '.join(recipes)}")
    print(f"{args.out / 'results.json'}\ntensorboard --logdir {args.out}")


if __name__ == "__main__":
    run_example(main)

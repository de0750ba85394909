"""Turn quality up and down in a small diffusion model: the quality adapter in three forms, and its rivals.

    python examples/quality_dial.py --data BSD100                       # an hour of one thread for three seeds
    python examples/quality_dial.py --data CIFAR-10/train --seeds 0     # a subfolder for each class
    python examples/quality_dial.py --tiny                              # a few seconds, to see that it runs
    tensorboard --logdir runs/quality_dial

A UNet with cross-attention over class tokens is trained on 32 x 32 crops of photographs, blurred or noisy to known
levels. Then each row gets the same number of images to train on: the adapter as published, with gates, in the form that
adds to the embedding of the time; quality words as a second token; LoRA with quality weights, on the best images alone,
and on the score as a reward. Gradient guidance trains nothing. Each row is asked for 9 levels of quality.

The score that all of them follow was trained on degradations (`RankScorer`); the held-out one is a distance of NIQE
features from those of clean crops. Where the first rises and the second does not, the row attacks its metric, and the
table says so. It ends with the table, a strip of one seed over the levels for each row, and a TensorBoard run. What
came out is in docs/quality_dial.md. A run that was stopped goes on with the same command; other settings want another
--out.
"""

from __future__ import annotations

import argparse
import copy
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file, save_file
from scipy.stats import spearmanr
from torch import Tensor, nn
from tqdm import tqdm

from qa_hooks import QualityTable, RankScorer, TensorBoardWriter, create_extractor, quality_weights
from qa_hooks.demo.graded import ClassModel, load_graded_crops, naturalness_of, pack, unpack
from qa_hooks.demo.results import results_of, run_example
from qa_hooks.demo.tables import mean_std, write_table
from qa_hooks.evaluation import make_reference, measure
from qa_hooks.images import save_image, to_uint8
from qa_hooks.integrations.diffusers import (
    GradientGuidance,
    QualityAdapter,
    QualityWords,
    RewardFinetuner,
    reward_sample,
)
from qa_hooks.integrations.diffusers.denoising import denoising_loss
from qa_hooks.integrations.diffusers.quality.pictures import draw_strip
from qa_hooks.integrations.peft import inject_lora

FORMS = {
    "adapter-published-init": {"init": "published"},
    "adapter-gated": {"init": "gated"},
    "adapter-time-embedding": {"form": "embedding"},
}
FIXED = ["base", "weights", "filtering", "reward-fine-tuning"]  # have one setting, whatever level they are asked for
ROWS = [*FORMS, "gradient-guidance", "quality-words", "reward-fine-tuning", "filtering", "weights"]
REWARD_CALLS = 5  # denoiser calls of one image's training step with a reward, in units of an ordinary step's three


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="photographs, or a subfolder of 32 x 32 images for each class")
    parser.add_argument("--rows", nargs="+", default=ROWS, choices=ROWS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--base-steps", type=int, default=400)
    parser.add_argument("--steps", type=int, default=120, help="of each row")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--samples", type=int, default=50, help="images for each level of quality")
    parser.add_argument("--sampling-steps", type=int, default=10)
    parser.add_argument("--crops", type=int, default=3000)
    parser.add_argument("--strength", type=float, default=2.0, help="of gradient guidance at the highest level")
    parser.add_argument("--out", type=Path, default=Path("runs/quality_dial"))
    parser.add_argument("--tiny", action="store_true", help="a few steps of everything, one seed")
    args = parser.parse_args()
    if args.tiny:
        args.seeds, args.base_steps, args.steps, args.samples, args.crops = args.seeds[:1], 3, 2, 50, 120
        args.sampling_steps = 2
    return args


class World:
    """Data, scorers and the base model, which all rows share."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        options = {"prediction_type": "v_prediction", "timestep_spacing": "trailing", "clip_sample": False}
        self.scheduler = DDIMScheduler(beta_schedule="squaredcos_cap_v2", **options)
        try:
            self.crops = load_graded_crops(args.data, count=args.crops)
        except (OSError, ValueError) as error:
            raise SystemExit(f"error: --data: {error}") from error
        fit = {"steps": 5 if args.tiny else 400, "crop": 32, "crops": 1, "warn_below": 0, "progress": False}
        self.scorer = RankScorer().fit(self.crops.clean, **fit)
        self.held_out = naturalness_of(self.crops.clean)
        scores = torch.cat([self.scorer(part) for part in self.crops.images.split(256)])
        keys = [str(index) for index in range(len(scores))]
        self.table = QualityTable(keys, scores[:, None], "rank", True, fingerprint=self.scorer.fingerprint)
        self.extractor = create_extractor({"type": "random", "width": 16})
        self.reference = make_reference(self.extractor, self.crops.images, progress=False)
        torch.manual_seed(0)
        self.base = ClassModel(self.crops.classes)
        path = args.out / "base.safetensors"
        if not path.exists():
            self.train_base()
            save_file(self.base.state_dict(), path.with_suffix(".part"))  # a killed run leaves no half of a file
            path.with_suffix(".part").replace(path)
        self.base.load_state_dict(load_file(path))
        self.base.requires_grad_(False).eval()
        seen = {name: scorer.goodness(self.crops.images) for name, scorer in self.judges().items()}
        for name, values in seen.items():
            correlation = spearmanr(values, -self.crops.levels)[0]
            print(f"{name} against the level of degradation: Spearman {correlation:.2f}", flush=True)

    def train_base(self) -> None:
        steps = self.args.base_steps
        optimizer = torch.optim.AdamW(self.base.parameters(), lr=1e-3)
        rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=min(0.3, 50 / steps))
        for losses, _ in self.batches(self.base, steps, seed=0, name="base model"):
            step(optimizer, losses.mean())
            rate.step()

    def judges(self) -> dict[str, Any]:
        return {"rank": self.scorer, "held-out": self.held_out}

    def batches(
        self, model: ClassModel, steps: int, *, seed: int, name: str, before: Any = None, rows: Any = None
    ) -> Any:
        """The losses of `steps` batches, one for each image, and the images' positions."""
        generator = torch.Generator().manual_seed(seed)
        allowed = torch.arange(len(self.crops.images)) if rows is None else rows
        for _ in tqdm(range(steps), desc=name, unit="step", disable=None):
            index = allowed[torch.randint(len(allowed), (self.args.batch_size,), generator=generator)]
            words = before(index) if before is not None else None
            condition = {"encoder_hidden_states": model.context(self.crops.labels[index], words)}
            clean = pack(self.crops.images[index])
            yield denoising_loss(model.unet, self.scheduler, clean, condition=condition, generator=generator), index

    @torch.no_grad()
    def sample(self, model: ClassModel, n: int, seed: int, words: int | None = None) -> Tensor:
        """`(n, 3, 32, 32)` in [0, 1]; the same noise and the same classes for each setting."""
        noise = torch.randn(n, 12, 16, 16, generator=torch.Generator().manual_seed(seed))
        labels = torch.arange(n) % self.crops.classes
        said = None if words is None else torch.full((n,), words)
        images = [
            reward_sample(
                model.unet, self.scheduler, part, num_steps=self.args.sampling_steps, decode=unpack,
                condition={"encoder_hidden_states": model.context(label, word)},
            )
            for part, label, word in zip(
                noise.split(64), labels.split(64), [None] * n if said is None else said.split(64), strict=False
            )
        ]  # fmt: skip
        return torch.cat(images)


def step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def train_row(world: World, name: str, seed: int) -> tuple[Any, int]:
    """Train one row; a function of the level (q) that gives a sampler's context and word, and the number of steps."""
    args, model = world.args, copy.deepcopy(world.base)
    torch.manual_seed(seed)
    steps = args.steps
    if name in FORMS:
        adapter = QualityAdapter(model.unet, world.table, drop=(0.1, 0.0, 0.0), seed=seed, **FORMS[name])
        q = adapter.of_images(world.table)
        optimizer = torch.optim.AdamW(adapter.parameters(), lr=3e-3, weight_decay=1e-2)

        def condition(index: Tensor) -> None:
            adapter.condition(q[index])

        for losses, _ in world.batches(model, steps, seed=seed, name=name, before=condition):
            step(optimizer, losses.mean())
        return lambda level: (model, adapter.quality(level), None), steps
    if name == "gradient-guidance":
        guidance = {level: max(0.0, args.strength * (level + 2) / 4) for level in _levels(world)}

        def steered(level: float) -> Any:
            steer = GradientGuidance(world.scorer, guidance[level])
            return model, steer.around(model.unet, scheduler=world.scheduler, decode=unpack, guidance=False), None

        return steered, 0
    parameters = inject_lora(model.unet, rank=8, alpha=8, seed=seed)
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    if name == "reward-fine-tuning":
        steps = max(1, steps // REWARD_CALLS)
        labels = torch.arange(args.batch_size) % world.crops.classes
        condition = {"encoder_hidden_states": model.context(labels)}
        draw = {"num_steps": args.sampling_steps, "decode": unpack, "condition": condition}
        tuner = RewardFinetuner(
            lambda noise: reward_sample(model.unet, world.scheduler, noise, **draw), world.scorer,
            denoiser=model.unet, kl_weight=10.0, ceiling=world.scorer.real_level, seed=seed,
        )  # fmt: skip
        for _ in tqdm(range(steps), desc=name, unit="step", disable=None):
            step(optimizer, tuner.step(torch.randn(args.batch_size, 12, 16, 16, generator=tuner.generator()))[0])
        return lambda level: (model, nullcontext(), None), steps
    words = QualityWords()
    scores = world.table.values[:, 0]
    if name == "quality-words":
        q = (scores - scores.mean()) / scores.std()
        said, model.words = words.numbers(q), nn.Embedding(len(words.levels), world.base.classes.embedding_dim)
        optimizer.add_param_group({"params": list(model.words.parameters()), "lr": 1e-2})
        for losses, _ in world.batches(model, steps, seed=seed, name=name, before=lambda index: said[index]):
            step(optimizer, losses.mean())
        return lambda level: (model, nullcontext(), int(words.numbers(level))), steps
    weights = quality_weights(world.table) if name == "weights" else torch.ones(len(scores))
    best = scores.argsort(descending=True)[: len(scores) // 5] if name == "filtering" else None
    for losses, index in world.batches(model, steps, seed=seed, name=name, rows=best):
        step(optimizer, (weights[index] * losses).mean())
    return lambda level: (model, nullcontext(), None), steps


def _levels(world: World) -> list[float]:
    scores = world.table.values[:, 0]
    low, high = ((end - scores.mean()) / scores.std() for end in (scores.min(), scores.max()))
    return [round(float(x), 4) for x in torch.linspace(max(-2.0, float(low)), min(2.0, float(high)), 9)]


def judge(world: World, name: str, sampler: Any, seed: int) -> tuple[dict[str, Any], list[Tensor]]:
    """Scores at each level, and distances at the level nearest to the data's mean and at the highest."""
    levels, found, sheets = _levels(world), {"levels": _levels(world), "rank": [], "held-out": []}, []
    middle = min(range(9), key=lambda i: abs(levels[i]))
    for place, level in enumerate(levels):
        if place == 0 or name not in FIXED:
            model, block, word = sampler(level)
            with block:
                images = world.sample(model, world.args.samples, 1000 + seed, word)
        for judge_name, scorer in world.judges().items():
            found[judge_name].append(float(scorer.goodness(images).mean()))
        sheets.append(to_uint8(images[:6]))
        if place in (middle, 8):
            features = world.extractor(to_uint8(images).float() / 255)
            values = measure(features, world.reference, ["fd", "pr"], extractor=world.extractor)
            end = "mean" if place == middle else "top"
            found |= {f"{key} at {end}": values[key].value for key in ("fd", "precision", "recall")}
    for judge_name in world.judges():
        scores = found[judge_name]
        found[f"spearman {judge_name}"] = None if name in FIXED else float(spearmanr(levels, scores)[0])
    return found, sheets


def main() -> None:
    args = parse()
    torch.set_num_threads(1)  # networks this small are slower on more
    store = results_of(args, without=("rows", "seeds"))
    world, writer, rows = World(args), TensorBoardWriter(args.out), ["base", *args.rows]
    for seed in args.seeds:
        for name in rows:
            if f"{name}, seed {seed}" in store:
                print(f"seed {seed}, {name}: done before")
                continue
            begun = time.process_time()
            sampler, steps = (
                (lambda level: (world.base, nullcontext(), None), 0) if name == "base" else train_row(world, name, seed)
            )
            trained = time.process_time() - begun
            found, sheets = judge(world, name, sampler, seed)
            found |= {"train s": trained, "sample s": time.process_time() - begun - trained, "steps": steps}
            for place, level in enumerate(found["levels"]):
                for judge_name in ("rank", "held-out"):
                    writer.scalar(f"{name}-seed{seed}/{judge_name}", found[judge_name][place], round(1000 * level))
            strip = draw_strip(torch.stack(sheets, 1), found["levels"], title=name)
            writer.image(f"strip/{name}", strip, seed)
            save_image(strip, args.out / f"strip_{name}_{seed}.png")
            store.add(f"{name}, seed {seed}", found)
            print(
                f"seed {seed}, {name}: " + ", ".join(f"{k} {v:.3g}" for k, v in found.items() if isinstance(v, float)),
                flush=True,
            )
    writer.close()
    print(table_of({name: [store.found[f"{name}, seed {seed}"] for seed in args.seeds] for name in rows}))


def verdict_of(runs: list[dict[str, Any]]) -> str:
    """What the correlations say: a dial moves its own score (0.9) and one that is held out (0.7)."""
    own, other = ([run[f"spearman {name}"] for run in runs] for name in ("rank", "held-out"))
    if None in own + other:
        return "no dial"
    if sum(own) / len(own) < 0.9:
        return "does not follow q"
    return "follows q" if sum(other) / len(other) >= 0.7 else "attacks its metric"


def table_of(results: dict[str, list[dict[str, Any]]]) -> str:
    """The table of docs/quality_dial.md, means and deviations over seeds."""
    head = ["row", "mean rank score", "mean held-out score", "rank at lowest q", "rank at highest q", "Spearman"]
    head += ["held-out Spearman", "FD at mean", "precision", "recall", "FD at top", "train CPU s", "sample CPU s"]
    lines = []
    for name, runs in results.items():

        def cell(key: Any, runs: list[Any] = runs) -> str:
            values = [key(run) if callable(key) else run[key] for run in runs]
            return "-" if any(value is None for value in values) else mean_std(values)

        means = [
            cell(lambda run, judge_name=judge_name: sum(run[judge_name]) / 9) for judge_name in ("rank", "held-out")
        ]
        ends = [cell(lambda run, place=place: run["rank"][place]) for place in (0, -1)]
        keys = ["spearman rank", "spearman held-out", "fd at mean", "precision at mean", "recall at mean", "fd at top"]
        lines.append([name, *means, *ends, *map(cell, [*keys, "train s", "sample s"]), verdict_of(runs)])
    return write_table([*head, "verdict"], lines)


if __name__ == "__main__":
    run_example(main)

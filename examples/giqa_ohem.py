"""Does weighting the worst generated images help? OHEM against its controls, and the image picker against truncation.

    python examples/giqa_ohem.py                           # digits; 54 runs of 1200 steps, 25 minutes on two cores
    python examples/giqa_ohem.py --losses hinge --seeds 0 --steps 300        # two minutes
    python examples/giqa_ohem.py --data FOLDER             # images of yours
    python examples/giqa_ohem.py --equal time              # as many steps as the time of `uniform` allows

The controls: `shuffled` gives the weights of OHEM to random images of the batch, `random_k` does the same to top-k.
What OHEM does beyond them is due to the scores. `letter` is the paper's form: an absolute threshold, not normalised.
A run that was stopped goes on with the same command. Other settings want another --out.
Lines marked `# qa_hooks` are what a GAN script gains.
"""

from __future__ import annotations

import argparse
import copy
import time
import warnings
from dataclasses import asdict, dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from qa_hooks.demo import (
    LATENT,
    Evaluator,
    load_digits_images,
    load_folder_images,
    make_critic,
    make_generator,
    update_ema,
)
from qa_hooks.demo.results import load_column, results_of, run_example, save_column
from qa_hooks.demo.side_by_side import side_by_side
from qa_hooks.demo.tables import mean_std, write_table
from qa_hooks.drawing.named_rows import named_rows
from qa_hooks.evaluation import diversity_score, quality_score
from qa_hooks.features import create_extractor, extract_features
from qa_hooks.functional import precision_recall
from qa_hooks.images import save_image, to_uint8
from qa_hooks.penalties import GradientPenalty
from qa_hooks.scorers import GMMScorer
from qa_hooks.weighting import OHEM, TopK, pick

VARIANTS = ("uniform", "ohem", "shuffled", "letter", "top_k", "random_k")
LOSSES = {  # critic on real, critic on fake, generator; each per image
    "wgan-gp": (lambda real: -real, lambda fake: fake, lambda fake: -fake),
    "hinge": (lambda real: F.relu(1 - real), lambda fake: F.relu(1 + fake), lambda fake: -fake),
    "logistic": (lambda real: F.softplus(-real), lambda fake: F.softplus(fake), lambda fake: F.softplus(-fake)),
}
RATES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)


@dataclass(frozen=True)
class Job:
    """One training run."""

    variant: str
    loss: str
    seed: int
    steps: int


class Setting:
    """What all runs share: the images, the features, the scorer, the evaluation."""

    def __init__(self, data: Any, samples: int, out: Path) -> None:
        self.data, self.samples, self.out = data, samples, out
        evaluator = Evaluator(data)
        options = {"channels": data.train.shape[1], "mean": (0.5,), "std": (0.5,)}
        self.extractor = create_extractor(evaluator.features, name=evaluator.name, **options)
        self.evaluator = evaluator
        self.real = extract_features(self.extractor, data.train, value_range=(-1, 1), progress=False)
        self.scorer = GMMScorer(self.extractor, components=7, reg_covar=1e-2, value_range=(-1, 1))
        self.scorer.fit_features(self.real)  # a fifth of the images is held out of the fit, and calibrates it

    def evaluate(self, images: Tensor) -> dict[str, float]:
        """Frechet distance, precision, recall, QS and DS of generated images."""
        features = extract_features(self.extractor, images, value_range=(-1, 1), generated=True, progress=False)
        count = min(len(features), len(self.real))
        shape = precision_recall(self.real.values[:count], features.values[:count])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # components with fewer images than dimensions, unequal numbers
            quality = quality_score(self.scorer, features, progress=False)
            diversity = diversity_score(self.scorer, features[:count], self.real[:count], progress=False)
        scores = {"precision": float(shape.precision), "recall": float(shape.recall)}
        return {
            "fd": self.evaluator.evaluate(images)["fd"], **scores, "qs": float(quality), "ds": float(diversity)
        }  # fmt: skip


def make_weighter(variant: str, setting: Setting) -> Any:
    """Weights for the critic's fake term (OHEM) or the generator's loss (top-k)."""
    if variant in ("ohem", "shuffled"):
        return OHEM(setting.scorer)  # qa_hooks
    if variant == "letter":
        return OHEM(setting.scorer.calibrated(), threshold_mode="absolute", normalize=False)  # qa_hooks
    return TopK(0.75)  # qa_hooks


def train(setting: Setting, job: Job, progress: Any = None) -> dict[str, Any]:
    """One run; its metrics, its times, and pictures."""
    torch.manual_seed(job.seed)
    warnings.simplefilter("ignore")
    images = setting.data.train
    generator, critic = (make(images.shape[-1], images.shape[1]) for make in (make_generator, make_critic))
    ema = copy.deepcopy(generator).eval()
    optimizers = [torch.optim.Adam(net.parameters(), lr=2e-3, betas=(0.0, 0.9)) for net in (generator, critic)]
    decay = lambda step: min(1.0, 1.9 - 1.8 * step / job.steps)  # noqa: E731 - constant, then down to a tenth
    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, decay) for optimizer in optimizers]
    opt_g, opt_d = optimizers
    kind = {} if job.loss == "wgan-gp" else {"at": "real", "target": 0.0, "weight": 2.0}  # R1
    penalty = GradientPenalty(value_range=(-1, 1), **kind)  # qa_hooks
    real_loss, fake_loss, generator_loss = LOSSES[job.loss]
    weighter = make_weighter(job.variant, setting)
    shuffle = torch.Generator().manual_seed(job.seed)
    spent = weighing = 0.0

    def weigh(fake: Tensor, scores: Tensor | None = None) -> Tensor | float:
        nonlocal weighing
        used = job.variant != "uniform" and (scores is not None) == (job.variant in ("top_k", "random_k"))
        if not used:
            return 1.0
        start = time.process_time()
        weights = weighter(fake, scores=scores)  # qa_hooks
        weighing += time.process_time() - start
        random = job.variant in ("shuffled", "random_k")
        return weights[torch.randperm(len(weights), generator=shuffle)] if random else weights

    for step in range(job.steps):
        start = time.process_time()
        for _ in range(2):
            real = images[torch.randint(len(images), (64,))]
            with torch.no_grad():
                fake = generator(torch.randn(64, LATENT))
            real_scores, fake_scores = critic(real)[:, 0], critic(fake)[:, 0]
            d_loss = real_loss(real_scores).mean() + (weigh(fake) * fake_loss(fake_scores)).mean()  # qa_hooks
            d_loss = d_loss + penalty(critic, real, fake, real_scores=real_scores, fake_scores=fake_scores)  # qa_hooks
            opt_d.zero_grad()
            d_loss.backward()
            opt_d.step()
        fake = generator(torch.randn(64, LATENT))
        scores = critic(fake)[:, 0]
        g_loss = (weigh(fake, scores) * generator_loss(scores)).mean()  # qa_hooks
        opt_g.zero_grad()
        g_loss.backward()
        opt_g.step()
        for schedule in schedules:
            schedule.step()
        update_ema(ema, generator, 0.98)
        spent += time.process_time() - start
        if progress is not None and (step + 1) % 10 == 0:
            progress.put(10)
    rng = torch.Generator().manual_seed(2)
    latents = torch.randn(2 * setting.samples, LATENT, generator=rng)
    with torch.no_grad():
        fakes = torch.cat([ema(part) for part in latents.split(400)])
    result = {**asdict(job), "ms": 1e3 * spent / job.steps, "share": weighing / spent}
    result |= setting.evaluate(fakes[: setting.samples])
    if job.variant == "uniform":
        result["sweep"] = sweep(setting, fakes, latents)
    save_column(to_uint8(fakes[:24], (-1, 1)), strip_of(setting.out, job))
    return result


def strip_of(out: Path, job: Job) -> Path:
    """The file with 24 pictures of a run."""
    return out / "pictures" / f"{job.loss}_{job.variant}_{job.seed}.png"


def sweep(setting: Setting, fakes: Tensor, latents: Tensor) -> list[dict[str, Any]]:
    """The paper's Table 3: keep the best share of the images, or the share with the shortest latents."""
    features = extract_features(setting.extractor, fakes, value_range=(-1, 1), generated=True, progress=False)
    rows = []
    for rate in RATES:
        kept = pick(fakes, setting.scorer, keep=rate, features=features, progress=False).indices  # qa_hooks
        short = latents.norm(dim=1).argsort()[: len(kept)].sort().values
        for way, chosen in (("picker", kept), ("truncation", short)):
            rows.append({"way": way, "rate": rate, **setting.evaluate(fakes[chosen[: setting.samples]])})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a folder of images instead of the digits")
    parser.add_argument("--size", type=int, default=32, help="with --data: 16, 32, 48 or 64")
    parser.add_argument("--limit", type=int, default=10_000, help="with --data: how many images to read")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--losses", nargs="+", default=list(LOSSES), choices=list(LOSSES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1200, help="generator steps (of `uniform`, with --equal time)")
    parser.add_argument("--equal", default="steps", choices=["steps", "time"], help="what the variants have in common")
    parser.add_argument("--samples", type=int, default=1400, help="generated images to evaluate")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--out", type=Path, default=Path("runs/giqa_ohem"))
    args = parser.parse_args()

    torch.set_num_threads(1)
    try:
        data = load_folder_images(args.data, size=args.size, limit=args.limit) if args.data else load_digits_images()
    except (OSError, ValueError) as error:
        parser.error(f"--data: {error}")
    store = results_of(args, without=("losses", "seeds", *(["variants"] if args.equal == "steps" else [])))
    setting = Setting(data, args.samples, args.out)
    steps = dict.fromkeys(args.variants, args.steps)
    if args.equal == "time":
        if "CPU ms" not in store:
            wanted = dict.fromkeys(("uniform", *args.variants))
            store.add("CPU ms", {v: train(setting, Job(v, "hinge", 0, 60))["ms"] for v in wanted})
        cost = store.found["CPU ms"]
        steps = {v: round(args.steps * cost["uniform"] / cost[v]) for v in args.variants}
    jobs = [Job(v, loss, seed, steps[v]) for loss in args.losses for v in args.variants for seed in args.seeds]
    steps_of = attrgetter("steps")
    results = side_by_side(partial(train, setting), jobs, processes=args.jobs, steps=steps_of, results=store)

    first = [job for job in jobs if job.seed == args.seeds[0]]
    shown = {f"{job.loss}, {job.variant}": torch.stack(load_column(strip_of(args.out, job))) for job in first}
    save_image(named_rows(shown, scale=2), args.out / "samples.png")
    metrics = ["fd", "precision", "recall", "qs", "ds"]
    for loss in args.losses:
        groups = [[r for r in results if (r["loss"], r["variant"]) == (loss, v)] for v in args.variants]
        head = [loss, "steps", *metrics, "fd per seed", "CPU ms/step", "weighing"]
        rows = [
            [group[0]["variant"], group[0]["steps"], *(mean_std([r[m] for r in group]) for m in metrics),
             " ".join(f"{r['fd']:.1f}" for r in group), f"{sum(r['ms'] for r in group) / len(group):.1f}",
             f"{100 * sum(r['share'] for r in group) / len(group):.0f} %"]
            for group in groups
        ]  # fmt: skip
        print("\n" + write_table(head, rows))
        swept = [row for r in results if r["loss"] == loss for row in r.get("sweep", [])]
        rows = []
        for way, rate in dict.fromkeys((row["way"], row["rate"]) for row in swept):
            group = [row for row in swept if (row["way"], row["rate"]) == (way, rate)]
            rows.append([way, rate, *(mean_std([row[m] for row in group]) for m in metrics)])
        print("\n" + write_table([f"uniform, {loss}", "rate", *metrics], rows) if rows else "")
    real = setting.evaluate(data.test)
    print(f"\nheld-out real images (n={len(data.test)}): " + ", ".join(f"{m} {real[m]:.2f}" for m in metrics))
    print(f"rows of samples.png: {', '.join(shown)}\n{args.out}")


if __name__ == "__main__":
    run_example(main)

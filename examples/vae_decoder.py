"""Tuning the decoder of a VAE with terms of quality: what do they buy beside L1 + L2, at equal time?

    python examples/vae_decoder.py                        # photographs of scikit-image; about ten minutes on two cores
    python examples/vae_decoder.py --data FOLDER          # photographs of yours, the last fifth held out
    python examples/vae_decoder.py --vae PATH             # the AutoencoderKL of a diffusion model in Diffusers' format
    python examples/vae_decoder.py --tiny                 # to see that it runs

A small AutoencoderKL is trained on crops of photographs. Then only its decoder goes on, so whatever was trained on its
latents keeps working: they are compared bit by bit at the end. Each run has the same CPU time for its steps, so a dear
term gets fewer of them. `L1-L2` is the control; each other run adds one term to it. A run that was stopped goes on with
the same command. Other settings want another --out.

The tile alarm looks for what decoders like to draw: seams and checkerboards with the period of their up-sampling.
Lines marked `# qa_hooks` are what a training script of a VAE gains.
"""

from __future__ import annotations

import argparse
import time
import warnings
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qa_hooks.callbacks import Hooks
from qa_hooks.demo.autoencoder import decode, encode, small_vae, tile_ratio, train_vae
from qa_hooks.demo.results import load_column, results_of, run_example, save_column
from qa_hooks.demo.side_by_side import side_by_side
from qa_hooks.demo.super_resolution import load_photographs, random_crops
from qa_hooks.demo.tables import write_table
from qa_hooks.drawing.contact_sheet import contact_sheet
from qa_hooks.features import create_extractor
from qa_hooks.functional import frechet_distance
from qa_hooks.images import save_image, to_uint8
from qa_hooks.losses import ScoreLoss, SSIMLoss
from qa_hooks.penalties import QAGANPenalty
from qa_hooks.scorers import NIQE, PSNR, SSIM, RankScorer, create_scorer, load_scorer

SIDE, WATCHED = 96, 16  # of the crops; how many the tile alarm looks at
RUNS = ("L1-L2", "SSIM", "perceptual", "NIQE", "RankScorer", "critic")
LIMIT = 1.15  # the alarm's: over what the photographs themselves have


@dataclass(frozen=True)
class Job:
    """A part of the work for one seed: "vae" and "reward" first, then "base" and some of RUNS."""

    name: str
    seed: int


def load_vae(args: argparse.Namespace, seed: int) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(args.vae or args.out / f"vae-seed{seed}").eval()


def prepare(args: argparse.Namespace, job: Job, progress: Any) -> None:
    """Train the VAE, or fit the score that one run optimises."""
    photographs = load_photographs(args.data)
    warnings.simplefilter("ignore")
    if job.name == "reward":
        scorer = RankScorer(seed=job.seed).fit(photographs.fit, steps=args.rank_steps, crops=64, progress=False)
        scorer.save(args.out / f"reward-seed{job.seed}.safetensors")
        progress.put(args.rank_steps)
        return
    torch.manual_seed(job.seed)
    vae = small_vae()
    train_vae(
        vae, random_crops(photographs.train, SIDE, args.batch, job.seed), steps=args.base_steps, progress=progress
    )
    vae.save_pretrained(args.out / f"vae-seed{job.seed}")


def term_of(name: str, args: argparse.Namespace, seed: int) -> nn.Module | None:
    """What a run adds to L1 + L2; the control and the critic's run add no loss of this kind."""
    if name == "SSIM":
        return SSIMLoss(weight=0.1)  # qa_hooks
    if name == "perceptual":
        return ScoreLoss(create_scorer("perceptual:hed"), balance=0.5)  # qa_hooks
    if name == "NIQE":
        return ScoreLoss(NIQE(), balance=0.2, ceiling="real")  # qa_hooks
    if name == "RankScorer":
        scorer = load_scorer(args.out / f"reward-seed{seed}.safetensors")
        return ScoreLoss(scorer, balance=0.5, ceiling="real")  # qa_hooks
    return None


class Critic:
    """A critic of crops with QAGAN's penalty, and its optimizer."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for width, out in ((3, 32), (32, 64), (64, 64)):
            layers += [nn.Conv2d(width, out, 4, 2, 1), nn.LeakyReLU(0.2)]
        self.network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(64 * 16, 1))
        self.penalty = QAGANPenalty("ssim", value_range=(0, 1), gp_weight=10.0, seed=seed)  # qa_hooks
        self.optimizer = torch.optim.Adam(self.network.parameters(), 1e-3, betas=(0.0, 0.9))

    def step(self, real: Tensor, fake: Tensor) -> None:
        real_scores, fake_scores = self.network(real), self.network(fake)
        loss = fake_scores.mean() - real_scores.mean()
        loss = loss + self.penalty(self.network, real, fake, real_scores=real_scores, fake_scores=fake_scores)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def tune(args: argparse.Namespace, job: Job, progress: Any) -> dict[str, Any]:
    """Tune the decoder for the run's time; what came out on held-out photographs. "base" is the VAE before that."""
    photographs, seed = load_photographs(args.data), job.seed
    warnings.simplefilter("ignore")
    vae = load_vae(args, seed)
    held = list(islice(random_crops(photographs.held_out, SIDE, WATCHED, 10_000), args.judged))
    latents = [encode(vae, part) for part in held]
    judge = partial(evaluate, args, torch.cat(held))
    result: dict[str, Any] = {"name": job.name, "seed": seed, "alarm": None, "steps": "", "rows": {}}
    if job.name == "base":
        result["rows"]["base"], pictures = judge(vae, latents)
        save_column(pictures, picture_of(args, "base", seed))
        save_column(to_uint8(held[0][: len(pictures)]), picture_of(args, "photograph", seed))
        return result
    for part in (vae.encoder, vae.quant_conv):
        if part is not None:
            part.requires_grad_(False)
    parameters = [parameter for parameter in vae.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(parameters, args.lr)
    term, critic = term_of(job.name, args, seed), Critic(seed) if job.name == "critic" else None
    batches, level = random_crops(photographs.train, SIDE, args.batch, seed + 1), tile_ratio(held[0])
    spent, step = 0.0, 0
    tracked = {"quality": term} if term is not None else {}
    with Hooks(log_dir=args.out / f"{job.name}-seed{seed}", track=tracked) as hooks:  # qa_hooks
        while spent < args.seconds and step < args.steps:
            images, start = next(batches), time.process_time()
            decoded = decode(vae, encode(vae, images))
            fidelity = F.l1_loss(decoded, images) + F.mse_loss(decoded, images)
            loss = fidelity
            if isinstance(term, SSIMLoss):
                loss = fidelity + term(decoded, images)  # qa_hooks
            elif isinstance(term, ScoreLoss):
                given = {"target": images} if job.name == "perceptual" else {"real": images}
                loss = fidelity + term(decoded, fidelity=fidelity, **given)  # qa_hooks
            elif critic is not None:
                critic.step(images, decoded.detach())
                loss = fidelity - 0.01 * critic.network(decoded).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            passed = time.process_time() - start
            spent += passed
            hooks.record(fidelity=fidelity.detach())
            if step % args.look_every == 0:
                with torch.no_grad():
                    ratio = tile_ratio(decode(vae, latents[0]).clamp(0, 1))
                hooks.record(tiles=ratio)
                if ratio > LIMIT * level and result["alarm"] is None:
                    result["alarm"] = step
            hooks.step()  # qa_hooks
            progress.put(passed)
    result["steps"], result["ms"] = step, 1e3 * spent / max(step, 1)
    result["same latents"] = all(
        torch.equal(encode(vae, part), before) for part, before in zip(held, latents, strict=True)
    )
    result["rows"][job.name], pictures = judge(vae, latents)
    save_column(pictures, picture_of(args, job.name, seed))
    vae.save_pretrained(args.out / f"{job.name}-seed{seed}" / "vae")
    return result


def picture_of(args: argparse.Namespace, name: str, seed: int) -> Path:
    """The file with four crops of a run."""
    return Path(args.out / "pictures" / f"{name}-seed{seed}.png")


@torch.no_grad()
def evaluate(
    args: argparse.Namespace, images: Tensor, vae: Any, latents: list[Tensor]
) -> tuple[dict[str, float], Tensor]:
    """On held-out crops: fidelity, distance of the reconstructions as a set (rFD), naturalness, tiles; and pictures."""
    decoded = torch.cat([decode(vae, part) for part in latents]).clamp(0, 1)
    decoded = to_uint8(decoded).float() / 255
    row = {"PSNR": float(PSNR()(decoded, reference=images).mean())}
    row["SSIM"] = float(SSIM()(decoded, reference=images).mean())
    if "perceptual" in args.available:
        row["perceptual"] = float(create_scorer("perceptual:hed")(decoded, reference=images).mean())
    extractor = create_extractor(args.extractor)
    moments = []
    for part in (images, decoded):
        rows = torch.cat([extractor(some) for some in part.split(32)]).double()
        moments += [rows.mean(0), rows.T.cov() + 1e-6 * torch.eye(rows.shape[1])]
    row["rFD"] = float(frechet_distance(*moments))
    row["NIQE"] = float(NIQE()(decoded).mean())
    row["tiles"] = tile_ratio(decoded)
    return row, to_uint8(decoded[:4])


def report(results: list[dict[str, Any]]) -> str:
    """Mean and deviation over seeds, and what the tile alarm and the latents say."""
    rows: dict[str, list[dict[str, float]]] = {}
    for result in results:
        for name, row in result["rows"].items():
            rows.setdefault(name, []).append(row)
    measures, table = list(next(iter(rows.values()))[0]), []
    for name, found in rows.items():
        of_name = [result for result in results if result["name"] == name]
        cells = [" ".join(str(result["steps"]) for result in of_name)]
        for measure in measures:
            values = [row[measure] for row in found]
            cells.append(f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else ""))
        alarms = [result["alarm"] for result in of_name if name != "base"]
        table.append([name, *cells, " ".join("-" if alarm is None else str(alarm) for alarm in alarms)])
    lines = [write_table(["", "steps", *measures, "tile alarm at step"], table), ""]
    same = all(result["same latents"] for result in results if result["name"] != "base")
    lines.append("latents of the held-out crops: " + ("bit for bit as before" if same else "CHANGED"))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a folder of photographs, ten or more, instead of scikit-image's")
    parser.add_argument("--vae", help="a folder with an AutoencoderKL, in place of the small one")
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=RUNS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--base-steps", type=int, default=1500, help="of the small VAE")
    parser.add_argument("--rank-steps", type=int, default=1000, help="of the ranking scorer")
    parser.add_argument("--seconds", type=float, default=60.0, help="CPU time of each run's steps")
    parser.add_argument("--steps", type=int, default=100_000, help="at most so many")
    parser.add_argument("--batch", type=int, default=8, help=f"crops of {SIDE} x {SIDE}")
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--look-every", type=int, default=25, help="steps between two looks at tiles")
    parser.add_argument("--judged", type=int, default=8, help=f"batches of {WATCHED} held-out crops")
    parser.add_argument("--extractor", default="random", help="of rFD; efficientnet_lite0-stages needs packages")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--tiny", action="store_true", help="few steps of everything")
    parser.add_argument("--out", type=Path, default=Path("runs/vae_decoder"))
    args = parser.parse_args()
    if args.tiny:
        args.base_steps, args.rank_steps, args.steps, args.judged, args.batch = 4, 3, 3, 2, 2
    if args.seconds <= 0 or args.steps <= 0:
        parser.error("--seconds and --steps must be more than 0")
    if args.vae is not None and not (Path(args.vae) / "config.json").is_file():
        parser.error(f"--vae {args.vae} is not the folder of an AutoencoderKL: it has no config.json")
    try:
        load_photographs(args.data, least=SIDE)
    except (OSError, ValueError) as error:
        parser.error(f"--data: {error}")
    args.available = list(RUNS)
    try:
        create_scorer("perceptual:hed")
    except ImportError as error:
        args.available.remove("perceptual")
        print(f"left out: perceptual ({error})")
    args.runs = [name for name in args.runs if name in args.available]

    torch.set_num_threads(1)
    names = [name for name, wanted in (("vae", args.vae is None), ("reward", "RankScorer" in args.runs)) if wanted]
    parts = [Job(name, seed) for seed in args.seeds for name in names]
    store = results_of(args, without=("runs", "seeds"))
    lengths = {"vae": args.base_steps, "reward": args.rank_steps, "base": 0}
    options = {"processes": args.jobs, "steps": lambda job: lengths.get(job.name, args.seconds), "results": store}
    side_by_side(partial(prepare, args), parts, **options)
    jobs = [Job(name, seed) for seed in args.seeds for name in ("base", *args.runs)]
    results = side_by_side(partial(tune, args), jobs, **options)
    shown_runs = ("photograph", "base", *args.runs)
    columns = {name: load_column(picture_of(args, name, args.seeds[0])) for name in shown_runs}
    shown = [column[row] for row in range(4) for column in columns.values()]
    save_image(contact_sheet(shown, list(columns) * 4, columns=len(columns), scale=2), args.out / "strip.png")
    print("\n" + report(results) + f"\n\n{args.out / 'strip.png'}\ntensorboard --logdir {args.out}")


if __name__ == "__main__":
    run_example(main)

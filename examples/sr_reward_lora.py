"""What does a quality reward do to a super-resolution net? LoRA against full fine-tuning, usable, hacked and guarded.

    python examples/sr_reward_lora.py                   # photographs of scikit-image; three minutes on two cores
    python examples/sr_reward_lora.py --data FOLDER     # photographs of yours, the last fifth held out
    python examples/sr_reward_lora.py --runs LoRA guarded --steps 100 --seeds 0 1 2
    python examples/sr_reward_lora.py --network realesr        # a network that others trained with a GAN

A net is trained with L1 (or is Real-ESRGAN's, from a package: see qa_hooks/demo/realesrgan.py), and goes on with L1 and
a `RankScorer` as reward: with a gradient as large as that of L1 and a ceiling (`full`, `LoRA`), or, to see it
exploited, with ten times that and no ceiling (`x10`). `L1-only` is the control, `guarded` is `LoRA-x10` with a
`RewardGuard` that stops it; `LoRA-x10-ceiling` and `LoRA-x10-views` (only when asked for) have nothing but the ceiling,
or random views, against it. The reward was fitted on the photographs of the training; held out are a second RankScorer,
fitted on others, and NIQE. The guard looks at crops of the training photographs, so what the table is made of decides
nothing. A run that was stopped goes on with the same command. Other settings want another --out.
Lines marked `# qa_hooks` are what an SR script gains.
"""

from __future__ import annotations

import argparse
import copy
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from qa_hooks.callbacks import Hooks, RewardGuard
from qa_hooks.data.low_resolution import bicubic_degradation
from qa_hooks.demo.realesrgan import realesrgan
from qa_hooks.demo.results import load_column, results_of, run_example, save_column
from qa_hooks.demo.side_by_side import side_by_side
from qa_hooks.demo.super_resolution import (
    SRNet,
    fidelity,
    load_metrics,
    load_photographs,
    mean_score,
    random_crops,
    super_resolve,
    train_l1,
)
from qa_hooks.demo.tables import write_table
from qa_hooks.drawing.contact_sheet import contact_sheet
from qa_hooks.functional.spectrum import high_frequency_share, power_spectrum, spectral_peak
from qa_hooks.images import save_image, to_uint8
from qa_hooks.integrations.peft import inject_lora, save_lora, scale_lora
from qa_hooks.losses import ScoreLoss
from qa_hooks.scorers import NIQE, RankScorer, load_scorer

SIDE, WATCHED, REAL = 96, 32, 200  # of the crops; how many of them the guard looks at, and compares with
VIEWS = 3  # random ones of each image, for the run "LoRA-x10-views"
RUNS = {  # LoRA?, ratio of the reward's gradient to that of L1, ceiling, views, what the guard does
    "L1-only": (False, 0.0, "real", 1, "warn"),
    "full": (False, 1.0, "real", 1, "warn"),
    "LoRA": (True, 1.0, "real", 1, "warn"),
    "full-x10": (False, 10.0, None, 1, "warn"),
    "LoRA-x10": (True, 10.0, None, 1, "warn"),
    "LoRA-x10-ceiling": (True, 10.0, "real", 1, "warn"),
    "LoRA-x10-views": (True, 10.0, None, VIEWS, "warn"),
    "guarded": (True, 10.0, None, 1, "stop"),
}
TAKEN = ("reward", "held-out", "NIQE")  # columns that are always there
SHOWN = ["L1-only", "full", "LoRA", "full-x10", "LoRA-x10", "guarded"]  # when --runs is not given


@dataclass(frozen=True)
class Job:
    """A part of the work for one seed: "net", "reward" and "held-out" first, then "base" and some of RUNS."""

    name: str
    seed: int


def crops(photographs: list[Tensor], scale: int, count: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of random crops without end: low resolution, and ground truth `(count, 3, SIDE, SIDE)`."""
    for images in random_crops(photographs, SIDE, count, seed):
        yield torch.stack([bicubic_degradation(image, scale) for image in images]), images


def starting_net(args: argparse.Namespace, seed: int) -> nn.Module:
    """The network that the rewards go on from."""
    if args.network == "realesr":
        return realesrgan(f"realesr-animevideov3-x{args.scale}", folder=args.weights)
    net = SRNet(args.scale)
    net.load_state_dict(load_file(args.out / f"net-seed{seed}.safetensors"))
    return net


def prepare(args: argparse.Namespace, job: Job, progress: Any) -> None:
    """Train the net with L1, or fit a scorer; into a file."""
    photographs, path = load_photographs(args.data), args.out / f"{job.name}-seed{job.seed}.safetensors"
    if job.name == "net":
        torch.manual_seed(job.seed)
        net = SRNet(args.scale)
        batches = crops(photographs.train, args.scale, args.batch, job.seed)
        train_l1(net, batches, steps=args.base_steps, progress=progress)
        save_file(net.state_dict(), path)
        return
    part, seed = (photographs.train, job.seed) if job.name == "reward" else (photographs.fit, job.seed + 1000)
    warnings.simplefilter("ignore")  # a few photographs do not teach every degradation
    RankScorer(seed=seed).fit(part, steps=args.rank_steps, crops=64, progress=False).save(path)  # qa_hooks
    progress.put(args.rank_steps)


def tune(args: argparse.Namespace, job: Job, progress: Any) -> dict[str, Any]:
    """Go on from the net with L1 and the reward; what came out, per strength of the adapter.

    The job "base" is no run: its rows are what all runs are compared with.
    """
    if job.name == "base":
        photographs, base = load_photographs(args.data).held_out, starting_net(args, job.seed)
        nets = {"HR": None, "bicubic": SRNet(args.scale), "base": base}
        rows = {name: evaluate(args, photographs, net, base, name, job.seed) for name, net in nets.items()}
        return {**asdict(job), "steps": "", "rows": rows}
    lora, ratio, ceiling, views, action = RUNS[job.name]
    photographs, seed = load_photographs(args.data), job.seed
    reward, held_out = (load_scorer(args.out / f"{name}-seed{seed}.safetensors") for name in ("reward", "held-out"))
    net = starting_net(args, seed)
    base = copy.deepcopy(net)
    parameters = inject_lora(net, rank=4, alpha=4, seed=seed) if lora else list(net.parameters())  # qa_hooks
    optimizer = torch.optim.Adam(parameters, lr=args.lr_lora if lora else args.lr_full)
    warnings.simplefilter("ignore")  # the guard's words are in the report
    bounds = {"ceiling": ceiling, "views": views}
    score_loss = ScoreLoss(reward, weight=ratio, balance=1.0, **bounds)  # qa_hooks; more than 2 only by `weight`
    watched, real = next(crops(photographs.train, args.scale, REAL, seed + 1))
    guard = RewardGuard(  # qa_hooks
        reward, [held_out, NIQE()], base=lambda n, _: base(watched[:n]), real_level=reward.real_level, action=action,
        sample=lambda n, _: net(watched[:n]), real=real, n=WATCHED, batch_size=WATCHED, every=args.look_every,
    )  # fmt: skip
    said: dict[str, Any] = {"step": None, "words": ""}
    spent = 0.0
    batches = crops(photographs.train, args.scale, args.batch, seed + 2)
    with Hooks([guard], log_dir=args.out / f"{job.name}-seed{seed}", track={"reward": score_loss}) as hooks:  # qa_hooks
        for step in range(1, args.steps + 1):
            lq, gt = next(batches)
            start = time.process_time()
            sr = net(lq)
            l1 = F.l1_loss(sr, gt)
            loss = l1 + score_loss(sr, real=gt, fidelity=l1)  # qa_hooks
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            spent += time.process_time() - start
            hooks.record(l1=l1.detach())
            hooks.step()  # qa_hooks
            progress.put(1)
            if guard.alarms and said["step"] is None:
                said = {"step": step, "words": "; ".join(map(str, guard.found))}
            if hooks.should_stop:
                break
    rows = {}
    for strength in (1.0, 0.5, 0.25) if lora and action == "warn" else (1.0,):
        if strength != 1:
            scale_lora(net, strength)  # qa_hooks
        name = job.name if strength == 1 else f"{job.name}-adapter-{strength:g}"
        rows[name] = evaluate(args, photographs.held_out, net, base, name, seed)
    if lora:
        save_lora(net, args.out / f"{job.name}-seed{seed}")  # qa_hooks
    return {**asdict(job), "steps": step, "ms": 1e3 * spent / step, "guard": said, "rows": rows}


def picture_of(args: argparse.Namespace, name: str, seed: int) -> Path:
    """The file with a row's pieces of photographs."""
    return Path(args.out / "pictures" / f"{name}-seed{seed}.png")


@torch.no_grad()
def evaluate(
    args: argparse.Namespace, photographs: list[Tensor], net: Callable[..., Tensor] | None, base: Callable[..., Tensor],
    name: str, seed: int,
) -> dict[str, float]:  # fmt: skip
    """The row of a net, or of the photographs themselves, on whole held-out photographs; a piece of three is kept."""
    scorers = {part: load_scorer(args.out / f"{part}-seed{seed}.safetensors") for part in ("reward", "held-out")}
    before, hr = super_resolve(base, photographs, args.scale)
    images = hr if net is None else super_resolve(net, photographs, args.scale)[0]
    row = {} if net is None else {key.upper(): value for key, value in fidelity(images, hr, args.scale).items()}
    scorers |= {"NIQE": NIQE(), **load_metrics(args.metrics)}
    row |= {part: mean_score(scorer, images, hr) for part, scorer in scorers.items()}
    spectra = [power_spectrum(image) for image in images]
    row["high freq."] = mean(float(high_frequency_share(power)) for power in spectra)
    row["peak"] = mean(float(spectral_peak(power).ratio) for power in spectra)
    changes = [power_spectrum(image - old) for image, old in zip(images, before, strict=True)]
    row["peak of change"] = mean(float(spectral_peak(power).ratio) for power in changes)
    save_column([middle(image) for image in images[:3]], picture_of(args, name, seed))
    return row


def middle(image: Tensor) -> Tensor:
    """The middle of `(1, 3, H, W)` in [0, 1], uint8 `(3, SIDE, SIDE)`."""
    top, left = ((length - SIDE) // 2 for length in image.shape[2:])
    return to_uint8(image[0, :, top : top + SIDE, left : left + SIDE])


def report(results: list[dict[str, Any]]) -> str:
    """The table, with the change from the base and its deviation over seeds in brackets, and what the guard said."""
    rows: dict[str, list[dict[str, float]]] = {}
    for result in results:
        for name, row in result["rows"].items():
            rows.setdefault(name, []).append(row)
    base, table = rows["base"], []
    for name, found in rows.items():
        cells = [" ".join(str(result["steps"]) for result in results if result["name"] == name)]
        for measure in base[0]:
            if measure not in found[0]:  # PSNR and SSIM of HR
                cells.append("")
                continue
            places = 1 if "peak" in measure else 2 if measure in ("PSNR", "reward", "held-out", "NIQE") else 3
            changes = [row[measure] - old[measure] for row, old in zip(found, base, strict=True)]
            change = f"{mean(changes):+.{places}f}" + (f" ± {stdev(changes):.{places}f}" if len(changes) > 1 else "")
            cells.append(f"{mean(row[measure] for row in found):.{places}f}" + f" ({change})" * (name in RUNS))
        table.append([name, *cells])
    lines = [write_table(["", "steps", *base[0]], table), ""]
    for result in (one for one in results if "guard" in one):
        step, words = result["guard"]["step"], result["guard"]["words"]
        said = f"step {step}: {words}" if step else "nothing"
        lines.append(f"the guard of {result['name']}, seed {result['seed']}, {result['ms']:.0f} CPU ms a step: {said}")
    return "\n".join(lines)


def strip(columns: dict[str, list[Tensor]], scale: int) -> Tensor:
    """LR, the nets, HR; one row for each photograph."""
    hr = columns.pop("HR")
    small = [bicubic_degradation(image.float() / 255, scale) for image in hr]
    lr = [to_uint8(image.repeat_interleave(scale, 1).repeat_interleave(scale, 2)) for image in small]
    columns = {"LR": lr, **columns, "HR": hr}
    shown = [column[row] for row in range(len(hr)) for column in columns.values()]
    return contact_sheet(shown, list(columns) * len(hr), columns=len(columns), scale=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a folder of photographs, ten or more, instead of scikit-image's")
    parser.add_argument("--runs", nargs="+", default=SHOWN, choices=list(RUNS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--network", default="small", choices=["small", "realesr"], help="ours, or Real-ESRGAN's SRVGG")
    parser.add_argument("--weights", type=Path, help="folder of Real-ESRGAN's files, without its package")
    parser.add_argument("--scale", type=int, help="2, 3 or 4; default 3, and 2 with realesr", choices=[2, 3, 4])
    parser.add_argument("--base-steps", type=int, default=1000, help="of the net, with L1")
    parser.add_argument("--rank-steps", type=int, default=2000, help="of each of the two ranking scorers")
    parser.add_argument("--steps", type=int, default=400, help="of each run with the reward")
    parser.add_argument("--batch", type=int, default=8, help=f"crops of {SIDE} x {SIDE}")
    parser.add_argument("--lr-lora", type=float, default=5e-4)
    parser.add_argument("--lr-full", type=float, default=1e-4)
    parser.add_argument("--look-every", type=int, default=25, help="steps between two looks of the guard")
    parser.add_argument("--metrics", nargs="+", default=[], help="further columns: lpips, perceptual:hed, a file ...")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--out", type=Path, default=Path("runs/sr_reward_lora"))
    args = parser.parse_args()

    args.scale = args.scale or {"small": 3, "realesr": 2}[args.network]
    if args.network == "realesr":
        try:
            starting_net(args, 0)
        except (ImportError, OSError, ValueError) as error:
            parser.error(f"--network realesr: {error}")
    elif args.weights is not None:
        parser.error("--weights are Real-ESRGAN's: add --network realesr")
    torch.set_num_threads(1)
    try:
        load_photographs(args.data, least=SIDE)
    except (OSError, ValueError) as error:
        parser.error(f"--data: {error}")
    try:
        load_metrics(args.metrics, taken=TAKEN)  # tells now what is missing
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        parser.error(f"--metrics: {error}")
    store = results_of(args, without=("runs", "seeds"))
    parts = [Job(name, seed) for seed in args.seeds for name in ("reward", "held-out")]
    if args.network == "small":
        parts += [Job("net", seed) for seed in args.seeds]
    lengths = {"net": args.base_steps, "reward": args.rank_steps, "held-out": args.rank_steps, "base": 0}
    options = {"processes": args.jobs, "steps": lambda job: lengths.get(job.name, args.steps), "results": store}
    side_by_side(partial(prepare, args), parts, **options)
    jobs = [Job(name, seed) for seed in args.seeds for name in ("base", *args.runs)]
    results = side_by_side(partial(tune, args), jobs, **options)
    names = [name for result in results if result["seed"] == args.seeds[0] for name in result["rows"]]
    columns = {name: load_column(picture_of(args, name, args.seeds[0])) for name in names if "adapter" not in name}
    save_image(strip(columns, args.scale), args.out / "strip.png")
    print("\n" + report(results))
    print(f"\n{args.out / 'strip.png'}\ntensorboard --logdir {args.out}")


if __name__ == "__main__":
    run_example(main)

"""Which ground truth should a super-resolution net be trained towards? Six strategies at equal steps.

    python examples/sr_ground_truth.py                     # photographs of scikit-image; four minutes on two cores
    python examples/sr_ground_truth.py --data PHOTOS --test OTHER_PHOTOS --out runs/mine
    python examples/sr_ground_truth.py --originals asis --out runs/asis    # photographs that need no enhancing

Each original has six versions by classical enhancers, good and bad ones (`qa_hooks.demo.enhancement`). The strategies
are those of "Augmenting Perceptual Super-Resolution via Image Quality Predictors" (2025); the loss is L1 alone, so the
ground truth is all that differs. With `--originals soft` two photographs in three are blurred a little, one of these
is also grainy, before they become originals: enhancing has something to mend, and `PSNR clean` compares with the
photograph before that, which nothing was trained on. UPos and SMP take what two of three simulated viewers like.

Photographs to train on, to fit scorers on and held out are different ones; `rank` chooses, and `rank B`, NIQE and what
`--metrics` names are held out. The gold standard is the best value that each metric gives to any of an original's
versions, on average: what choosing could reach at most. A run that was stopped goes on with the same command.
Other settings want another --out. Lines marked `# qa_hooks` are what a training script gains.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.transforms.functional import center_crop

from qa_hooks import Hooks
from qa_hooks.callbacks import ScoreMonitor
from qa_hooks.data import MultiGTDataset, QualityTable, select_ground_truth
from qa_hooks.data.ground_truth import STRATEGIES
from qa_hooks.data.low_resolution import bicubic_degradation
from qa_hooks.demo.enhancement import ENHANCERS, ask_viewers, soften, write_candidates
from qa_hooks.demo.results import Results, load_column, results_of, run_example, save_column
from qa_hooks.demo.side_by_side import side_by_side
from qa_hooks.demo.super_resolution import (
    SRNet,
    fidelity,
    load_metrics,
    load_photographs,
    mean_score,
    super_resolve,
    train_l1,
)
from qa_hooks.demo.tables import mean_std, write_table
from qa_hooks.drawing.contact_sheet import contact_sheet
from qa_hooks.images import list_images, load_image, save_image, to_uint8
from qa_hooks.scorers import NIQE, Scorer, create_scorer, load_scorer
from qa_hooks.scorers.niqe.scorer import fit_naturalness

SCALE, TILE, CROP, BATCH = 3, 96, 72, 12


bicubic = partial(F.interpolate, scale_factor=SCALE, mode="bicubic")
nearest = partial(F.interpolate, scale_factor=SCALE)


class Setting(NamedTuple):
    """What all runs share; `tests` holds the originals held out, and what they were before `soften`."""

    out: Path
    steps: int
    table: QualityTable
    positives: dict[str, list[int]]
    tests: dict[str, tuple[list[Tensor], list[Tensor]]]
    scorers: list[str]


def prepare(args: argparse.Namespace, results: Results) -> Setting:
    """Write the sets, fit the scorers, fill the table, ask the viewers; all but the photographs are on disk then."""
    photographs = load_photographs(args.data)
    faults, sets = soften if args.originals == "soft" else list, args.out / "sets"
    scorers, path = [args.out / "rank.safetensors", args.out / "rank B.safetensors"], args.out / "table.csv"
    niqe = args.out / "NIQE.safetensors"
    if "positives" not in results:
        shutil.rmtree(sets, ignore_errors=True)
        write_candidates(faults(photographs.train), sets, tile=TILE)
        for seed, scorer in enumerate(scorers):
            part = args.out / f"photographs_of_{scorer.stem}"
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            for number, image in enumerate(photographs.fit[seed::2]):
                save_image(to_uint8(image), part / f"{number:03d}.png")
            options = {"type": "rank", "seed": seed, "steps": args.rank_steps, "crops": 32, "warn_below": 0.0}
            create_scorer(options, fit=part, cache=args.out / "cache").save(scorer)
        if args.data:  # it might be BSD100, which the built-in model was fitted on
            fit_naturalness(args.out / "photographs_of_rank B", niqe)
        else:
            NIQE().save(niqe)
        table = QualityTable.compute(sets, scorers[0], path, layout="folders", resume=False)  # qa_hooks
        results.add("positives", ask_viewers(sets, table.keys))
    table = QualityTable.load(path)
    held_out = {photographs.name: photographs.held_out}
    if args.test:
        test = [(load_image(path).float() / 255).expand(3, -1, -1) for path in list_images(args.test)]
        held_out[args.test.resolve().name] = test
    tests = {name: (faults(images), images) for name, images in held_out.items()}
    specs = [*map(str, (*scorers, niqe)), *args.metrics]
    return Setting(args.out, args.steps, table, results.found["positives"], tests, specs)


@torch.no_grad()
def judge(scorers: dict[str, Scorer], image: Tensor, original: Tensor, clean: Tensor) -> dict[str, float]:
    """Of one image: fidelity to its original and to the clean photograph, and what each scorer says."""
    near, truth = (fidelity([image], [other], SCALE) for other in (original, clean))
    row = {"PSNR": near["psnr"], "SSIM x100": 100 * near["ssim"], "PSNR clean": truth["psnr"]}
    return row | {label: mean_score(scorer, [image], [original]) for label, scorer in scorers.items()}


def average(rows: list[dict[str, float]]) -> dict[str, float]:
    return {measure: mean(row[measure] for row in rows) for measure in rows[0]}


def evaluate(setting: Setting, net: Any) -> dict[str, dict[str, float]]:
    """What `judge` says on average of a net's outputs, for each set of photographs; without a net, of the originals."""
    scorers, results = load_metrics(setting.scorers), {}
    for name, (originals, clean) in setting.tests.items():
        outputs, references = super_resolve(net or bicubic, originals, SCALE)
        truths = super_resolve(bicubic, clean, SCALE)[1]
        triples = zip(outputs if net else references, references, truths, strict=True)
        results[name] = average([judge(scorers, *triple) for triple in triples])
    return results


def gold_standard(setting: Setting) -> dict[str, dict[str, float]]:
    """The best value of each metric among the candidates of each held-out original, on average: the paper's bound."""
    scorers, results = load_metrics(setting.scorers), {}
    generator = torch.Generator().manual_seed(0)
    lower = {label for label, scorer in scorers.items() if not scorer.higher_is_better}
    for name, (originals, clean) in setting.tests.items():
        candidates = [[enhance(image, generator) for image in originals] for enhance in ENHANCERS.values()]
        groups = [super_resolve(bicubic, images, SCALE)[1] for images in (*candidates, originals, clean)]
        best = []
        for *versions, original, truth in zip(*groups, strict=True):
            rows = [judge(scorers, version, original, truth) for version in versions]
            best.append({m: (min if m in lower else max)(row[m] for row in rows) for m in rows[0]})
        results[name] = average(best)
    return results


def train(setting: Setting, job: tuple[str, int], progress: Any) -> dict[str, Any]:
    """One run of a strategy with a seed: what was chosen, its scores, and a picture of each held-out photograph."""
    strategy, seed = job
    torch.manual_seed(seed)
    options: dict[str, Any] = {"temperature": 0.5, "normalize": "zscore", "scale": SCALE, "crop": CROP, "seed": seed}
    data = MultiGTDataset(  # qa_hooks
        setting.out / "sets", strategy=strategy, table=setting.table, positives=setting.positives, **options
    )
    loader = DataLoader(data, BATCH, shuffle=True, drop_last=True, generator=torch.Generator().manual_seed(seed))
    scorers = {name: load_scorer(setting.out / f"{name}.safetensors") for name in ("rank", "rank B")}
    chosen = torch.zeros(len(ENHANCERS))

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for epoch in itertools.count():
            data.set_epoch(epoch)  # qa_hooks
            for batch in loader:
                if strategy == "amo":
                    index = select_ground_truth(batch["candidates"], strategy="amo", scorer=scorers["rank"])  # qa_hooks
                    gt = batch["candidates"][torch.arange(len(index)), index]
                else:
                    index, gt = batch["gt_index"], batch["gt"]
                chosen.add_(torch.bincount(index, minlength=len(ENHANCERS)))
                yield batch["lq"], gt

    net = SRNet(SCALE)
    seen = next(iter(setting.tests.values()))[0][:4]
    held_out = torch.stack([bicubic_degradation(center_crop(image, [192]), SCALE) for image in seen])
    options = {"sample": lambda n, generator: net(held_out), "n": len(seen), "every": max(1, setting.steps // 4)}
    monitors = [ScoreMonitor(scorer, name=name, **options) for name, scorer in scorers.items()]
    with Hooks(monitors, log_dir=setting.out / "tensorboard" / f"{strategy}_{seed}", log_every=20) as hooks:
        train_l1(net, batches(), steps=setting.steps, hooks=hooks, progress=progress)
    save_column(middles(setting, net), strip_of(setting.out, strategy, seed))
    scores = evaluate(setting, net.eval())
    return {"strategy": strategy, "seed": seed, "scores": scores, "chosen": (chosen / chosen.sum()).tolist()}


def strip_of(out: Path, strategy: str, seed: int) -> Path:
    """The file with a run's pieces of photographs."""
    return out / "pictures" / f"{strategy}_{seed}.png"


@torch.no_grad()
def middles(setting: Setting, net: Any, *, side: int = 96) -> list[Tensor]:
    """The middle of the first three photographs of each set, `(3, side, side)`, uint8."""
    originals = [image for images, _ in setting.tests.values() for image in images[:3]]
    outputs, references = super_resolve(net or bicubic, originals, SCALE)
    return [to_uint8(center_crop(image[0], [side])) for image in (outputs if net else references)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder of some 25 photographs or more; the last fifth is held out")
    parser.add_argument("--test", type=Path, help="a folder of further photographs to evaluate on")
    parser.add_argument("--originals", default="soft", choices=["soft", "asis"], help="with faults, or as they are")
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES), choices=STRATEGIES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=500, help="of each run")
    parser.add_argument("--rank-steps", type=int, default=700, help="training steps of each ranking scorer")
    parser.add_argument("--metrics", nargs="+", default=[], help="further columns: lpips, pyiqa:piqe, a file ...")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--out", type=Path, default=Path("runs/sr_ground_truth"))
    args = parser.parse_args()

    torch.set_num_threads(1)
    try:
        load_photographs(args.data, least=2 * TILE)
        for path in list_images(args.test) if args.test else []:
            load_image(path)
    except (OSError, ValueError) as error:
        parser.error(f"--data or --test: {error}")
    try:
        load_metrics(args.metrics, taken=("rank", "rank B", "NIQE"))  # tells now what is missing
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        parser.error(f"--metrics: {error}")
    store = results_of(args, without=("strategies", "seeds"))
    setting = prepare(args, store)
    jobs = list(itertools.product(args.strategies, args.seeds))
    options = {"processes": args.jobs, "results": store}
    results = side_by_side(partial(train, setting), jobs, steps=lambda job: args.steps, **options)

    runs = {strategy: [r for r in results if r["strategy"] == strategy] for strategy in args.strategies}
    columns = {"LR": middles(setting, nearest)}
    columns |= {name: load_column(strip_of(args.out, name, args.seeds[0])) for name in runs}
    columns["HR"] = middles(setting, None)
    tall = [torch.cat(images, 1) for images in columns.values()]
    sheet = contact_sheet(tall, list(columns), columns=len(columns), scale=2, max_side=2 * tall[0].shape[1])
    save_image(sheet, args.out / "strips.png")
    bounds = {"bicubic": partial(evaluate, setting, bicubic), "held-out originals": partial(evaluate, setting, None)}
    bounds["gold standard"] = partial(gold_standard, setting)
    for name, measured in bounds.items():
        if name not in store:
            store.add(name, measured())
    rows = {"bicubic": [store.found["bicubic"]], **{name: [r["scores"] for r in group] for name, group in runs.items()}}
    rows |= {name: [store.found[name]] for name in ("held-out originals", "gold standard")}
    for name, (images, _) in setting.tests.items():
        metrics = list(rows["bicubic"][0][name])
        values = {label: [[r[name][m] for r in group] for m in metrics] for label, group in rows.items()}
        largest = [max(abs(v) for group in column for v in group) for column in zip(*values.values(), strict=True)]
        places = [3 if value < 1 else 2 for value in largest]
        cells = [[label, *map(mean_std, found, places)] for label, found in values.items()]
        print("\n" + write_table([f"{name}, {len(images)} held out", *metrics], cells))
    shares = [[label, *(f"{100 * mean(r['chosen'][k] for r in group):.0f}" for k in range(len(ENHANCERS)))]
              for label, group in runs.items()]  # fmt: skip
    print("\n" + write_table(["ground truths, %", *ENHANCERS], shares))
    print(f"\n{len(setting.table)} sets, {args.steps} steps; columns of {args.out / 'strips.png'}: low resolution, "
          f"{', '.join(args.strategies)}, original; tensorboard --logdir {args.out / 'tensorboard'}")  # fmt: skip


if __name__ == "__main__":
    run_example(main)

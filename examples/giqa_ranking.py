"""Do the scores put images in the right order? GIQA's Table 1 on images at hand, with Tables 5 to 7 (M, K and N).

    python examples/giqa_ranking.py                               # digits; five minutes on two cores
    python examples/giqa_ranking.py --data PHOTOS --crops 50      # random 32x32 crops of photographs
    python examples/giqa_ranking.py --data PHOTOS --extractor resnet18     # torchvision's weights, downloaded by it

Two kinds of pairs whose order is known, as pairwise accuracy with Wilson's 95 % interval (0.5 is chance): held-out real
images at neighbouring levels of a degradation; and images of two snapshots of a GAN's training run, at least a quarter
of the run apart, of which the later is taken to be better. The snapshot scorers (MBC, BC, IR) are fitted on another run
than the one that judges them, and no scorer is fitted on an image, or a photograph, that it is judged on. The ranking
scorer has been trained on these very degradations, of other images; only the snapshots are new to it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from qa_hooks import Hooks
from qa_hooks.callbacks import SnapshotCollector
from qa_hooks.demo import LATENT, Evaluator, Images, load_digits_images, make_critic, make_generator
from qa_hooks.demo.side_by_side import side_by_side
from qa_hooks.demo.tables import write_table
from qa_hooks.features import create_extractor, extract_features
from qa_hooks.functional import pairwise_accuracy
from qa_hooks.functional.agreement import PairwiseAccuracy
from qa_hooks.functional.degradations import chain
from qa_hooks.images import list_images, load_image
from qa_hooks.penalties import QAGANPenalty
from qa_hooks.scorers import NIQE, BCScorer, GMMScorer, IRScorer, KNNScorer, MBCScorer, RankScorer, Scorer
from qa_hooks.scorers.niqe.scorer import fit_naturalness
from qa_hooks.sources.batches import image_batches
from qa_hooks.sources.snapshots import step_of

KINDS = ("blur", "noise", "jpeg", "downsample")

Table = dict[str, PairwiseAccuracy]


def load_crops(folder: str, size: int, crops: int) -> Images:
    """Random crops of the photographs of a folder; those of the last fifth of the files, by name, are held out."""
    paths, generator, parts = list_images(folder), torch.Generator().manual_seed(0), ([], [])
    for number, path in enumerate(tqdm(paths, desc="reading", unit="image", disable=None)):
        image = load_image(path).float() / 255
        image = image.expand(3, -1, -1)
        if min(image.shape[-2:]) < size:
            image = F.interpolate(image[None], scale_factor=size / min(image.shape[-2:]) + 1e-3, mode="bicubic")[
                0
            ].clamp(0, 1)
        for _ in range(crops):
            top, left = (int(torch.randint(side - size + 1, (), generator=generator)) for side in image.shape[-2:])
            parts[number >= len(paths) * 4 // 5].append(image[:, top : top + size, left : left + size])
    return Images(Path(folder).resolve().name, *(torch.stack(part) * 2 - 1 for part in parts))


def train(images: Tensor, steps: int, job: tuple[int, str], progress: Any) -> None:
    """A WGAN-GP run that leaves snapshots in a folder; `job` is its seed and the folder."""
    seed, folder = job
    torch.manual_seed(seed)
    generator, critic = (make(images.shape[-1], images.shape[1]) for make in (make_generator, make_critic))
    opt_g, opt_d = (torch.optim.Adam(net.parameters(), lr=1e-3, betas=(0.0, 0.9)) for net in (generator, critic))
    penalty = QAGANPenalty("none", value_range=(-1, 1), gp_weight=10.0)
    sample = lambda n, rng: generator(torch.randn(n, LATENT, generator=rng))  # noqa: E731
    collector = SnapshotCollector(sample, folder=folder, every=max(1, steps // 40), n=50, value_range=(-1, 1))
    with Hooks([collector]).attach(opt_g):
        for step in range(steps):
            for _ in range(2):
                real = images[torch.randint(len(images), (64,))]
                with torch.no_grad():
                    fake = generator(torch.randn(64, LATENT))
                d_loss = critic(fake).mean() - critic(real).mean() + penalty(critic, real, fake)
                opt_d.zero_grad()
                d_loss.backward()
                opt_d.step()
            opt_g.zero_grad()
            (-critic(generator(torch.randn(64, LATENT))).mean()).backward()
            opt_g.step()
            if (step + 1) % 10 == 0:
                progress.put(10)


class Judge:
    """The pairs, and what a scorer makes of them."""

    def __init__(self, clean: Tensor, folder: str) -> None:
        generator = torch.Generator().manual_seed(0)
        self.ladders = {kind: chain(clean, kind, generator=generator) for kind in KINDS}
        paths = list_images(folder)
        self.generated = torch.cat([images for _, images in image_batches(paths)])
        steps = torch.tensor([step_of(path.relative_to(folder)) for path in paths])
        first, second = torch.randint(len(paths), (2, 6000), generator=generator)
        apart = (steps[first] - steps[second]).abs() >= steps.max() / 4
        self.first, self.second = first[apart], second[apart]
        self.later = (steps[self.first] - steps[self.second]).sign()

    @torch.no_grad()
    def __call__(self, scorer: Scorer) -> Table:
        """Pairwise accuracy per kind of pair."""
        score = lambda images: torch.cat([scorer.goodness(part) for part in images.split(256)])  # noqa: E731
        table = {}
        for kind, grades in self.ladders.items():
            scores = [score(images) for images in grades]
            better, worse = torch.cat(scores[:-1]), torch.cat(scores[1:])
            table[kind] = pairwise_accuracy(better, worse, torch.ones_like(better))
        scores = score(self.generated)
        table["snapshots"] = pairwise_accuracy(scores[self.first], scores[self.second], self.later)
        return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a folder of photographs instead of the digits")
    parser.add_argument("--crops", type=int, default=50, help="with --data: random crops of each photograph")
    parser.add_argument("--size", type=int, default=32, choices=[16, 32, 64], help="with --data: side of the crops")
    parser.add_argument("--extractor", default="random", help="random, a torchvision network, or classifier (digits)")
    parser.add_argument("--steps", type=int, default=800, help="generator steps of the two GAN runs")
    parser.add_argument("--fit-steps", type=int, default=600, help="training steps of a snapshot scorer")
    parser.add_argument("--rank-steps", type=int, default=2000, help="training steps of the ranking scorer")
    parser.add_argument("--brief", action="store_true", help="without the tables over M, K and N")
    parser.add_argument("--out", type=Path, default=Path("runs/giqa_ranking"))
    args = parser.parse_args()

    data = load_crops(args.data, args.size, args.crops) if args.data else load_digits_images()
    real, clean = (data.train + 1) / 2, (data.test[:400] + 1) / 2
    args.out = args.out / data.name
    runs = [(seed, str(args.out / f"run-{seed}-of-{args.steps}-steps")) for seed in (0, 1)]
    todo = [(seed, folder) for seed, folder in runs if not Path(folder, f"step_{args.steps:08d}").is_dir()]
    side_by_side(partial(train, data.train, args.steps), todo, processes=2, steps=lambda job: args.steps)
    judge = Judge(clean, runs[1][1])
    if args.extractor == "classifier":
        evaluator = Evaluator(data)
        options = {"channels": data.train.shape[1], "mean": (0.5,), "std": (0.5,)}
        extractor = create_extractor(evaluator.features, name=evaluator.name, **options)
    else:
        extractor = create_extractor(args.extractor)
    features = extract_features(extractor, real)

    def snapshot(scorer: Any) -> Scorer:
        return scorer.fit_snapshots(runs[0][1], real, steps=args.fit_steps)

    table: dict[str, Table] = {}
    if args.data and args.size >= 32:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "niqe.safetensors"
            fit_naturalness(args.data, file, block=args.size, limit=len(list_images(args.data)) * 4 // 5)
            table["NIQE"] = judge(NIQE(str(file)))
    table["RankIQA"] = judge(RankScorer().fit(real, crop=min(data.train.shape[-1], 64), steps=args.rank_steps))
    table["BC"], table["IR"] = judge(snapshot(BCScorer())), judge(snapshot(IRScorer()))
    table["SGM"] = judge(GMMScorer(extractor, 1).fit_features(features))
    table["MBC (N = 8)"] = judge(snapshot(MBCScorer()))
    table["GMM (M = 7)"] = judge(GMMScorer(extractor, 7).fit_features(features))
    table["KNN (K = 1)"] = judge(KNNScorer(extractor, 1).fit_features(features))
    if not args.brief:
        for components in (2, 5, 10, 20, 50):
            table[f"GMM (M = {components})"] = judge(GMMScorer(extractor, components).fit_features(features))
        for k in (3, 10, 30, 100, 300):
            table[f"KNN (K = {k})"] = judge(KNNScorer(extractor, k).fit_features(features))
        for count in (2, 4, 6, 10, 12):
            table[f"MBC (N = {count})"] = judge(snapshot(MBCScorer(count)))

    (args.out / "results.json").write_text(json.dumps(table, indent=1))
    columns = list(next(iter(table.values())))
    pairs = ", ".join(f"{column} {next(iter(table.values()))[column].n}" for column in columns)
    print(f"\n{data.name}, {len(real)} real images to fit on, extractor {extractor.name}; pairs: {pairs}\n")
    cell = lambda result: f"{result.accuracy:.3f} ({result.low:.3f}-{result.high:.3f})"  # noqa: E731
    print(
        write_table(
            ["pairwise accuracy", *columns], [[n, *(cell(row[c]) for c in columns)] for n, row in table.items()]
        )
    )
    print(f"\n{args.out / 'results.json'}; the snapshots are in {runs[0][1]} and {runs[1][1]}")


if __name__ == "__main__":
    main()

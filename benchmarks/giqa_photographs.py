"""GIQA's scores on photographs: which features, which levels of a network, which model. Chosen on one half, reported on
the other.

    python -m benchmarks giqa_photographs --images BSD100 --out DIR [--side 128] [--crops 6] [--tiny]

Every second photograph (by name) is for fitting, the others are judged: neighbouring levels of blur, noise, JPEG and
down-sampling, of which the less degraded one should score higher (0.5 is chance, ties count half). One half of the
judged photographs chooses the best setting by its mean over the four kinds; the table has every setting on the other
half, with 95 % intervals that leave out whole photographs. Results are in DIR/results.json as they come; the same
command goes on behind the last one. `--tiny` takes few crops and scikit-image's photographs.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from qa_hooks._base.files import write_text
from qa_hooks.demo.results import Results
from qa_hooks.demo.tables import write_table
from qa_hooks.features import FeatureExtractor, create_extractor, extract_features
from qa_hooks.functional.clusters import share_interval
from qa_hooks.functional.degradations import LEVELS, chain
from qa_hooks.images import list_images, load_image
from qa_hooks.scorers import NIQE, GMMScorer, KNNScorer, RankScorer

KINDS = ("blur", "noise", "jpeg", "downsample")
STAGES = "efficientnet_lite0-stages"
WIDTHS = (32, 16, 24, 40, 112, 320)  # channels of its six stages; each has a mean and a deviation
LEVELS_READ = {"stages 1-2": (0, 2), "stages 3-4": (2, 4), "stages 5-6": (4, 6), "six stages": (0, 6)}


class Setting(NamedTuple):
    """Features: a name for the table, what `create_extractor` takes, a size to which images are resized, columns."""

    name: str
    extractor: str
    size: int | None = None
    levels: tuple[int, int] | None = None


SETTINGS = (
    Setting("random", "random"),
    *(Setting(f"{name}, native size", STAGES, None, levels) for name, levels in LEVELS_READ.items()),
    Setting("last layer, resized to 224", "efficientnet_lite0"),
    Setting("six stages, resized to 224", STAGES, 224, (0, 6)),
)
MODELS: dict[str, Callable[[Any], Any]] = {
    "KNN, k = 1": lambda rows: KNNScorer(rows, 1),
    "KNN, k = 5": lambda rows: KNNScorer(rows, 5),
    "SGM, PCA .95": lambda rows: GMMScorer(rows, 1),
    "SGM, PCA .8": lambda rows: GMMScorer(rows, 1, pca=0.8),
    "GMM, 7, PCA .8": lambda rows: GMMScorer(rows, 7, pca=0.8),
    "GMM, 7, diagonal, PCA .95": lambda rows: GMMScorer(rows, 7, covariance="diag"),
}


class Crops(NamedTuple):
    """uint8 `(N, 3, S, S)`, and the photograph of each."""

    images: Tensor
    photograph: list[int]


def read_crops(photographs: list[Tensor], side: int, count: int, seed: int) -> Crops:
    """`count` random crops of each photograph."""
    rng, cut, owners = torch.Generator().manual_seed(seed), [], []
    for number, image in enumerate(photographs):
        for _ in range(count):
            top, left = (int(torch.randint(length - side + 1, (), generator=rng)) for length in image.shape[1:])
            cut.append(image[:, top : top + side, left : left + side])
            owners.append(number)
    return Crops(torch.stack(cut), owners)


def ladders(crops: Crops) -> Tensor:
    """Every crop at every level of every kind, uint8 `(kinds, LEVELS, N, 3, S, S)`."""
    clean, rng = crops.images.float() / 255, torch.Generator().manual_seed(0)
    return torch.stack([(chain(clean, kind, generator=rng) * 255).round().to(torch.uint8) for kind in KINDS])


def right(scores: Tensor, photograph: list[int]) -> tuple[dict[str, Tensor], list[int]]:
    """Goodness `(kinds, LEVELS, N)` -> for each kind 1, 1/2 or 0 for each pair of neighbours, and their photographs."""
    better = 0.5 + 0.5 * (scores[:, :-1] - scores[:, 1:]).sign()
    return {kind: row.flatten() for kind, row in zip(KINDS, better, strict=True)}, photograph * (LEVELS - 1)


def judged(scores: Tensor, photograph: list[int]) -> dict[str, Any]:
    """On the photographs that choose a mean; on the others each kind and the mean, with intervals."""
    pairs, owners = right(scores, photograph)
    chooses = torch.tensor([owner % 2 == 0 for owner in owners])
    rest = [owner for owner in owners if owner % 2]
    found: dict[str, Any] = {"chosen by": float(torch.stack([row[chooses].mean() for row in pairs.values()]).mean())}
    for kind, row in [*pairs.items(), ("mean", torch.stack(list(pairs.values())).mean(0))]:
        interval = share_interval(row[~chooses], rest)
        found[kind] = [interval.value, interval.low, interval.high]
    return found


def columns(levels: tuple[int, int] | None) -> slice:
    """Where the statistics of these stages stand."""
    if levels is None:
        return slice(None)
    first, last = (2 * sum(WIDTHS[:level]) for level in levels)
    return slice(first, last)


def settings_left(results: Results) -> Iterator[tuple[str, int | None, list[Setting]]]:
    """What has still to be measured, grouped by the features that it shares."""
    groups: dict[tuple[str, int | None], list[Setting]] = {}
    for setting in SETTINGS:
        if any(f"{setting.name}: {model}" not in results for model in MODELS):
            groups.setdefault((setting.extractor, setting.size), []).append(setting)
    for (extractor, size), members in groups.items():
        yield extractor, size, members


def extractor_of(name: str, size: int | None) -> FeatureExtractor:
    extractor = create_extractor(name)
    if size is not None:
        extractor.size = size
    return extractor


def rows_of(features: Tensor) -> FeatureExtractor:
    """What stands for the extractor of features that are there already: as many values as they have columns."""
    extractor = FeatureExtractor(nn.Flatten(), name="rows", channels=1)
    extractor(torch.zeros(1, 1, 1, features.shape[1]))
    return extractor


def study(results: Results, fit: Crops, judge: Crops, rank_steps: int, folder: Path) -> None:
    """Each setting of features and model, then the scorers that have no features."""
    graded = ladders(judge)
    for extractor_name, size, members in settings_left(results):
        try:
            extractor = extractor_of(extractor_name, size)
        except ImportError as error:
            print(f"left out: {extractor_name} ({error})", flush=True)
            continue
        start = time.process_time()
        fitted = extract_features(extractor, fit.images, progress=False).values
        values = extract_features(extractor, graded.flatten(0, 2), progress=False).values
        print(f"{extractor_name}, size {size}: {time.process_time() - start:.0f} CPU s", flush=True)
        for setting in members:
            part = columns(setting.levels)
            for name, make in MODELS.items():
                scorer = make(rows_of(fitted[:, part])).fit_features(fitted[:, part], calibration=None)
                scores = scorer.score_features(values[:, part]).view(graded.shape[:3])
                results.add(f"{setting.name}: {name}", judged(scores, judge.photograph))
    others: dict[str, Callable[[], Any]] = {
        "RankScorer": lambda: RankScorer().fit(fit.images.float() / 255, steps=rank_steps, progress=False),
        "NIQE of the fitted photographs": lambda: NIQE(str(fit_niqe(fit, folder))),
    }
    for name, fitted_scorer in others.items():
        if name not in results:
            scorer = fitted_scorer()
            with torch.no_grad():
                parts = [scorer.goodness(part.float() / 255) for part in graded.flatten(0, 2).split(64)]
            results.add(name, judged(torch.cat(parts).view(graded.shape[:3]), judge.photograph))


def fit_niqe(fit: Crops, folder: Path) -> Path:
    from qa_hooks.images import save_image
    from qa_hooks.scorers.niqe.scorer import fit_naturalness

    pictures = folder / "crops"
    for number, image in enumerate(fit.images):
        pictures.mkdir(exist_ok=True)
        save_image(image, pictures / f"{number:05d}.png")
    fit_naturalness(pictures, folder / "niqe.safetensors", progress=False)
    return folder / "niqe.safetensors"


def report(found: dict[str, Any]) -> str:
    """The table, the best by the photographs that choose first, and the winner in a line."""
    order = sorted(found, key=lambda name: -found[name]["chosen by"])
    cell = lambda value: "{:.3f} ({:.3f}-{:.3f})".format(*value)  # noqa: E731
    table = [
        [name, f"{found[name]['chosen by']:.3f}", *(cell(found[name][k]) for k in (*KINDS, "mean"))] for name in order
    ]
    lines = [write_table(["", "mean, half that chooses", *KINDS, "mean"], table)]
    fitted = [name for name in order if ":" in name]
    if fitted:
        lines += ["", f"chosen among GIQA's scorers: {fitted[0]}, {cell(found[fitted[0]]['mean'])} on the rest"]
    return "\n".join(lines)


def photographs(folder: str | None, side: int) -> list[Tensor]:
    """uint8 `(3, H, W)` each, none smaller than `side`."""
    if folder is None:
        from skimage import data

        images = [
            torch.from_numpy(getattr(data, name)()).permute(2, 0, 1)
            for name in ("astronaut", "coffee", "chelsea", "rocket")
        ]
        return [part for image in images for half in image.chunk(2, 1) for part in half.chunk(3, 2)]
    found = [load_image(path) for path in list_images(folder)]
    return [image.expand(3, -1, -1) for image in found if min(image.shape[1:]) >= side]


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks giqa_photographs", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--images", help="a folder of photographs, 40 or more")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--side", type=int, default=128, help="of the crops")
    parser.add_argument("--crops", type=int, default=6, help="of each photograph to fit on; a third of them to judge")
    parser.add_argument("--rank-steps", type=int, default=1000)
    parser.add_argument("--tiny", action="store_true", help="scikit-image's photographs and few crops")
    options = parser.parse_args(arguments)
    if options.images is None and not options.tiny:
        parser.error("name a folder of photographs, --images DIR, or add --tiny")
    side, crops, steps = (96, 4, 20) if options.tiny else (options.side, options.crops, options.rank_steps)
    try:
        images = photographs(options.images, side)
    except (OSError, ValueError) as error:
        parser.error(f"--images: {error}")
    if len(images) < 20 or crops < 3 or side < 96:
        parser.error(
            f"20 photographs of {side} pixels or more, 3 crops and sides of 96 are the least, got {len(images)}"
        )
    settings = {"images": options.images, "side": side, "crops": crops, "steps": steps, "photographs": len(images)}
    try:
        results = Results(options.out, settings)
    except ValueError as error:
        parser.error(str(error))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    start = time.process_time()
    fit, judge = read_crops(images[::2], side, crops, 0), read_crops(images[1::2], side, crops // 3, 1)
    print(f"{len(images[::2])} photographs to fit on ({len(fit.images)} crops of {side}), {len(images[1::2])} to judge "
          f"({len(judge.images)} crops), torch {torch.__version__}", flush=True)  # fmt: skip
    study(results, fit, judge, steps, options.out)
    text = report(results.found)
    write_text(options.out / "results.md", text + "\n")
    print(f"\n{text}\n\n{time.process_time() - start:.0f} CPU s; {options.out / 'results.md'}")

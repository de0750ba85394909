"""`qa-hooks fit gmm | knn | niqe | rank | snapshot`; `afine`, `mos` and `pairs` are beside it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from qa_hooks.cli.answers import Answer, finish, saved
from qa_hooks.cli.engine import OF_RAY, add_engine, of_ray, on_ray
from qa_hooks.cli.fitting_afine import add_afine
from qa_hooks.cli.fitting_opinions import add_mos, add_pairs
from qa_hooks.cli.options import (
    Commands,
    Help,
    add_device,
    add_held_out,
    add_shared,
    between,
    chosen,
    launched_processes,
    place,
    read_device,
    scorer_file,
    whole,
)

OF_THE_COMMAND = {"command", "fit", "run", "folder", "grid", "output", "parser", "device", "json", "resumes", "waits"}
NOT_OF_THE_SCORER = {*OF_THE_COMMAND, "extractor", "weights", "limit", "real", "targets", "engine", "sample", *OF_RAY}


def add_fit(commands: Commands) -> None:
    """The parser of `qa-hooks fit`."""
    fit = commands.add_parser(
        "fit",
        help="fit a scorer on a folder of images",
        description="Fits a scorer and writes it as safetensors, for --scorer and load_scorer().",
        epilog="qa-hooks fit KIND --help explains a kind, with an example and its exit codes.",
    )
    kinds = fit.add_subparsers(dest="fit", required=True, metavar="KIND")
    _add_gmm(kinds)
    _add_knn(kinds)
    _add_snapshot(kinds)
    _add_rank(kinds)
    _add_niqe(kinds)
    add_mos(kinds)
    add_pairs(kinds)
    add_afine(kinds)


def _add_gmm(kinds: Commands) -> None:
    gmm = kinds.add_parser(
        "gmm",
        help="GIQA's mixture of Gaussians of real images' features",
        formatter_class=Help,
        description="GMM-GIQA: fits PCA and a Gaussian mixture on the features of real images; the score is the\n"
        "log-likelihood. A part of the images is held out for the calibration to [0, 1].",
        epilog="example:\n  qa-hooks fit gmm photos/ -o gmm.safetensors --extractor dinov2_vits14 --components 7",
    )
    _add_common(gmm)
    gmm.add_argument("--components", type=whole(), default=7, metavar="K", help="Gaussians; 1 is the paper's baseline")
    gmm.add_argument("--pca", type=_pca, default=0.95, metavar="P", help="share of variance, or dimensions, or none")
    gmm.add_argument("--covariance", default="full", choices=["full", "diag"], help="of each Gaussian")
    finish(gmm, _fit_in_features)


def _add_knn(kinds: Commands) -> None:
    knn = kinds.add_parser(
        "knn",
        help="GIQA's nearest neighbours among real images' features",
        formatter_class=Help,
        description="KNN-GIQA: keeps the features of real images; the score falls with the distance to the k nearest.",
        epilog="example:\n  qa-hooks fit knn photos/ -o knn.safetensors --extractor inception --k 1 --limit 10000",
    )
    _add_common(knn)
    knn.add_argument("--k", type=whole(), default=1, metavar="K", help="neighbours")
    knn.add_argument("--variant", default="paper", choices=["paper", "official_code"], help="the two differ")
    finish(knn, _fit_in_features)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", metavar="DIR", help="a folder of real images, sub-folders included; ray also reads Parquet and tars"
    )
    parser.add_argument("-o", "--output", required=True, type=place, metavar="FILE", help="the .safetensors file")
    add_shared(parser, "--extractor")
    add_shared(parser, "--grid")
    parser.add_argument("--weights", metavar="FILE", help="the extractor's weights on disk, where nothing downloads")
    parser.add_argument("--limit", type=whole(), metavar="N", help="use at most so many images, taken evenly")
    add_engine(parser, "ray: many machines, for more images than one of them reads")
    parser.add_argument(
        "--sample", type=whole(), metavar="N", help="images that mixtures, neighbours and calibration see (ray; 10000)"
    )
    add_held_out(parser)
    add_device(parser, batch_size=64)


def _pca(text: str) -> float | int | None:
    """ "none", a whole number of dimensions, or a share of the variance."""
    try:
        return None if text.lower() == "none" else int(text) if text.isdigit() else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no share, whole number or 'none'") from None


def _fitted(options: argparse.Namespace, spec: str, source: Any, **given: Any) -> Any:
    """Fit with the command's options, by `create_scorer`, and save."""
    from qa_hooks._base.processes import rank
    from qa_hooks.scorers import create_scorer

    output = scorer_file(options.output)
    own = {name: value for name, value in vars(options).items() if name not in NOT_OF_THE_SCORER}
    with launched_processes():
        scorer = create_scorer({"type": spec, **own}, fit=source, device=read_device(options.device), **given)
        if rank() == 0:
            scorer.save(output)
    return scorer


def _fit_in_features(options: argparse.Namespace) -> Answer:
    from qa_hooks.sources.grids import find_images
    from qa_hooks.sources.windows import evenly

    extractor = {"type": options.extractor, **({"weights": options.weights} if options.weights else {})}
    if on_ray(options, local=("limit", "grid"), ray=("sample",)):
        return _fit_with_ray(options, extractor)
    paths = find_images(options.folder, options.grid)
    if options.limit is not None:
        paths = evenly(paths, options.limit)
    scorer = _fitted(options, f"giqa-{options.fit}", paths, extractor=extractor)
    return saved(options.output, scorer)


def _fit_with_ray(options: argparse.Namespace, extractor: dict[str, Any]) -> Answer:
    from qa_hooks.integrations.ray import fit_dataset
    from qa_hooks.scorers import GMMScorer, KNNScorer

    output = scorer_file(options.output)
    if options.fit == "gmm":
        scorer: Any = GMMScorer(extractor, **chosen(options, "components", "pca", "covariance", "seed"))
    else:
        scorer = KNNScorer(extractor, **chosen(options, "k", "variant"))
    given = chosen(options, "held_out", "calibration", "seed", "batch_size", "device")
    sample = {} if options.sample is None else {"sample": options.sample}
    fit_dataset(options.folder, scorer, **of_ray(options), **given, **sample).save(output)
    return saved(options.output, scorer)


def _add_snapshot(kinds: Commands) -> None:
    snapshot = kinds.add_parser(
        "snapshot",
        help="GIQA's classifiers, trained on the snapshots of a run",
        formatter_class=Help,
        description="MBC-, BC- and IR-GIQA: trains a network to tell early images of a training run from later ones\n"
        "and from real ones. The step is read from the names: step_1000/0003.png, 00001000.png, fakes000200.png, ...",
        epilog="example:\n  qa-hooks fit snapshot runs/a/samples --real photos/ -o mbc.safetensors",
    )
    snapshot.add_argument("folder", metavar="DIR", help="a folder of snapshots, one image per file")
    snapshot.add_argument("--real", required=True, metavar="DIR", help="real images, prepared like the run's own data")
    snapshot.add_argument("-o", "--output", required=True, type=place, metavar="FILE", help="the .safetensors file")
    add_shared(snapshot, "--grid")
    snapshot.add_argument(
        "--targets", default="ordinal", choices=["ordinal", "binary", "regression"], help="MBC, BC, IR"
    )
    snapshot.add_argument("--classifiers", type=whole(), default=8, metavar="N", help="of the ordinal targets")
    snapshot.add_argument("--backbone", default="small", metavar="B", help="small, or a torchvision network")
    snapshot.add_argument("--pretrained", action="store_true", help="start from torchvision's weights (a download)")
    snapshot.add_argument("--steps", type=whole(), default=600, metavar="N", help="training steps")
    snapshot.add_argument(
        "--last",
        type=whole(0),
        dest="max_iteration",
        metavar="N",
        help="the step from which on images count as the run's best",
    )
    snapshot.add_argument("--flip", action="store_true", help="mirror half of the images; not for digits or text")
    add_held_out(snapshot)
    add_device(snapshot, batch_size=64)
    finish(snapshot, _fit_snapshot)


def _fit_snapshot(options: argparse.Namespace) -> Answer:
    from qa_hooks.scorers.giqa.snapshot_images import split_snapshots

    spec = {"ordinal": "giqa-mbc", "binary": "giqa-bc", "regression": "giqa-ir"}[options.targets]
    scorer = _fitted(options, spec, split_snapshots(options.folder, options.grid), real=options.real)
    return saved(options.output, scorer)


def _add_rank(kinds: Commands) -> None:
    rank = kinds.add_parser(
        "rank",
        help="a network that learns to rank degradations of the images",
        formatter_class=Help,
        description="RankIQA: trains a small network to score an image above its blurred, noisy, compressed, shrunk,\n"
        "over-sharpened and salted copies; about a minute, without a download or labels. What comes out says how many\n"
        "pairs of held-out crops it puts in the right order.",
        epilog="example:\n  qa-hooks fit rank photos/ -o rank.safetensors",
    )
    rank.add_argument("folder", metavar="DIR", help="a folder of good images, sub-folders included")
    rank.add_argument("-o", "--output", required=True, type=place, metavar="FILE", help="the .safetensors file")
    add_shared(rank, "--grid")
    rank.add_argument("--steps", type=whole(), default=2000, metavar="N", help="training steps")
    rank.add_argument(
        "--crop", type=whole(), default=64, metavar="N", help="side of the crops; smaller images are left out"
    )
    rank.add_argument("--crops", type=whole(), default=16, metavar="N", help="crops of each image")
    rank.add_argument(
        "--limit", type=whole(), default=1000, dest="max_images", metavar="N", help="use at most so many, taken evenly"
    )
    add_held_out(rank)
    add_device(rank, batch_size=12)
    finish(rank, _fit_rank)


def _fit_rank(options: argparse.Namespace) -> Answer:
    from qa_hooks.sources.grids import find_images

    scorer = _fitted(options, "rank", find_images(options.folder, options.grid))
    lines = [f"{name:<12} {accuracy:.3f}" for name, accuracy in scorer.accuracies.items()]
    lines.append(f"{options.output}: {scorer.name}, real level {scorer.real_level:.3f}")
    found = {"accuracies": dict(scorer.accuracies), "real_level": scorer.real_level}
    return saved(options.output, scorer, "\n".join(lines), **found)


def _add_niqe(kinds: Commands) -> None:
    niqe = kinds.add_parser(
        "niqe",
        help="a model of natural images for NIQE",
        formatter_class=Help,
        description="Fits NIQE's model of natural images on undistorted photographs and writes it as safetensors.",
        epilog="example:\n  qa-hooks fit niqe photos/ -o niqe.safetensors --name photos",
    )
    niqe.add_argument("folder", metavar="DIR", help="a folder of photographs")
    niqe.add_argument(
        "-o",
        "--output",
        required=True,
        type=place,
        metavar="FILE",
        help="the file to write, for example niqe.safetensors",
    )
    add_shared(niqe, "--grid")
    niqe.add_argument("--name", help="of the model; scores are called niqe_NAME (default: the folder's name)")
    niqe.add_argument("--block", type=whole(), default=96, help="side of the blocks in pixels")
    niqe.add_argument("--color", default="gray", choices=["gray", "y_ycbcr", "y_yiq"], help="the grey conversion")
    niqe.add_argument(
        "--sharpness",
        type=between(0, 1, ends="low"),
        default=0.3,
        help="keep blocks this sharp relative to their image's sharpest",
    )
    niqe.add_argument(
        "--shrink", type=between(0, 1), default=0.03, help="share by which the covariance moves to its diagonal"
    )
    niqe.add_argument("--limit", type=whole(), help="use only the first so many files by name")
    finish(niqe, _fit_niqe)


def _fit_niqe(options: argparse.Namespace) -> Answer:
    from qa_hooks._base.files import check_writable
    from qa_hooks.scorers.niqe.scorer import fit_naturalness

    check_writable(Path(options.output).parent, name="--output")
    model = fit_naturalness(
        options.folder,
        options.output,
        block=options.block,
        color=options.color,
        sharpness=options.sharpness,
        shrink=options.shrink,
        limit=options.limit,
        name=options.name,
        grid=options.grid,
    )
    found = {"output": options.output, "blocks": int(model.count)}
    return Answer(f"{options.output}: fitted on {model.count} blocks", found)

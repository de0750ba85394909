"""Whole jobs in fresh processes, cold start included: scores of photographs, folders compared, memory, decoding.

    python -m benchmarks jobs --photos DIR --small DIR --out DIR [--original niqe_pris_params.npz] [--rounds 3]

- NIQE of 500 photographs: `score_folder` against loops over pyiqa's and BasicSR's NIQE, with the same parameters.
- FD, KID, precision and recall of two folders of small images: `compare` against torch-fidelity, both with the features
  of EfficientNet-Lite0; ours come with intervals, and torch-fidelity's do not.
- Scoring small images with a GIQA scorer: the share of the CPU time that the scorer needs on decoded arrays, and peak
  memory with 2,000 and 8,000 images.

Programs take turns, each with one thread. Times are CPU seconds of a process (user and system), which do not count what
other processes do; the ratio is taken within each round. A peer that cannot be imported is a row that says so.
"""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

MEMORY = (2000, 8000)  # images


class Spent(NamedTuple):
    """What a process took: CPU seconds, its largest memory in MB, and the end of what it printed."""

    cpu: float
    memory: float
    said: str
    failed: bool


def score_ours(out: Path) -> None:
    from qa_hooks.folders import score_folder

    score_folder(out / "photos", out / "niqe.safetensors", out / "photos.csv", resume=False, progress=False)


def score_pyiqa(out: Path) -> None:
    import torch
    from PIL import Image
    from pyiqa.archs.niqe_arch import NIQE  # type: ignore[import-not-found,unused-ignore]
    from torchvision.transforms.functional import to_tensor

    scorer = NIQE(pretrained_model_path=str(out / "parameters.mat"))
    with torch.no_grad():
        for path in sorted((out / "photos").iterdir()):
            float(scorer(to_tensor(Image.open(path).convert("RGB"))[None]))


def score_basicsr(out: Path) -> None:
    import numpy as np
    from basicsr.metrics.niqe import calculate_niqe
    from PIL import Image

    for path in sorted((out / "photos").iterdir()):
        calculate_niqe(np.ascontiguousarray(np.asarray(Image.open(path).convert("RGB"))[..., ::-1]), 0)


def compare_ours(out: Path) -> None:
    from qa_hooks.folders import compare_folders

    compare_folders(out / "real", [out / "fake"], extractor="efficientnet_lite0", progress=False)


def compare_fidelity(out: Path) -> None:
    import torch
    import torch_fidelity
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

    from qa_hooks.features import create_extractor

    class Lite0(FeatureExtractorBase):  # type: ignore[misc,unused-ignore]
        def __init__(self, name: str, features_list: list[str], **_: Any) -> None:
            super().__init__(name, features_list)
            self.network = create_extractor("efficientnet_lite0")

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return ("last",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "last"

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return (self.network(images),)

    torch_fidelity.register_feature_extractor("lite0", Lite0)
    torch_fidelity.calculate_metrics(
        input1=str(out / "fake"),
        input2=str(out / "real"),
        feature_extractor="lite0",
        cuda=False,
        fid=True,
        kid=True,
        kid_subset_size=min(1000, len(list((out / "real").iterdir()))),
        prc=True,
        save_cpu_ram=True,
        samples_find_deep=False,
        cache=False,
        verbose=False,
    )


def score_small(out: Path, folder: str = "small") -> None:
    from qa_hooks.folders import score_folder

    score_folder(out / folder, out / "gmm.safetensors", out / f"{folder}.csv", resume=False, progress=False)


def score_arrays(out: Path) -> None:
    """What `score_small` would cost if images were arrays already; reading them is not counted."""
    import time

    import torch

    from qa_hooks.scorers import create_scorer

    images = torch.load(out / "small.pt", weights_only=True)
    scorer = create_scorer(out / "gmm.safetensors")
    begin = time.process_time()
    for batch in images.split(32):
        scorer(batch)
    print(time.process_time() - begin)


PROGRAMS: dict[str, Callable[[Path], None]] = {
    "score, qa_hooks": score_ours,
    "score, pyiqa": score_pyiqa,
    "score, basicsr": score_basicsr,
    "compare, qa_hooks": compare_ours,
    "compare, torch-fidelity": compare_fidelity,
    "small, files": score_small,
    "small, arrays": score_arrays,
    **{f"small, {count}": functools.partial(score_small, folder=f"small-{count}") for count in MEMORY},
}


def spend(program: str, out: Path) -> Spent:
    """Run a program of this module in a process of its own."""
    command = [sys.executable, "-m", "benchmarks", "jobs", "--out", str(out), "--program", program]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
    ) as process:
        assert process.stdout is not None
        said = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    last = said.strip().splitlines()[-1:] or [""]
    return Spent(used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, last[0], process.returncode != 0)


def prepare(out: Path, photos: Path, small: Path, original: Path | None, n: int) -> None:
    """The folders and files that the programs read, once."""
    if (out / "ready").exists():
        return
    import torch
    from scipy.io import savemat

    from benchmarks.niqe import pristine
    from qa_hooks import NIQE, GMMScorer
    from qa_hooks.images import list_images, load_image

    if out.exists():
        raise SystemExit(f"{out} is there and was not finished by this benchmark: remove it, or name another --out")
    out.mkdir(parents=True)
    pictures = list_images(small)
    many = pictures[:: max(1, len(pictures) // 20_000)][:20_000]
    copy(list(islice(cycle(list_images(photos)), n)), out / "photos")
    copy(many[: 2 * n : 2], out / "real")
    copy(many[1 : 2 * n : 2], out / "fake")
    copy(many, out / "small")
    for count in MEMORY:
        copy(many[:count], out / f"small-{count}")
    torch.save(torch.stack([load_image(path) for path in many]), out / "small.pt")
    model, said = pristine(original)
    NIQE(model, color="y_ycbcr").save(out / "niqe.safetensors")
    savemat(
        out / "parameters.mat", {"mu_prisparam": model.mean.numpy()[None], "cov_prisparam": model.covariance.numpy()}
    )
    GMMScorer("random", components=2, pca=8).fit(out / "small-2000", progress=False).save(out / "gmm.safetensors")
    (out / "ready").write_text(said)


def copy(files: Sequence[Path], folder: Path) -> None:
    """Under names of their own, so that a photograph may stand there several times."""
    folder.mkdir()
    for number, file in enumerate(files):
        shutil.copyfile(file, folder / f"{number:06d}{file.suffix}")


def ratios(found: dict[str, list[Spent]], ours: str, other: str) -> str:
    """The median of the rounds' ratios of CPU seconds."""
    both = zip(found[ours], found[other], strict=True)
    return f"{median(a.cpu / b.cpu for a, b in both):.2f} of {other.split(', ')[1]}"


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="photographs, repeated until there are --n of them")
    parser.add_argument("--small", type=Path, help="20,000 small images, or fewer")
    parser.add_argument("--out", type=Path, required=True, help="a folder for copies of them")
    parser.add_argument("--original", type=Path, help="the published NIQE parameters; looked for when not given")
    parser.add_argument(
        "--n", type=int, default=500, help="photographs, and images of each folder (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="turns of every program (default: %(default)s)")
    parser.add_argument("--program", choices=sorted(PROGRAMS), help=argparse.SUPPRESS)  # a process of this benchmark
    options = parser.parse_args(arguments)
    if options.program:
        PROGRAMS[options.program](options.out)
        return
    if not options.photos or not options.small:
        parser.error("--photos and --small are needed: two folders of images")
    prepare(options.out, options.photos, options.small, options.original, options.n)
    print("NIQE with " + (options.out / "ready").read_text())
    found: dict[str, list[Spent]] = {program: [] for program in PROGRAMS}
    for _ in range(options.rounds):
        for program, before in found.items():
            if not before or not before[0].failed:
                before.append(spend(program, options.out))
    for program, all_spent in found.items():
        if all_spent[0].failed:
            print(f"{program:24s} not measured: {all_spent[0].said}")
        else:
            cpu, memory = median(s.cpu for s in all_spent), median(s.memory for s in all_spent)
            print(f"{program:24s} {cpu:7.1f} s CPU {memory:6.0f} MB")
    for ours in ("score, qa_hooks", "compare, qa_hooks"):
        peers = [p for p in found if p.split(", ")[0] == ours.split(", ")[0] and p != ours and not found[p][0].failed]
        print(f"{ours}: " + (", ".join(ratios(found, ours, peer) for peer in peers) or "no peer"))
    shares = [float(a.said) / f.cpu for a, f in zip(found["small, arrays"], found["small, files"], strict=True)]
    print(f"share of the scorer in scoring small images: {median(shares):.2f}")
    few, many = (median(spent.memory for spent in found[f"small, {count}"]) for count in MEMORY)
    print(f"peak memory with {MEMORY[1]} images over {MEMORY[0]}: {many / few:.2f}")

"""Folders of images as sets that can be compared: which files, their features (kept if wanted), their scores."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from qa_hooks._base.checks import check_count, warn
from qa_hooks._base.files import check_writable
from qa_hooks._base.hashing import fingerprint
from qa_hooks._base.processes import any_rank, gather_rows, rank, together, world_size
from qa_hooks._base.progress import Progress
from qa_hooks._base.random import permutation
from qa_hooks._base.text import plural
from qa_hooks.features import FeatureExtractor, Features, extract_features
from qa_hooks.folders.labels import labels
from qa_hooks.folders.scoring.batching import scored_windows
from qa_hooks.folders.scoring.tiles import PiecedImage, read_pieces
from qa_hooks.images import load_image
from qa_hooks.scorers import Scorer
from qa_hooks.sources.fingerprint import data_fingerprint
from qa_hooks.sources.grids import find_images
from qa_hooks.sources.windows import read_ahead


@dataclass
class ImageSet:
    """Files of one folder and what was measured on them.

    Attributes:
        label: short name, unique among the sets that are compared.
        folder: where the files are.
        paths: the files in use, in an order drawn at random; the i-th files of paired sets have one name.
        features: `(n, dim)`, a row for each of `paths`; empty without an extractor.
        scores: `(n,)` float64 by scorer; nan where a scorer could not.
        failures: `{relative path: message}` of files that cannot be read.
        refused: likewise of images that a scorer refused.
        unmatched: how many files of the folder have no partner of their name, where sets are paired.
    """

    label: str
    folder: Path
    paths: list[Path]
    features: Tensor = field(default_factory=lambda: torch.zeros(0, 0, device="cpu", dtype=torch.float32))
    scores: dict[str, Tensor] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    unmatched: int = 0

    def name(self, path: Path) -> str:
        """Relative to the folder, with forward slashes."""
        return path.relative_to(self.folder).as_posix()

    def keep(self, rows: Tensor) -> None:
        """Drop all files but these."""
        self.paths = [self.paths[row] for row in rows.tolist()]
        if len(self.features):
            self.features = self.features[rows]
        self.scores = {name: values[rows] for name, values in self.scores.items()}

    def readable(self) -> Tensor:
        """`(n,)` bool."""
        kept = [self.name(path) not in self.failures for path in self.paths]
        return torch.tensor(kept, dtype=torch.bool, device="cpu")


def keep_readable(sets: Sequence[ImageSet], *, paired: bool) -> None:
    """Drop files that failed, and cut all sets to one size; from paired sets whole pairs are dropped."""
    masks = [images.readable() for images in sets]
    if paired:
        masks = [torch.stack(masks).all(0)] * len(masks)
    count = min(int(mask.sum()) for mask in masks)
    if not count:
        worst = min(zip(sets, masks, strict=True), key=lambda pair: int(pair[1].sum()))[0]
        raise ValueError(f"no image of {worst.folder} can be used; {next(iter(worst.failures.items()), '')}")
    for images, mask in zip(sets, masks, strict=True):
        images.keep(mask.nonzero().flatten()[:count])


def image_sets(
    folders: Sequence[str | Path], *, n: int | None, paired: bool, seed: int, grid: str | None = None
) -> list[ImageSet]:
    """Equally many files of each folder, drawn at random; with `paired`, the files whose names all folders have.

    Raises:
        ValueError: a folder without images, or folders with no name in common.
    """
    roots = [Path(folder) for folder in folders]
    files = [_by_name(root, grid, paired=paired) for root in roots]
    sets = []
    names = [list(of_one) for of_one in files]
    if paired:
        common = sorted(set(names[0]).intersection(*names[1:]))
        if not common:
            raise ValueError(f"{' and '.join(map(str, roots))} have no file name in common, so nothing can be paired")
        names = [common] * len(files)
    count = min(len(of_one) for of_one in names)
    count = count if n is None else min(count, check_count("n", n))
    for label, root, of_one, chosen in zip(labels(roots), roots, files, names, strict=True):
        order = permutation(len(chosen), seed)[:count]
        unmatched = len(of_one) - len(chosen)
        sets.append(ImageSet(label, root, [of_one[chosen[row]] for row in order.tolist()], unmatched=unmatched))
    return sets


def add_features(
    images: ImageSet, extractor: FeatureExtractor, *, cache: Path | None, batch_size: int, progress: bool
) -> None:
    """Extract the features of a set, or find them in the cache; files that cannot be read become its failures."""
    features, file = None, None
    if cache is not None:
        key = fingerprint(extractor.fingerprint, data_fingerprint(images.paths))
        file = cache / f"features-{extractor.name}-{key}.safetensors"
        features = _kept_features(file)
    if features is None:
        features = extract_features(extractor, images.paths, batch_size=batch_size, progress=progress, failures={})
        with together():
            if file is not None and rank() == 0:
                check_writable(file.parent, name="cache")
                features.save(file)
    missing = set(range(len(images.paths))) - set(features.indices.tolist())
    for position in sorted(missing):
        path = images.paths[position]
        images.failures[images.name(path)] = _why(path)
    images.features = torch.zeros(len(images.paths), features.values.shape[1], device="cpu", dtype=torch.float32)
    images.features[features.indices] = features.values


def _kept_features(file: Path) -> Features | None:
    """Those of the cache, on every process or on none; a damaged file is warned of and made again."""
    found = None
    if file.is_file():
        try:
            found = Features.load(file)
        except ValueError as error:
            warn(f"{error}; they are extracted again")
    return None if any_rank(found is None) else found


def add_scores(
    images: ImageSet,
    scorers: Mapping[str, Scorer],
    *,
    references: Callable[[str], Path | None] | None,
    first: int,
    batch_size: int,
    device: str | torch.device | None,
    progress: bool,
) -> None:
    """Score the first files of a set; the work is divided among the processes, and all have the scores of all.

    Args:
        references: an image's name -> its reference, for the scorers that need one (`find_references`).
    """
    paths = {str(position): path for position, path in enumerate(images.paths[:first])}

    def read(position: str) -> PiecedImage:
        named = None
        if references is not None:  # they go by the names of the files
            named = lambda _: references(images.name(paths[position]))  # noqa: E731
        return read_pieces(position, paths[position], named, None, 0)

    mine = list(paths)[rank() :: world_size()]
    rows = [torch.zeros(0, 1 + len(scorers), dtype=torch.float64, device="cpu")]
    unread: dict[int, str] = {}
    refused: dict[int, str] = {}
    with together(), Progress(f"scores ({images.label})", len(mine), shown=progress) as bar:
        for window in scored_windows(read_ahead(read, mine), scorers, batch_size, device):
            for image in window:
                scores = [image.scores[name][0] if image.scores.get(name) else torch.nan for name in scorers]
                rows.append(torch.tensor([[float(image.name), *scores]], dtype=torch.float64, device="cpu"))
                if image.problem:
                    (refused if image.pieces else unread)[int(image.name)] = image.problem
            bar.update(len(window))
    table = gather_rows(torch.cat(rows))
    table = table[table[:, 0].argsort()]
    images.scores.update(zip(scorers, table[:, 1:].T.clone(), strict=True))
    for messages, problems in ((images.failures, unread), (images.refused, refused)):
        for position, message in sorted(_all_texts(problems).items()):
            messages.setdefault(images.name(images.paths[position]), message)


def missing_scores(images: ImageSet, name: str) -> str:
    """How many images have no score, and the first reason; "" for none; `ValueError` when fewer than two have one."""
    scores = images.scores[name]
    known, count = int(scores.isfinite().sum()), plural(len(scores), "image")
    reasons = [reason.removeprefix(f"{name}: ") for reason in images.refused.values() if reason.startswith(f"{name}: ")]
    first = reasons[0] if reasons else "all scores are NaN or infinite" if not known else "a score is NaN or infinite"
    if known < 2:
        raise ValueError(f"{name} has a score for {known} of {count} of {images.folder}: {first}")
    return "" if known == len(scores) else f"{images.label}: {len(scores) - known} of {count} without {name} ({first})"


def _by_name(root: Path, grid: str | None, *, paired: bool) -> dict[str, Path]:
    """The files by relative name, where sets are paired without the suffix: 0001.png belongs to 0001.jpg."""
    files: dict[str, Path] = {}
    for path in find_images(root, grid):
        relative = PurePosixPath(path.relative_to(root).as_posix())
        name = str(relative.with_suffix("") if paired else relative)
        if name in files:
            raise ValueError(f"{path} and {files[name].name} have one name, so neither can be paired")
        files[name] = path
    return files


def _why(path: Path) -> str:
    try:
        load_image(path)
    except Exception as error:
        return " ".join(str(error).removeprefix(f"{path} ").split()) or type(error).__name__
    return "could not be read when the features were made"


def _all_texts(texts: Mapping[int, str]) -> dict[int, str]:
    """Messages by position of all processes, on all of them, as lines of JSON."""
    lines = "".join(f"{json.dumps(item)}\n" for item in texts.items()).encode()
    gathered = gather_rows(torch.tensor(list(lines), dtype=torch.uint8, device="cpu"))
    return dict(json.loads(line) for line in bytes(gathered.tolist()).splitlines())

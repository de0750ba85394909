"""Folders of generated images side by side, with intervals: what `qa-hooks compare` calls.

    result = compare_folders("photos/", ["run_a/samples", "run_b/samples"], extractor="dinov2_vits14")
    print(result)

Every folder is measured on equally many images, in one extractor's features, against the same real images, which are
the yardstick and held fixed. The second table says whether a folder is better than the first; where the files of two
folders belong together by name (the same seeds, the same low-resolution inputs), `paired=True` compares them file by
file, which needs fewer images.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qa_hooks._base.files import check_writable, write_text
from qa_hooks._base.text import plural
from qa_hooks.evaluation.quality_diversity import quality_scores
from qa_hooks.evaluation.set_metrics import check_metrics, metric_name
from qa_hooks.evaluation.verdicts import COMPARED, REAL, Verdicts
from qa_hooks.features import FeatureExtractor, Features, create_extractor
from qa_hooks.folders.comparing.image_sets import (
    ImageSet,
    add_features,
    add_scores,
    image_sets,
    keep_readable,
    missing_scores,
)
from qa_hooks.folders.comparing.image_sizes import check_sizes, resize_of
from qa_hooks.folders.scoring.score_folder import Spec, name_scorers
from qa_hooks.folders.scoring.tiles import find_references
from qa_hooks.scorers import Scorer

FORMAT = "qa_hooks.comparison"


@dataclass(eq=False, kw_only=True)
class FolderComparison(Verdicts):
    """What `compare_folders` found; `print` shows it as two tables. Labels are the ends of the folders' paths.

    Attributes:
        real: the real images.
        folders: the generated ones, in the order given.
    """

    real: ImageSet
    folders: list[ImageSet]

    def add_folder_scores(self, name: str, scorer: Scorer) -> None:
        """The mean scores of the folders that this scorer has scored, and a note of images without a score."""
        scored = [part for part in (self.real, *self.folders) if name in part.scores]
        self.notes += [note for part in scored if (note := missing_scores(part, name))]
        scores = {part.label: part.scores[name] for part in scored}
        self.add_scores(name, scores, higher_is_better=scorer.higher_is_better)

    def add_folder_sets(self, extractor: FeatureExtractor, metrics: Sequence[str]) -> None:
        """Set metrics of the folders' features; with "qs" each image has its quality score, too."""
        self.add_sets(extractor, self.real.features, {part.label: part.features for part in self.folders}, metrics)
        if self.mixture is not None and "qs" in metrics:
            for part in self.folders:
                rows = Features.of(part.features, extractor.fingerprint)
                part.scores[metric_name("qs", extractor)] = quality_scores(self.mixture, rows).double()

    def note_left_out(self) -> None:
        """Note how many files of each folder take no part, and why."""
        for part in (self.real, *self.folders):
            if part.failures:
                self.notes.append(f"{part.label}: {plural(len(part.failures), 'image')} left out, which cannot be read")
            if part.unmatched:
                self.notes.append(
                    f"{part.label}: {plural(part.unmatched, 'file')} left out, without a partner of the same name in "
                    "every folder"
                )

    def as_json(self) -> dict[str, Any]:
        """Everything but features and single scores, as JSON can hold it."""
        return {
            "format": FORMAT,
            "spec": self.spec,
            "higher_is_better": self.higher_is_better,
            "real_counts": self.real_counts,
            "values": {k: {m: v._asdict() for m, v in values.items()} for k, values in self.values.items()},
            "comparisons": {k: {m: v._asdict() for m, v in values.items()} for k, values in self.comparisons.items()},
            "folders": {part.label: str(part.folder) for part in (self.real, *self.folders)},
            "failures": {part.label: part.failures | part.refused for part in (self.real, *self.folders)},
            "notes": self.notes,
        }

    def save(self, path: str | Path) -> None:
        """Write `as_json()`; the file appears whole or not at all."""
        check_writable(Path(path).parent, name="path")
        write_text(path, json.dumps(self.as_json(), indent=1))


def compare_folders(
    real: str | Path,
    folders: str | Path | Sequence[str | Path],
    *,
    metrics: Sequence[str] = ("fd", "kid", "pr"),
    scorers: Spec | Sequence[Spec] = (),
    extractor: str | FeatureExtractor = "random",
    paired: bool = False,
    n: int | None = None,
    n_real: int | None = None,
    seed: int = 0,
    grid: str | None = None,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    cache: str | Path | None = None,
    confidence: float = 0.95,
    size: int | None = None,
    always_judge: bool = False,
    progress: bool = True,
) -> FolderComparison:
    """Compare folders of generated images with real ones and with each other.

    Under a process group the images are shared out, and every process returns the same numbers. Files that cannot be
    read, and images that a scorer refuses, are left out, listed and counted.

    Args:
        real: a folder of real images; references for scorers that need one, by the same relative names.
        folders: of generated images, sub-folders included.
        metrics: of "fd" (Frechet distance), "kid" (kernel distance), "pr" (precision, recall, density, coverage), "qs"
            and "ds" (GIQA's quality and diversity score, of a mixture fitted on the real images); or none.
        scorers: whatever `create_scorer` takes; mean scores of each folder and of the real images.
        extractor: for `create_extractor`. "random" needs no download, but papers use "inception" or DINOv2.
        paired: files of the same name in all folders belong together; others are left out and counted in the notes.
        n: images of each folder; at most as many as the smallest has, which is the default.
        n_real: real images, all by default. fd takes all of them; kid as well, or max(n, 2048) where there are more;
            precision, recall, density, coverage, ds and mean scores take n. Each row of the table says how many.
        seed: of the choice of images and of the intervals.
        grid: cut each generated picture into the images that it is a grid of, as in
            `qa_hooks.sources.grids.find_images`.
        batch_size, device, progress: as in `score_folder`.
        cache: a folder that keeps features; files that changed are noticed.
        confidence: of the intervals.
        size: the extractor resizes images to this square; one that does not resize takes images of one size only.
        always_judge: give a verdict on `metrics` also in untrained features ("random") or on fewer than 50 images,
            where the numbers alone are worth having.

    Raises:
        ValueError: no images, nothing to compare by, fewer than 10 images that all folders have, sizes that differ.
        RuntimeError: one of several processes failed; the message is its own.
    """
    folders = [folders] if isinstance(folders, (str, Path)) else list(folders)
    metrics = check_metrics(metrics, COMPARED)
    named = name_scorers(scorers, device, least=0)
    if not folders or not (metrics or named):
        raise ValueError("give at least one folder, and metrics or scorers to compare by")
    network = create_extractor(extractor, **({} if size is None else {"size": size})) if metrics else None
    if cache is not None:
        check_writable(cache, name="cache")
    if network is not None and device is not None:
        network.to(device)
    (real_set,) = image_sets([real], n=n_real, paired=False, seed=seed)
    sets = image_sets(folders, n=n, paired=paired, seed=seed, grid=grid)
    real_set.label = REAL
    for part in sets:
        part.label = str(part.folder.resolve()) if part.label == REAL else part.label
    sizes = check_sizes([real_set, *sets], network, named)
    options: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
    if network is not None:
        for part in (real_set, *sets):
            add_features(part, network, cache=Path(cache) if cache is not None else None, **options)
        keep_readable([real_set], paired=False)
        keep_readable(sets, paired=paired)
    for part in (*sets, real_set) if named else ():
        usable = {k: scorer for k, scorer in named.items() if "reference" not in scorer.inputs or part is not real_set}
        least = len(sets[0].paths) if part is real_set else len(part.paths)
        compares, names = any("reference" in s.inputs for s in usable.values()), map(part.name, part.paths)
        paired_with = find_references(real, usable, names) if compares else None
        add_scores(part, usable, references=paired_with, first=least, device=device, **options)
    if network is None:
        keep_readable(sets, paired=paired)
    found = FolderComparison(
        labels=[part.label for part in sets],
        real=real_set,
        folders=sets,
        paired=paired,
        seed=seed,
        confidence=confidence,
        always_judge=always_judge,
    )
    for name, scorer in named.items():
        found.add_folder_scores(name, scorer)
    if network is not None:
        found.add_folder_sets(network, metrics)
    count = len(sets[0].paths)
    found.spec = {"n": count, "real": len(real_set.paths), "seed": seed, "paired": paired}
    found.spec |= {"confidence": confidence, "images": sizes}
    if network is not None:
        found.spec |= {"extractor": network.name, "resize": resize_of(network), "fingerprint": network.fingerprint[:8]}
    found.spec |= {f"scorer {name}": scorer.fingerprint[:8] for name, scorer in named.items()}
    if n is not None and count + max(len(part.failures) for part in sets) < n:
        found.notes.append(f"n={n} was asked for, but the folders have {plural(count, 'image')} each to compare")
    if network is not None and "," in sizes:
        found.notes.append(
            f"images of different sizes are compared ({sizes}): resampling them alone moves the distances"
        )
    found.note_left_out()
    return found

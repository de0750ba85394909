"""The loop behind `score_folder`: windows of images, batches of one size, a row per image as soon as it is scored."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from qa_hooks._base.isolation import isolated
from qa_hooks._base.processes import rank, world_size
from qa_hooks.folders.scoring.growing import ScoreFile, line, number
from qa_hooks.folders.scoring.tiles import PiecedImage
from qa_hooks.scorers import Scorer
from qa_hooks.sources.batches import BATCH_PIXELS, THREADS


def score_images(
    images: Iterable[PiecedImage],
    named: Mapping[str, Scorer],
    file: ScoreFile,
    batch_size: int,
    device: str | torch.device | None,
    *,
    total: int,
    progress: bool,
) -> dict[str, str]:
    """Score window by window and append the rows; returns path -> problem."""
    from tqdm import tqdm

    failures: dict[str, str] = {}
    share = f" (share {rank() + 1} of {world_size()})" if world_size() > 1 else ""
    quiet = None if progress and rank() == 0 else True
    with tqdm(total=total, desc=f"scores{share}", unit="image", disable=quiet) as bar, file.appender(rank()) as out:
        for window in scored_windows(images, named, batch_size, device):
            for image in window:
                if image.problem:
                    failures[image.name] = image.problem
                out.write(_rows(image, named, tiled=file.tiled))
                out.flush()
            bar.update(len(window))
            if failures:
                bar.set_postfix(failed=len(failures))
    return failures


def scored_windows(
    images: Iterable[PiecedImage], named: Mapping[str, Scorer], batch_size: int, device: str | torch.device | None
) -> Iterator[list[PiecedImage]]:
    """The images with their scores, or the problem that they had; a few batches of them at a time."""
    for window in _windows(images, batch_size):
        with isolated(*named.values()):
            for name, scorer in named.items():
                _score_window(window, name, scorer, batch_size, device)
        yield window


def read_ahead(read: Callable[[str], PiecedImage], names: Sequence[str]) -> Iterator[PiecedImage]:
    """Files are decoded by a few threads, a few images ahead of what is being scored."""
    with ThreadPoolExecutor(THREADS) as pool:
        waiting: deque[Future[PiecedImage]] = deque()
        for name in names:
            waiting.append(pool.submit(read, name))
            if len(waiting) > THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _windows(images: Iterable[PiecedImage], batch_size: int) -> Iterator[list[PiecedImage]]:
    """As many images as fill a batch, or fewer large ones."""
    window: list[PiecedImage] = []
    count = pixels = 0
    for image in images:
        window.append(image)
        count += max(1, len(image.pieces))
        pixels += sum(piece[0].numel() for piece in image.pieces)
        if count >= batch_size or pixels >= BATCH_PIXELS:
            yield window
            window, count, pixels = [], 0, 0
    if window:
        yield window


def _score_window(
    window: list[PiecedImage], name: str, scorer: Scorer, batch_size: int, device: str | torch.device | None
) -> None:
    """Fill in one scorer's scores of all pieces, in batches of one size."""
    groups: dict[tuple[int, ...], list[tuple[PiecedImage, int]]] = {}
    with_reference = "reference" in scorer.inputs
    for image in window:
        image.scores[name] = [math.nan] * len(image.pieces)
        for index, piece in enumerate(image.pieces):
            channels = image.references[index].shape[0] if with_reference else 0
            groups.setdefault((*piece.shape, channels), []).append((image, index))
    for shape, members in groups.items():
        size = max(1, min(batch_size, BATCH_PIXELS // (shape[1] * shape[2])))
        for start in range(0, len(members), size):
            _score_batch(members[start : start + size], name, scorer, device)


def _score_batch(
    batch: list[tuple[PiecedImage, int]], name: str, scorer: Scorer, device: str | torch.device | None
) -> None:
    """Score one batch; when it is refused, image by image, so that only the guilty are without a score."""
    device = device or scorer.device or torch.device("cpu")
    inputs = {}
    pieces = torch.stack([image.pieces[index] for image, index in batch]).to(device)
    if "reference" in scorer.inputs:
        reference = torch.stack([image.references[index] for image, index in batch]).to(device)
        channels = max(pieces.shape[1], reference.shape[1])  # a grey image and its colour reference, or the reverse
        pieces, inputs["reference"] = (t.expand(-1, channels, -1, -1) for t in (pieces, reference))
    try:
        scores = scorer(pieces, **inputs).tolist()
    except Exception as error:  # scorers may be anybody's code, and one bad image must not end the run
        if len(batch) > 1:
            for member in batch:
                _score_batch([member], name, scorer, device)
            return
        batch[0][0].problem = f"{name}: {' '.join(str(error).split()) or type(error).__name__}"
        return
    for (image, index), score in zip(batch, scores, strict=True):
        image.scores[name][index] = score


def _rows(image: PiecedImage, named: Mapping[str, Scorer], *, tiled: bool) -> str:
    """The CSV lines of an image; none when no scorer could do anything with it and the reason is known."""
    columns: list[list[float]] = []
    for name, scorer in named.items():
        raw = torch.tensor(image.scores[name])
        columns.append(raw.tolist())
        if scorer.calibration is not None:
            goodness = raw if scorer.higher_is_better else -raw
            columns.append(torch.where(raw.isnan(), raw, scorer.calibration(goodness)).tolist())
    if image.problem and all(math.isnan(value) for column in columns for value in column):
        return ""
    rows = []
    for corner, *values in zip(image.corners, *columns, strict=True):
        rows.append(line([image.name, *(corner if tiled else ()), *map(number, values)]))
    return "".join(rows)

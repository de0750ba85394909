"""Scorers as a function of a batch of rows: columns of scores for columns of images."""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from qa_hooks._base.checks import check_count
from qa_hooks._base.decoding import decode
from qa_hooks._base.hashing import fingerprint
from qa_hooks.folders.scoring.batching import scored_windows
from qa_hooks.folders.scoring.score_folder import Spec, name_scorers, score_columns, scorer_facts
from qa_hooks.folders.scoring.score_table import column_names
from qa_hooks.folders.scoring.shards import PROBLEM
from qa_hooks.folders.scoring.tiles import PiecedImage, problem_of
from qa_hooks.images import as_tensor, load_image
from qa_hooks.scorers import Scorer
from qa_hooks.sources.windows import read_ahead


class Item(NamedTuple):
    """A row on its way to the scorers; an exception stands for an image that could not be read."""

    name: str
    image: Any
    reference: Any = None
    prompt: Any = None


class ScoreBatches:
    """A batch of rows in, the same rows with scores out; the scorers are made once in each process.

    It is the function that `ray.data.Dataset.map_batches` takes as a class, `datasets.Dataset.map(..., batched=True)`
    as an object, and a `DataLoader` as its `collate_fn`. Copies that arrive in other processes make the same scorers
    there, and refuse to go on when a file of a scorer has another content on that machine.

    Args:
        scorers: one or several: whatever `create_scorer` takes.
        column: of the images: bytes of files, paths, `{"bytes": ..., "path": ...}`, PIL images, uint8 arrays
            `(H, W, C)`, or tensors `(C, H, W)`, uint8 or in the scorers' range.
        reference, prompt: the columns of the references and of the prompts, for scorers that need them.
        batch_size: images at a time, of one size; large ones come in smaller batches.
        device: where the scorers run. None: on the GPU that Ray has given to this process, otherwise where they are.
        keep_images: leave the images in the rows. By default they are dropped, for they are what is large.

    Raises:
        ValueError: a scorer that cannot be made, or needs a reference and gets none.

    Example:
        >>> import numpy as np
        >>> score = ScoreBatches("niqe_bsd100")
        >>> photo = np.random.default_rng(0).integers(0, 256, (192, 192, 3), dtype=np.uint8)
        >>> rows = score({"image": [photo, b"no image"], "label": [3, 4]})
        >>> rows["label"], np.isnan(rows["niqe_bsd100"]), rows["problem"][1][:26]
        ([3, 4], array([False,  True]), 'its content is none of PNG')
    """

    def __init__(
        self,
        scorers: Spec | Sequence[Spec],
        column: str = "image",
        *,
        reference: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        device: str | torch.device | None = None,
        keep_images: bool = False,
    ) -> None:
        self.scorers, self.column, self.keep_images = scorers, column, keep_images
        self.reference, self.prompt = reference, prompt
        self.batch_size = check_count("batch_size", batch_size)
        self.device = None if device is None else str(device)
        self._named: dict[str, Scorer] | None = self._make()
        for what, given in (("reference", reference), ("prompt", prompt)):
            needing = [name for name, scorer in self._named.items() if what in scorer.inputs]
            if needing and given is None:
                raise ValueError(
                    f"{', '.join(needing)} needs a {what}: give ScoreBatches the column of the {what}s as "
                    f"{what}=; score_dataset and --engine ray score images alone"
                )
            if given is not None and not needing:
                raise ValueError(f"{what}={given!r} was given, but {', '.join(self._named)} takes none")
        self.facts = scorer_facts(self._named)

    def __call__(self, batch: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Score a batch.

        Args:
            batch: columns `{"image": [...], ...}`, or a list of rows `[{"image": ...}, ...]`.

        Returns:
            The other columns as they came; an array `(n,)` float32 for each scorer, nan where it gave no score, and
            for each calibration; `problem`, what was wrong with each image, "" where nothing was.

        Raises:
            TypeError: something else than columns or rows.
            ValueError: no such column, or one that is called as a column of scores.
        """
        columns = _columns(batch)
        images = self._column(columns, self.column)
        _check_lengths(columns, self.column)
        rows: list[Any] = [[""] * len(images), images]
        for name in (self.reference, self.prompt):
            rows.append([None] * len(images) if name is None else self._column(columns, name))
        scored: dict[str, Any] = {name: [] for name in self.names}
        problems = []
        decoded = all(isinstance(image, np.ndarray | Tensor) for image in images)
        items = (Item(*row) for row in zip(*rows, strict=True))
        for _, scores, problem in self.stream(items, ahead=not decoded):
            for name, score in scores.items():
                scored[name].append(score)
            problems.append(problem)
        dropped = () if self.keep_images else (self.column, self.reference)
        rest = {name: values for name, values in columns.items() if name not in dropped}
        taken = sorted({*self.names, PROBLEM} & set(rest))
        if taken:
            raise ValueError(f"the batch has columns {', '.join(taken)} already: drop or rename them first")
        arrays = {name: np.array(values, dtype=np.float32) for name, values in scored.items()}
        return {**rest, **arrays, PROBLEM: np.array(problems, dtype=object)}

    @property
    def names(self) -> list[str]:
        """The columns of scores."""
        return column_names({"scorers": self.facts})

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the scorers."""
        return fingerprint(*(f"{fact['name']} {fact['fingerprint']}" for fact in self.facts))

    def stream(self, items: Iterable[Item], *, ahead: bool = True) -> Iterator[tuple[str, dict[str, float], str]]:
        """Name, scores and problem of each image, in order, with a few batches of images in memory at a time.

        Args:
            items: the rows.
            ahead: read images by threads that are ahead of the scorers; handing over what is decoded already costs more
                than it saves.
        """
        named = self._made()
        images = read_ahead(read_item, items) if ahead else map(read_item, items)
        for window in scored_windows(images, named, self.batch_size, None):
            raw = {name: [(image.scores[name] or [math.nan])[0] for image in window] for name in named}
            columns = score_columns(raw, named)
            for position, image in enumerate(window):
                yield image.name, {name: values[position] for name, values in columns.items()}, image.problem

    def _made(self) -> dict[str, Scorer]:
        if self._named is None:
            named = self._make()
            for fact, here in zip(self.facts, scorer_facts(named), strict=True):
                if fact["fingerprint"] != here["fingerprint"]:
                    raise ValueError(
                        f"{fact['name']} is another scorer in this process ({here['fingerprint']}) than where the work "
                        f"was given out ({fact['fingerprint']}): has its file changed, or has this machine another one?"
                    )
            self._named = named
        return self._named

    def _make(self) -> dict[str, Scorer]:
        return name_scorers(self.scorers, self.device or own_gpu(), prompts=self.prompt is not None)

    def _column(self, columns: Mapping[str, Any], name: str) -> Any:
        if name not in columns:
            raise ValueError(f"the batch has no column {name!r}; its columns are {', '.join(map(str, columns))}")
        return columns[name]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_named": None}  # what `datasets` takes for its cache, before and after a call


def _columns(batch: Any) -> dict[str, Any]:
    if isinstance(batch, Mapping):
        return dict(batch)
    if not isinstance(batch, list | tuple) or not all(isinstance(row, Mapping) for row in batch):
        raise TypeError(
            "a batch must be columns {'image': [...]} or a list of rows {'image': ...}, got "
            f"{type(batch).__name__}; in Ray that is map_batches(..., batch_format='numpy'), in a DataLoader a data "
            "set whose items are dictionaries, in the library datasets with_format(None)"
        )
    names = list(batch[0]) if batch else []
    uneven = next((position for position, row in enumerate(batch) if list(row) != names), None)
    if uneven is not None:
        raise ValueError(f"row {uneven} has the columns {', '.join(batch[uneven])}, the first has {', '.join(names)}")
    return {name: [row[name] for row in batch] for name in names}


def _check_lengths(columns: Mapping[str, Any], first: str) -> None:
    """`TypeError` for one row in place of a batch, `ValueError` for columns of different lengths."""
    for name, values in columns.items():
        one = isinstance(values, str | bytes | Mapping) or not hasattr(values, "__len__")
        if one or getattr(values, "ndim", 1) == 0:
            raise TypeError(
                f"column {name!r} of the batch is one {type(values).__name__} and not a list: score a batch, "
                "map(score, batched=True) in the library datasets"
            )
        if len(values) != len(columns[first]):
            raise ValueError(f"column {name!r} has {len(values)} rows, {first!r} has {len(columns[first])}")


def read_item(item: Item) -> PiecedImage:
    """An image that was read, or the problem that it had."""
    name, image, reference, prompt = item
    try:
        pixels = read_image(image)
        references = [] if reference is None else [read_image(reference)]
        if prompt is not None and not isinstance(prompt, str):
            raise TypeError(f"its prompt must be a text, got {type(prompt).__name__}")
        if references and references[0].shape[1:] != pixels.shape[1:]:
            raise ValueError(f"its reference is {tuple(references[0].shape)}, itself it is {tuple(pixels.shape)}")
    except Exception as error:  # the parsers raise what they like; one bad image must not end the run
        return PiecedImage(
            name, [], [], [], problem=problem_of(error, image if isinstance(image, str | Path) else name)
        )
    return PiecedImage(name, [pixels], references, [(0, 0)], prompt=prompt)


def read_image(image: Any) -> Tensor:
    """`(C, H, W)` of an image in any of the forms in which data sets hold one.

    Raises:
        TypeError, ValueError: something else; an exception that stands for the image is raised itself.
    """
    if isinstance(image, Exception):
        raise image
    if isinstance(image, Mapping):
        image = image.get("bytes") or image.get("path")
    if image is None:
        raise ValueError("there is no image")
    if isinstance(image, bytes | bytearray | memoryview):
        return torch.from_numpy(decode(io.BytesIO(image)).transpose(2, 0, 1).copy())
    if isinstance(image, str | Path):
        return load_image(image)
    tensor = as_tensor(image)
    if len(tensor) != 1:
        raise ValueError(f"there are {len(tensor)} images in one row, of shape {tuple(tensor.shape)}")
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        raise ValueError("it holds values that are not finite")
    return tensor[0]


def own_gpu() -> str | None:
    """The GPU that Ray has given to this process; None outside a worker of Ray, or without one."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized() or not torch.cuda.is_available():
        return None
    try:
        given = ray.get_runtime_context().get_assigned_resources()
    except AssertionError:  # the process that gives out the work
        return None
    return "cuda" if given.get("GPU", 0) else None

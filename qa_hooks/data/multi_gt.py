"""A data set for super-resolution with several ground truths per image. For each sample one of them is drawn.

All candidates of a sample get the same crop and flips. The low-resolution image belongs to the original, whichever
ground truth is drawn: given in a folder, or made by a degradation. What the strategies mean is in
`qa_hooks.data.ground_truth`; crops, flips and degradations are the same for all of them, so that runs can be compared.

A training loop with image-level scores, and one in which the crops themselves are scored:

    >>> import tempfile, torch
    >>> from pathlib import Path
    >>> from torch.utils.data import DataLoader
    >>> from qa_hooks.data import QualityTable, select_ground_truth
    >>> from qa_hooks.images import save_image
    >>> from qa_hooks.scorers import FunctionScorer
    >>> root = Path(tempfile.mkdtemp()) / "sets"
    >>> for folder, amount in (("original", 0.5), ("enhanced_1", 0.75), ("enhanced_2", 1.0)):
    ...     (root / folder).mkdir(parents=True)
    ...     for name in "ab":
    ...         save_image((amount * 255 * torch.rand(3, 32, 32)).byte(), root / folder / f"{name}.png")
    >>> contrast = FunctionScorer(
    ...     lambda images: images.std((1, 2, 3)), name="contrast", higher_is_better=True, score_range=(0, 0.5)
    ... )
    >>> net = torch.nn.Sequential(torch.nn.Upsample(scale_factor=2), torch.nn.Conv2d(3, 3, 3, padding=1))
    >>> optimizer = torch.optim.Adam(net.parameters())

    >>> table = QualityTable.compute(
    ...     root, contrast, root.parent / "contrast.csv", layout="folders", progress=False
    ... )
    >>> data = MultiGTDataset(root, strategy="sma", table=table, scale=2, crop=16)
    >>> loader = DataLoader(data, batch_size=2, shuffle=True)
    >>> for epoch in range(2):
    ...     data.set_epoch(epoch)
    ...     for batch in loader:
    ...         loss = (net(batch["lq"]) - batch["gt"]).abs().mean()
    ...         optimizer.zero_grad()
    ...         loss.backward()
    ...         optimizer.step()

    >>> for batch in DataLoader(MultiGTDataset(root, strategy="amo", scale=2, crop=16), batch_size=2):
    ...     index = select_ground_truth(batch["candidates"], strategy="amo", scorer=contrast)  # on the device
    ...     gt = batch["candidates"][torch.arange(len(index)), index]
    ...     loss = (net(batch["lq"]) - gt).abs().mean()
    >>> index
    tensor([2, 2])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from qa_hooks._base.checks import check_count
from qa_hooks._base.processes import rank as process_rank
from qa_hooks._base.random import mixed_key
from qa_hooks.data.aligned_crop import AlignedCrop
from qa_hooks.data.candidates import CandidateSet
from qa_hooks.data.choice import Choice, GroundTruths
from qa_hooks.data.low_resolution import Degradation, bicubic_degradation
from qa_hooks.data.selection import draw_index
from qa_hooks.images import list_images


class MultiGTDataset(Dataset[dict[str, Any]]):
    """Samples of K candidates, one of them drawn as the ground truth.

    Everything that is drawn for a sample comes from its own generator, made from (seed, rank, epoch, index): the same
    with any number of workers and after a resume, and never from the global generators. Call `set_epoch` before each
    epoch, also with persistent workers. Use `repeat` for several crops per epoch; a repeated index gives the same crop.

    Args:
        truths: the `GroundTruths`, or their folder (or CSV).
        choice: the `Choice` among them.
        scale: scale of the super-resolution.
        crop: side of the ground truth's crop, a multiple of `scale`. None: whole images; `scale` must divide their
            sides.
        flips: mirror half of the samples.
        rotations: also turn them by multiples of 90 degrees.
        lq: a folder of low-resolution images with the originals' names (another suffix will do, and DIV2K's `x4`).
        degradation: makes them from the originals where there is no `lq`; antialiased bicubic by default,
            `HGGTDegradation()`, or any callable as described in `qa_hooks.data.low_resolution`.
        candidates: samples hold all K of them; always with "amo".
        negatives: samples hold what `HGGTNegativeLoss` needs.
        repeat: how often each set comes in an epoch, each time with its own draws.
        seed: seed of the draws.
        rank: rank of this process; None asks the process group, here and in `set_epoch`.
        options: fields of `GroundTruths` and of `Choice`, instead of the objects:
            `MultiGTDataset(root, layout="hggt", strategy="sma", table=table)`.

    Attributes:
        sets: the sets in use, a list of `CandidateSet`.

    Items (all images float32 in [0, 1], RGB; they collate by torch's default):
        lq: `(3, h, w)`; gt: `(3, H, W)` and gt_index: its number, without "amo".
        candidates: `(K, 3, H, W)`, with `candidates`; a missing one is a copy of the original.
        scores: `(K,)` raw, with a table. positives: `(K,)` bool, where people have judged.
        original, negative: `(3, H, W)`, with `negatives`.
        negative_votes: how many of three annotators called the negative worse than the original; 0 without a negative.
        positive_votes: how many of them called the ground truth better; 0 without a positive. Both with `negatives`.
        index: the number of the sample.
        path: the file of the original.

    Raises:
        ValueError: what cannot be listed; a strategy without its table or positives, a table of other images, a crop
            that `scale` does not divide; when a sample is read, sizes that differ within the set, crops larger than the
            image, low-resolution images of another size. The messages name the files.
    """

    def __init__(
        self,
        truths: GroundTruths | str | Path | None = None,
        choice: Choice | None = None,
        *,
        scale: int = 4,
        crop: int | None = None,
        flips: bool = True,
        rotations: bool = False,
        lq: str | Path | None = None,
        degradation: Degradation | None = None,
        candidates: bool = False,
        negatives: bool = False,
        repeat: int = 1,
        seed: int = 0,
        rank: int | None = None,
        **options: Any,
    ) -> None:
        truths, choice = _as_objects(truths, choice, options)
        if lq is not None and degradation is not None:
            raise ValueError("low-resolution images are given by lq= or made by degradation=, not both")
        self.strategy = choice.strategy
        self.scale, self.repeat = check_count("scale", scale), check_count("repeat", repeat)
        self.crop = None if crop is None else check_count("crop", crop)
        if self.crop is not None and self.crop % self.scale:
            raise ValueError(f"crop={crop} must be a multiple of scale={scale}")
        self.flips, self.rotations = flips, rotations
        self.degradation: Degradation = bicubic_degradation if degradation is None else degradation
        self.candidates, self.negatives = candidates or self.strategy == "amo", negatives
        self.seed, self._rank = int(seed), rank
        self.rank = process_rank() if rank is None else int(rank)
        # In shared memory, because persistent workers keep the copy of the data set that they were started with.
        self._epoch = torch.zeros((), dtype=torch.int64, device="cpu").share_memory_()

        self.sets, self._judged = truths.read("negatives=True" if negatives else choice.needs_judgements)
        self._lq = None if lq is None else _find_lq(Path(lq), self.sets, self.scale)
        self._scores = choice.scores(self.sets)
        self._drawn_from = choice.probabilities(self.sets, self._judged, self._scores)

    @property
    def probabilities(self) -> Tensor | None:
        """`(S, K)` float32, how likely each candidate of each set is drawn; None with "amo", where the step decides."""
        return None if self.strategy == "amo" else self._drawn_from

    def __len__(self) -> int:
        return len(self.sets) * self.repeat

    @property
    def epoch(self) -> int:
        """The epoch that the draws belong to."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """New draws for a new epoch; call it before the loader's iterator is made, on every rank."""
        self._epoch.fill_(check_count("epoch", epoch, least=0))
        self.rank = process_rank() if self._rank is None else self.rank

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} samples")
        index = int(index) % len(self)
        row = index % len(self.sets)
        generator = torch.Generator().manual_seed(mixed_key(self.seed, self.rank, self.epoch, index))
        # Always the same draws in the same order, so that crops do not depend on what is done with them.
        place, turns = (torch.rand(n, generator=generator, device="cpu", dtype=torch.float32) for n in (2, 3))
        chosen = int(draw_index(self._drawn_from[row : row + 1], generator))
        negative = self._draw_negative(row, torch.rand((), generator=generator, device="cpu", dtype=torch.float32))

        crop = AlignedCrop(self.sets[row], self.scale, self.crop, place)
        images = {"lq": crop.low_resolution(self._lq[row] if self._lq is not None else self.degradation, generator)}
        if self.candidates:
            images["candidates"] = torch.stack([crop.image(number) for number in range(len(self.sets[row].paths))])
        if self.strategy != "amo":
            images["gt"] = crop.image(chosen)
        if self.negatives:
            images |= {"original": crop.image(0), "negative": crop.image(negative)}
        item: dict[str, Any] = {name: self._turned(image, turns) for name, image in images.items()}
        if self.strategy != "amo":
            item["gt_index"] = chosen
        if self._scores is not None:
            item["scores"] = self._scores[row]
        if self._judged is not None:
            item["positives"] = self._judged.positive[row]
        if self._judged is not None and self.negatives:
            votes = self._judged.votes[row]
            item["negative_votes"] = int(votes[negative]) if negative else 0
            if self.strategy != "amo":
                item["positive_votes"] = int(votes[chosen]) if item["positives"][chosen] else 0
        return item | {"index": index, "path": str(self.sets[row].paths[0])}

    def _draw_negative(self, row: int, uniform: Tensor) -> int:
        """A negative of the set, or 0 where there is none."""
        if self._judged is None:
            return 0
        found = self._judged.negative[row].nonzero().flatten().tolist()
        return int(found[int(uniform * len(found))]) if found else 0

    def _turned(self, images: Tensor, turns: Tensor) -> Tensor:
        mirror, upside, transpose = (turns < 0.5).tolist()
        if self.flips and mirror:
            images = images.flip(-1)
        if self.rotations and upside:
            images = images.flip(-2)
        if self.rotations and transpose:
            images = images.transpose(-2, -1)
        return images.contiguous()


def _as_objects(
    truths: GroundTruths | str | Path | None, choice: Choice | None, options: dict[str, Any]
) -> tuple[GroundTruths, Choice]:
    """Options by their own names, sorted into the objects that they are fields of."""
    own: dict[type, dict[str, Any]] = {}
    for kind in (GroundTruths, Choice):
        own[kind] = {f.name: options.pop(f.name) for f in fields(kind) if f.name in options}
    if options:
        raise TypeError(f"MultiGTDataset has no option {next(iter(options))!r}")
    if isinstance(truths, str | Path):
        own[GroundTruths]["root"], truths = truths, None
    for name, given, kind in (("truths", truths, GroundTruths), ("choice", choice, Choice)):
        if given is not None and own[kind]:
            raise TypeError(f"{next(iter(own[kind]))}= belongs into {name}=, which was given too")
    if truths is None and "root" not in own[GroundTruths]:
        raise TypeError("MultiGTDataset needs the folder of its ground truths, or GroundTruths(root=...)")
    return truths or GroundTruths(**own[GroundTruths]), choice or Choice(**own[Choice])


def _find_lq(folder: Path, sets: Sequence[CandidateSet], scale: int) -> list[Path]:
    files = {path.relative_to(folder).with_suffix("").as_posix(): path for path in list_images(folder)}
    found = []
    for candidates in sets:
        name = PurePosixPath(candidates.key).with_suffix("").as_posix()
        path = files.get(name, files.get(f"{name}x{scale}"))
        if path is None:
            raise ValueError(f"{folder} has no low-resolution image of {candidates.key!r}")
        found.append(path)
    return found

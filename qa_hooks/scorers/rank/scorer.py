"""A scorer that has learned to rank: the same picture, degraded more, must score lower. It needs images, no labels.

It is the reward and the judge for whoever has no download: a minute of one core on a folder of good images of one's own
kind. It knows the degradations of `functional.degradations.LADDERS`; what is missing in training may be rewarded later.
Its score has no upper end, and images can be optimised far above any photograph: as a loss it needs a ceiling, for
which `real_level` is made.

Source: Liu, van de Weijer and Bagdanov, "RankIQA: Learning from Rankings for No-reference Image Quality Assessment",
2017; the network is a small one of ours, trained from scratch and without the second stage, which needs labels.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from qa_hooks._base.checks import check_channels, check_count, warn
from qa_hooks._base.processes import gather_rows, rank
from qa_hooks._base.random import permutation
from qa_hooks.images import Range
from qa_hooks.scorers.rank.crops import Crops, read_crops
from qa_hooks.scorers.rank.network import (
    MEASURES,
    RankNetwork,
    held_out_accuracies,
    network_scores,
    train_ranking,
)
from qa_hooks.scorers.training import Fitted, TrainedScorer, check_fit, one_thread, read_for_one, training_room
from qa_hooks.sources.batches import Source

Own = TypeVar("Own", bound="RankScorer")

MIN_SIDE = 16
MIN_ACCURACY = 0.9
MAX_HELD_OUT = 400  # crops that the accuracies are measured on
LEVEL, ACCURACIES = "real_level", "accuracies"  # in the file, beside the network's tensors


class RankScorer(TrainedScorer):
    """Trained on degradations of the user's own images; scores images of any size from 16 pixels a side.

    SRCC .76 with people's ratings of five distortions together: docs/judges.md.

    Grey images are scored as colour ones of equal channels.

    Args:
        seed: of the initial weights, the crops, the degradations and the choice of held-out images.
        value_range: what the numbers of the images mean.

    Attributes:
        real_level: median score of the clean held-out crops, where a reward should stop; None before `fit`.
        accuracies: share of pairs of held-out crops in the right order: all pairs of levels by kind, "adjacent" levels
            of all kinds, and "other_image": different images at least two levels of a kind apart.

    Raises:
        ValueError: when called: it is not fitted, smaller images, neither 1 nor 3 channels.

    Example:
        >>> images = torch.rand(30, 3, 24, 24)
        >>> scorer = RankScorer().fit(images, steps=2, crop=16, calibration=None, progress=False, warn_below=0)
        >>> scorer(torch.rand(2, 1, 40, 50)).shape
        torch.Size([2])
    """

    name = "rank"
    score_range = None
    higher_is_better = True
    fit_version = 2  # of the training: files of an earlier one in a cache= folder are not used for a new fit

    def __init__(self, *, seed: int = 0, value_range: Range = (0.0, 1.0)) -> None:
        super().__init__(seed=seed, value_range=value_range)
        self.real_level: float | None = None
        self.accuracies: dict[str, float] = {}

    def score(self, images: Tensor, **inputs: Any) -> Tensor:
        check_channels(self.name, images)
        if min(images.shape[2:]) < MIN_SIDE:
            raise ValueError(f"{self.name} needs at least {MIN_SIDE} pixels a side, got {tuple(images.shape)}")
        scores: Tensor = self.network(images.float().expand(-1, 3, -1, -1))
        return scores

    def fit(
        self: Own,
        images: Source,
        *,
        steps: int = 2000,
        batch_size: int = 12,
        lr: float = 2e-3,
        crop: int = 64,
        crops: int = 16,
        held_out: float = 0.2,
        calibration: str | None = "ecdf",
        max_images: int = 1000,
        warn_below: float = MIN_ACCURACY,
        progress: bool = True,
    ) -> Own:
        """Train on crops of good images, measure on crops of other ones, and calibrate on these.

        It trains where the scorer is: `scorer.to("cuda")` first. With several processes the first one trains and the
        others wait for its result.

        Args:
            images: a tensor in `value_range`, a folder, files, a dataset or a loader. They should be as good as
                images of their kind can be: JPEG blocks or blur in them are taken for quality.
            steps, batch_size, lr: of the training; a chain, an image at five levels, counts as one.
            crop: side of the crops. Images that are smaller are left out with a warning.
            crops: random crops of each image; flat ones, which no blur can change, are left out.
            held_out: share of the images that is not trained on; at least one.
            calibration: "ecdf", "minmax", "sigmoid", or None for none.
            max_images: use at most so many, taken evenly.
            warn_below: name the accuracies below it in a warning.
            progress: show bars when stderr is a terminal.

        Returns:
            Itself.

        Raises:
            ValueError: fewer than two images that are large enough and not flat, values that are not finite.
        """
        check_fit(steps=steps, batch_size=batch_size, held_out=held_out, calibration=calibration)
        check_count("crop", crop, least=MIN_SIDE)
        check_count("crops", crops)
        check_count("max_images", max_images, least=2)
        reading: dict[str, Any] = {"side": crop, "count": crops, "limit": max_images, "seed": self.seed}
        training = {"steps": steps, "batch_size": batch_size, "lr": lr, "progress": progress}

        def read() -> Crops:
            return read_crops(images, self.value_range, **reading, progress=progress)

        def gather(own: Crops) -> Crops:
            return Crops(gather_rows(own.values), gather_rows(own.origin + rank() * 2**32))

        with training_room(self._here.device, self.seed), one_thread():
            own = read_for_one(images, read, Crops.none(crop), gather)
            self.fit_on_one(lambda: self._train(own, held_out, calibration, training))
        poor = [f"{name} {value:.3f}" for name, value in self.accuracies.items() if value < warn_below]
        if poor:
            warn(
                f"{self.name} puts too few held-out pairs in the right order ({', '.join(poor)}; {warn_below:g} is "
                "wanted): what it cannot see it may reward; give it more or cleaner images, or more steps"
            )
        return self

    def tensors(self) -> dict[str, Tensor]:
        weights = super().tensors()
        accuracies = torch.tensor([self.accuracies[name] for name in MEASURES], dtype=torch.float64, device="cpu")
        level = torch.tensor(self.real_level, dtype=torch.float32, device="cpu")
        return {**weights, LEVEL: level, ACCURACIES: accuracies}

    def options(self) -> dict[str, Any]:
        return {"seed": self.seed}

    @classmethod
    def divide(cls, options: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[dict[str, Any], Fitted]:
        level, accuracies = float(tensors.pop(LEVEL)), tensors.pop(ACCURACIES).tolist()
        if not all(math.isfinite(number) for number in (level, *accuracies)):
            raise ValueError("its level or its accuracies are not finite")
        return options, Fitted(tensors, {LEVEL: level, ACCURACIES: dict(zip(MEASURES, accuracies, strict=True))})

    def network_for(self, facts: dict[str, Any]) -> nn.Module:
        return RankNetwork()

    def take_facts(self, facts: dict[str, Any]) -> None:
        self.real_level, self.accuracies = facts[LEVEL], facts[ACCURACIES]

    def _train(self, crops: Crops, held_out: float, calibration: str | None, training: dict[str, Any]) -> Fitted:
        """Train, test and calibrate."""
        tested, trained = crops.split(held_out, self.seed)
        network = RankNetwork().float().to(self._here.device)
        train_ranking(network, trained, seed=self.seed, **training)
        clean = network_scores(network, tested)
        order = permutation(len(tested), self.seed)
        accuracies = held_out_accuracies(network, tested[order[:MAX_HELD_OUT]], seed=self.seed)
        facts = {LEVEL: float(clean.median()), ACCURACIES: {name: accuracies[name] for name in MEASURES}}
        return Fitted(network.state_dict(), facts, self.calibration_on(clean, calibration, "crops"))

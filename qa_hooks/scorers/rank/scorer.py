"""A scorer that has learned to rank: the same picture, degraded more, must score lower. It needs images, no labels.

It is the reward and the judge for whoever has no download: a minute of one core on a folder of good images of one's own
kind. It knows the degradations of `functional.degradations.LADDERS`; what is missing in training may be rewarded later.
Its score has no upper end, and images can be optimised far above any photograph: as a loss it needs a ceiling, for
which `real_level` is made.

Source: Liu, van de Weijer and Bagdanov, "RankIQA: Learning from Rankings for No-reference Image Quality Assessment",
2017; the network is a small one of ours, trained from scratch and without the second stage, which needs labels.
"""

from __future__ import annotations

import warnings
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from qa_hooks._base.checks import check_count
from qa_hooks._base.processes import broadcast_tensors, gather_rows, rank, together
from qa_hooks.images import Range
from qa_hooks.scorers.calibration import METHODS, Calibration
from qa_hooks.scorers.rank.crops import Crops, read_crops
from qa_hooks.scorers.rank.network import (
    MEASURES,
    RankNetwork,
    held_out_accuracies,
    network_scores,
    train_ranking,
)
from qa_hooks.scorers.scorer import Scorer
from qa_hooks.scorers.training import one_thread, training_room
from qa_hooks.sources.batches import Source, is_shared

Own = TypeVar("Own", bound="RankScorer")

MIN_SIDE = 16
MIN_ACCURACY = 0.9
MAX_HELD_OUT = 400  # crops that the accuracies are measured on
LEVEL, ACCURACIES, POINTS = "real_level", "accuracies", "points"  # beside the network's tensors


class RankScorer(Scorer):
    """Trained on degradations of the user's own images; scores images of any size from 16 pixels a side.

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
    _here: Tensor

    def __init__(self, *, seed: int = 0, value_range: Range = (0.0, 1.0)) -> None:
        super().__init__(value_range=value_range)
        self.seed = int(seed)
        self.real_level: float | None = None
        self.accuracies: dict[str, float] = {}
        self.register_buffer("_here", torch.empty(0, device="cpu"), persistent=False)  # where training is to happen

    @property
    def network(self) -> nn.Module:
        """The trained network: RGB images in [0, 1] -> scores `(N,)`."""
        if not self._frozen:
            raise ValueError(f"{self.name} is not fitted; call fit(images), or load a saved one")
        return self._frozen[0]

    def score(self, images: Tensor, **inputs: Any) -> Tensor:
        channels, height, width = images.shape[1:]
        if channels not in (1, 3) or min(height, width) < MIN_SIDE:
            raise ValueError(
                f"{self.name} needs images of 1 or 3 channels and at least {MIN_SIDE} pixels a side, got "
                f"{tuple(images.shape)}"
            )
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
        check_count("steps", steps)
        check_count("batch_size", batch_size, least=2)
        check_count("crop", crop, least=MIN_SIDE)
        check_count("crops", crops)
        check_count("max_images", max_images, least=2)
        if not 0 < held_out < 1:
            raise ValueError(f"held_out must lie between 0 and 1, got {held_out!r}")
        if calibration is not None and calibration not in METHODS:
            raise ValueError(f"calibration must be one of {METHODS} or None, got {calibration!r}")
        fitted: dict[str, Tensor] | None = None
        with training_room(self._here.device, self.seed), one_thread():
            reading: dict[str, Any] = {"side": crop, "count": crops, "limit": max_images, "seed": self.seed}
            own = Crops.none(crop)
            with together():
                if rank() == 0 or not is_shared(images):
                    own = read_crops(images, self.value_range, **reading, progress=progress)
            if not is_shared(images):
                own = Crops(gather_rows(own.values), gather_rows(own.origin + rank() * 2**32))
            with together():
                if rank() == 0:
                    training = {"steps": steps, "batch_size": batch_size, "lr": lr, "progress": progress}
                    fitted = self._train(own, held_out, calibration, training)
            received = broadcast_tensors(fitted)
            points = received.pop(POINTS, None)
            self._take(received)
        self._calibration.clear()
        if calibration is not None and points is not None:
            self.calibration = Calibration(calibration, points)
        poor = [f"{name} {value:.3f}" for name, value in self.accuracies.items() if value < warn_below]
        if poor:
            warnings.warn(
                f"{self.name} puts too few held-out pairs in the right order ({', '.join(poor)}; {warn_below:g} is "
                "wanted): what it cannot see it may reward; give it more or cleaner images, or more steps",
                stacklevel=2,
            )
        return self

    def tensors(self) -> dict[str, Tensor]:
        weights = {name: value.cpu() for name, value in self.network.state_dict().items()}
        accuracies = [self.accuracies[name] for name in MEASURES]
        facts = {LEVEL: torch.tensor(self.real_level), ACCURACIES: torch.tensor(accuracies, dtype=torch.float64)}
        return {**weights, **facts}

    def options(self) -> dict[str, Any]:
        return {"seed": self.seed}

    @classmethod
    def from_saved(cls: type[Own], options: dict[str, Any], tensors: dict[str, Tensor], value_range: Range) -> Own:
        scorer = cls(**options, value_range=value_range)
        with training_room(torch.device("cpu"), 0):
            scorer._take(tensors)
        return scorer

    def _train(
        self, crops: Crops, held_out: float, calibration: str | None, training: dict[str, Any]
    ) -> dict[str, Tensor]:
        """Train, test and calibrate; the tensors that `_take` takes, and the points of the calibration."""
        tested, trained = crops.split(held_out, self.seed)
        network = RankNetwork().float().to(self._here.device)
        train_ranking(network, trained, seed=self.seed, **training)
        clean = network_scores(network, tested)
        order = torch.randperm(len(tested), generator=torch.Generator().manual_seed(self.seed))
        accuracies = held_out_accuracies(network, tested[order[:MAX_HELD_OUT]], seed=self.seed)
        fitted = {**network.state_dict(), LEVEL: clean.median()}
        fitted[ACCURACIES] = torch.tensor([accuracies[name] for name in MEASURES], dtype=torch.float64)
        if calibration is not None:
            try:
                fitted[POINTS] = Calibration.fit(clean, method=calibration).points
            except ValueError as error:
                warnings.warn(f"{self.name} has no calibration, because on held-out crops its {error}")
        return fitted

    def _take(self, fitted: dict[str, Tensor]) -> None:
        """Take over what `_train` made, here or in another process or run."""
        own = dict(fitted)
        level, accuracies = float(own.pop(LEVEL)), own.pop(ACCURACIES).tolist()
        network = RankNetwork().float()
        network.load_state_dict(own)
        self._frozen.clear()
        self.keep(network.to(self._here.device))
        self.real_level, self.accuracies = level, dict(zip(MEASURES, accuracies, strict=True))

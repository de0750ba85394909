"""Snapshot scorers: quality learned from a training run, whose later images are better than its earlier ones.

    pseudo label of a generated image   S_p = S_g * iteration / last iteration        (S_g = 0.9)
    of a real image                     S_p = 1
    classifier i of N learns            [S_p >= T_i],   T_i = S_g i / N for i < N,  T_N = 1
    score                               mean_i sigmoid(logit_i)                       in [0, 1], higher is better

N = 1 is a classifier of real and generated (BC); a regression of S_p is the paper's other baseline (IR). The labels
suppose that the run gets better all the time: say where it stopped doing so (`max_iteration=`). The scorer also learns
accidental differences between real and generated images: give real images prepared like the run's training data.

Source: Gu et al., "GIQA: Generated Image Quality Assessment", 2020, sections 3.1 and 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from qa_hooks._base.checks import check_count, check_share, check_size
from qa_hooks._base.processes import gather_rows, together
from qa_hooks.images import Range
from qa_hooks.scorers.giqa.snapshot_images import (
    Read,
    Shape,
    Snapshots,
    input_shape,
    read_images,
    sides_of,
    split_snapshots,
    to_shape,
    warn_of_reading,
)  # fmt: skip
from qa_hooks.scorers.giqa.snapshot_network import (
    SnapshotNetwork,
    check_backbone,
    check_takes,
    probabilities,
    train_network,
)
from qa_hooks.scorers.giqa.snapshot_targets import (
    check_thresholds,
    held_out_report,
    ordinal_targets,
    ordinal_thresholds,
    pseudo_labels,
    split_positions,
)
from qa_hooks.scorers.training import Fitted, TrainedScorer, check_fit, read_for_one, training_room
from qa_hooks.sources.batches import Source

Own = TypeVar("Own", bound="SnapshotScorer")

NAMES = {"ordinal": "giqa_mbc", "binary": "giqa_bc", "regression": "giqa_ir"}
MIN_REAL, MIN_GENERATED, MIN_HELD_OUT = 20, 20, 10
MAX_CLASSIFIERS, MAX_SIDE = 1000, 4096  # more of either is a broken file, or a mistake


class SnapshotScorer(TrainedScorer):
    """Trained on the snapshots of one run; scores images of any generator of the same kind of data.

    Args:
        targets: "ordinal" (MBC: N classifiers), "binary" (BC: real or generated) or "regression" (IR).
        classifiers: N, of the ordinal targets. The paper's best is 8.
        backbone: "small", whose 600 steps take one core 15 s at 16 pixels and a minute at 64, or a classification
            network of torchvision by name; the paper's is "vgg19_bn".
        pretrained: start from torchvision's weights (it downloads them) and not from scratch, as the paper does.
        thresholds: T_1 < ... < T_N in (0, 1] instead of the paper's, in units of S_p.
        generated_level: S_g, the label of the run's last images.
        size, channels: what images are brought to, a side or (height, width), and 1 or 3; by default as most snapshots.
        seed: of the initial weights, the batches and the choice of held-out images.
        value_range: what the numbers of the images mean.

    Attributes:
        name: "giqa_mbc", "giqa_bc" or "giqa_ir".
        report: what `fit_snapshots` measured on held-out images: the balanced accuracy of each classifier and its mean
            (the mean absolute error of the regression), and what it was fitted on.

    Raises:
        ValueError: options that make no sense; when called: it is not fitted.

    Example:
        >>> images, iterations = torch.rand(40, 1, 16, 16), torch.arange(40) * 100
        >>> scorer = SnapshotScorer(classifiers=4).fit_snapshots(
        ...     (images, iterations), torch.rand(60, 1, 16, 16), steps=5, progress=False
        ... )
        >>> scorer(torch.rand(2, 1, 16, 16)).shape, len(scorer.report["accuracies"])
        (torch.Size([2]), 4)
    """

    score_range = (0.0, 1.0)
    higher_is_better = True
    fit_call = "fit_snapshots(snapshots, real)"

    def __init__(
        self,
        targets: str = "ordinal",
        classifiers: int = 8,
        *,
        backbone: str = "small",
        pretrained: bool = False,
        thresholds: Sequence[float] | None = None,
        generated_level: float = 0.9,
        size: int | Sequence[int] | None = None,
        channels: int | None = None,
        seed: int = 0,
        value_range: Range = (0.0, 1.0),
    ) -> None:
        super().__init__(seed=seed, value_range=value_range)
        if targets not in NAMES:
            raise ValueError(f"targets must be one of {tuple(NAMES)}, got {targets!r}")
        if channels not in (None, 1, 3):
            raise ValueError(f"channels must be 1, 3 or None, got {channels!r}")
        if pretrained and backbone == "small":
            raise ValueError("the small backbone has no pretrained weights; name a network of torchvision")
        self.name, self.targets = NAMES[targets], targets
        self.classifiers = check_count("classifiers", classifiers)
        if self.classifiers > MAX_CLASSIFIERS:
            raise ValueError(f"classifiers must be at most {MAX_CLASSIFIERS}, got {classifiers}")
        self.backbone, self.pretrained, self.channels = check_backbone(backbone), bool(pretrained), channels
        self.generated_level = check_share("generated_level", generated_level, one=True)
        self.size = sides_of(size)
        self._own_thresholds = check_thresholds(thresholds, targets)
        self.report: dict[str, Any] = {}
        self.shape: Shape | None = None

    @property
    def thresholds(self) -> tuple[float, ...]:
        """T_1 ... T_N; none for the regression."""
        if self._own_thresholds is not None:
            return tuple(self._own_thresholds)
        count = {"ordinal": self.classifiers, "binary": 1}.get(self.targets)
        return ordinal_thresholds(count, generated_level=self.generated_level) if count else ()

    def score(self, images: Tensor, **inputs: Any) -> Tensor:
        network, shape = self.network, cast(Shape, self.shape)
        return torch.sigmoid(network(to_shape(self._at_fitted_size(images.float()), shape))).mean(1)

    def fit_snapshots(
        self: Own,
        snapshots: Snapshots,
        real: Source,
        *,
        steps: int = 600,
        batch_size: int = 64,
        lr: float = 1e-3,
        held_out: float = 0.2,
        calibration: str | None = "ecdf",
        max_iteration: float | None = None,
        max_images: int = 50_000,
        augment: bool = True,
        flip: bool = False,
        progress: bool = True,
    ) -> Own:
        """Train the network, measure it on held-out images, and fit the calibration on the held-out real ones.

        It trains where the scorer is: `scorer.to("cuda")` first for torchvision's networks. The images are held as
        bytes. The first process trains; the others wait, so their group's timeout must be longer than the training.

        Args:
            snapshots: a folder that `SnapshotCollector` or any trainer wrote, one image a file, the iteration in the
                names (`qa_hooks.sources.snapshots.step_of`); or a pair: images `(n, C, H, W)` or files, and their
                iterations `(n,)`.
            real: real images: a tensor, a folder, files, a dataset or a loader.
            steps, batch_size, lr: options of the training; a batch is half real and half generated. 300, 600 and 1200
                steps ranked 0.79, 0.82 and 0.84 of the demo's pairs right.
            held_out: share of the real and of the generated images that is not trained on; at least 10 real ones.
            calibration: "ecdf", "minmax", "sigmoid", or None for no calibration.
            max_iteration: the iteration after which the run no longer improved. Its images and later ones get the label
                S_g. By default the last iteration of the snapshots.
            max_images: use at most so many snapshots and so many real images, taken evenly.
            augment: shift images by up to a sixteenth of the side: 0.82 of another run's pairs right, 0.76 without it.
            flip: mirror half of the images; not for digits or text.
            progress: show bars when stderr is a terminal.

        Returns:
            Itself.

        Raises:
            ValueError: fewer than 20 snapshots or real images, all of one iteration, values not finite.
        """
        check_fit(steps=steps, batch_size=batch_size, held_out=held_out, calibration=calibration)
        check_count("max_images", max_images, least=MIN_REAL)
        if max_iteration is not None and not max_iteration > 0:
            raise ValueError(f"max_iteration must be above 0, got {max_iteration!r}")
        training: dict[str, Any] = {"steps": steps, "batch_size": batch_size, "lr": lr, "progress": progress}
        training |= {"augment": augment, "flip": flip, "seed": self.seed}
        reading: dict[str, Any] = {"value_range": self.value_range, "limit": max_images, "progress": progress}
        with training_room(self._here.device, self.seed):
            with together():
                source, iterations = split_snapshots(snapshots)
                shape = input_shape(source, self.size, self.channels, self.value_range, limit=max_images)
            own = read_for_one(
                real,
                lambda: read_images("real", real, shape, **reading),
                Read(torch.zeros(0, *shape, dtype=torch.uint8, device="cpu")),
                lambda read: read._replace(images=gather_rows(read.images)),
            )

            def train() -> Fitted:
                generated = read_images("snapshots", source, shape, **reading)
                warn_of_reading(own, generated)
                quality = self._quality(iterations[generated.positions], max_iteration)
                return self._train(generated, quality, own, held_out, calibration, training)

            self.fit_on_one(train)
        return self

    def options(self) -> dict[str, Any]:
        names = ("classifiers", "backbone", "pretrained", "generated_level", "channels", "seed", "report")
        own = {name: getattr(self, name) for name in names} | {"thresholds": self._own_thresholds}
        own |= {"size": list(self.size) if self.size else None, "shape": list(self.shape or ())}
        return {"targets": self.targets, **own} if type(self) is SnapshotScorer else own

    @classmethod
    def divide(cls, options: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[dict[str, Any], Fitted]:
        channels, *size = options.pop("shape")
        if channels not in (1, 3):
            raise ValueError(f"the network must take 1 or 3 channels, got {channels!r}")
        facts = {"shape": [channels, *check_size(size, largest=MAX_SIDE)], "report": dict(options.pop("report"))}
        return options, Fitted(tensors, facts)

    def network_for(self, facts: dict[str, Any], *, pretrained: bool = False) -> SnapshotNetwork:
        channels, height, width = facts["shape"]
        outputs = len(self.thresholds) or 1
        return SnapshotNetwork(self.backbone, outputs, channels, (height, width), pretrained=pretrained)

    def take_facts(self, facts: dict[str, Any]) -> None:
        self.shape, self.report = tuple(facts["shape"]), facts["report"]
        self.fitted_size = None if self.size else self.shape[1:]

    def _quality(self, iterations: Tensor, max_iteration: float | None) -> Tensor:
        last = float(iterations.max()) if max_iteration is None else max_iteration
        quality = pseudo_labels(iterations, last, generated_level=self.generated_level)
        if self.targets != "binary" and len(quality.unique()) < 2:
            raise ValueError(
                f"all {len(iterations)} snapshots are of iteration {float(iterations.min()):g} (or beyond "
                f"max_iteration): {self.name} learns from the order of at least two; targets='binary' needs only one"
            )
        return quality

    def _train(
        self,
        generated: Read,
        quality: Tensor,
        real: Read,
        held_out: float,
        calibration: str | None,
        training: dict[str, Any],
    ) -> Fitted:
        """Train, test and calibrate."""
        if len(real.images) < MIN_REAL:
            raise ValueError(f"a snapshot scorer needs at least {MIN_REAL} real images, got {len(real.images)}")
        if len(generated.images) < MIN_GENERATED:
            raise ValueError(f"a snapshot scorer needs at least {MIN_GENERATED} snapshots, got {len(generated.images)}")
        regression = self.targets == "regression"
        labels = quality.float()[:, None] if regression else ordinal_targets(quality, self.thresholds)
        facts: dict[str, Any] = {"shape": list(real.images.shape[1:])}
        network = self.network_for(facts, pretrained=self.pretrained).float().to(self._here.device)
        check_takes(network, self.backbone, *facts["shape"])
        chance = torch.Generator().manual_seed(self.seed)
        test_real, own_real = split_positions(len(real.images), held_out, MIN_HELD_OUT, chance)
        test_fake, own_fake = split_positions(len(generated.images), held_out, 1, chance)
        fakes = generated.images[own_fake], labels[own_fake]
        train_network(network, *fakes, real.images[own_real], regression=regression, **training)
        of_real, of_fake = (
            probabilities(network, part) for part in (real.images[test_real], generated.images[test_fake])
        )
        predicted, wanted = torch.cat([of_real, of_fake]), torch.cat([torch.ones_like(of_real), labels[test_fake]])
        report = held_out_report(predicted, wanted, regression=regression)
        report |= {"thresholds": list(self.thresholds), "held_out": [len(of_real), len(of_fake)]}
        report |= {"real": len(real.images), "generated": len(generated.images), "steps": training["steps"]}
        report |= {"unreadable": len(real.failures) + len(generated.failures)}
        calibrated = self.calibration_on(of_real.mean(1), calibration, "real images")
        return Fitted(network.state_dict(), {**facts, "report": report}, calibrated)


class MBCScorer(SnapshotScorer):
    """`SnapshotScorer("ordinal")`: N binary classifiers, the paper's MBC-GIQA."""

    def __init__(self, classifiers: int = 8, **options: Any) -> None:
        super().__init__("ordinal", classifiers, **options)


class BCScorer(SnapshotScorer):
    """`SnapshotScorer("binary")`: one classifier of real and generated, the paper's BC-GIQA."""

    def __init__(self, **options: Any) -> None:
        super().__init__("binary", **options)


class IRScorer(SnapshotScorer):
    """`SnapshotScorer("regression")`: a regression of the pseudo label, the paper's IR-GIQA."""

    def __init__(self, **options: Any) -> None:
        super().__init__("regression", **options)

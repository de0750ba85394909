"""An A-FINE of your own: its heads on any extractor with stages, trained on people's judgements or on photographs.

The published A-FINE needs its checkpoint. This one needs a network that is here ("efficientnet_lite0-stages") and
pairs: of rated images beside their references (`qa_hooks.ratings.as_comparisons`), or made from good photographs, some
of them with the worse image as the reference. Its name is "afine_" and the extractor's, never "afine".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from qa_hooks._base.checks import check_channels, check_count, warn
from qa_hooks._base.processes import gather_rows, rank
from qa_hooks.features import FeatureExtractor, create_extractor
from qa_hooks.features.rebuilding import saved_extractor
from qa_hooks.images import Range
from qa_hooks.scorers.afine.adaptive import AdaptiveScorer
from qa_hooks.scorers.afine.comparisons import Comparisons, ladder_comparisons
from qa_hooks.scorers.afine.heads import Heads, Level
from qa_hooks.scorers.afine.looking import levels_of, look
from qa_hooks.scorers.afine.stages import distances, family_heads, held_out_agreement, train_heads
from qa_hooks.scorers.rank.crops import Crops, read_crops
from qa_hooks.scorers.training import Fitted, TrainedScorer, check_fit, one_thread, read_for_one, training_room
from qa_hooks.sources.batches import Source

Own = TypeVar("Own", bound="FittedAFINE")
EXTRACTOR = ("name", "dim", "fingerprint", "spec")
FACTS = ("accuracy", "low", "high", "pairs", "contents", "ties")
WIDTHS, HELD_OUT = "widths", "held_out"  # in the file, beside the network's tensors
MIN_SIDE = 32


class FittedAFINE(TrainedScorer, AdaptiveScorer):
    """A-FINE's heads on an extractor's stages; lower is better, [0, 100]; the reference may be the worse image.

    SRCC .78 with people's ratings of five distortions together, fitted on ratings of other contents: docs/afine.md.

    Args:
        extractor: one with stages ("random", "efficientnet_lite0-stages", "hed-stages", DINOv2), or its name.
        part: what a call returns, see `AdaptiveScorer`.
        seed: of the weights, the crops, the degradations and the choice of held-out contents.
        value_range: what the numbers of the images mean.

    Attributes:
        held_out: what the fit measured on contents that it did not train on: "accuracy" (the share of decided pairs in
            the right order), its interval over contents ("low", "high"), and the numbers of "pairs", "contents" and
            "ties". Empty before the fit.

    Example:
        >>> scorer = FittedAFINE({"type": "random", "width": 4})
        >>> scorer = scorer.fit(torch.rand(20, 3, 40, 40), steps=4, crop=32, crops=1, progress=False, warn_below=0)
        >>> image = torch.rand(1, 3, 40, 40)
        >>> scorer(image, reference=image).shape
        torch.Size([1])
    """

    takes_extractor = True
    fit_call = "fit(photographs) or fit_comparisons(comparisons)"

    def __init__(
        self,
        extractor: FeatureExtractor | str | Mapping[str, Any] = "efficientnet_lite0-stages",
        *,
        part: str = "score",
        seed: int = 0,
        value_range: Range = (0.0, 1.0),
    ) -> None:
        super().__init__(seed=seed, value_range=value_range)
        self.choose(part)
        made = create_extractor(extractor)
        made.stages(made.mean.new_full((1, 3, MIN_SIDE, MIN_SIDE), 0.5))  # one without stages is refused here
        self.extractor = self.keep(made)
        self.name = f"afine_{made.name}" + ("" if part == "score" else f"_{part}")
        self.held_out: dict[str, float] = {}
        self._widths: list[int] = []

    @property
    def heads(self) -> Heads:
        """The trained heads; `ValueError` when there are none yet."""
        return cast(Heads, self.network)

    def levels(self, images: Tensor) -> list[Level]:
        check_channels(self.name, images)
        return levels_of(self.extractor, images)

    def fit(
        self: Own,
        images: Source,
        *,
        kind: str = "both",
        crop: int = 192,
        crops: int = 1,
        max_images: int = 1000,
        cache: str | Path | None = None,
        steps: int = 1000,
        batch_size: int = 64,
        held_out: float = 0.2,
        warn_below: float = 0.8,
        progress: bool = True,
    ) -> Own:
        """Train on pairs that are made from good photographs: see `ladder_comparisons`.

        Args:
            images: a tensor in `value_range`, a folder, files, a dataset or a loader of good photographs.
            kind: "worse", "better" or "both": what the references are.
            crop: side of the crops; smaller images are left out with a warning.
            crops: random crops of each image.
            max_images: use at most so many, taken evenly.
            cache, steps, batch_size, held_out, warn_below, progress: as in `fit_comparisons`.

        Raises:
            ValueError: fewer than two images that are large enough and not flat.
        """
        check_count("crop", crop, least=MIN_SIDE)
        check_count("crops", crops)
        check_count("max_images", max_images, least=2)
        check_fit(steps=steps, batch_size=batch_size, held_out=held_out, calibration=None)
        reading: dict[str, Any] = {"side": crop, "count": crops, "limit": max_images, "seed": self.seed}
        reading["what"] = self.name

        def read() -> Crops:
            return read_crops(images, self.value_range, **reading, progress=progress)

        def gather(own: Crops) -> Crops:
            return Crops(gather_rows(own.values), gather_rows(own.origin + rank() * 2**32))

        with training_room(torch.device("cpu"), self.seed), one_thread():
            own = read_for_one(images, read, Crops.none(crop), gather)

        def made() -> Comparisons:
            own.split(held_out, self.seed, what=self.name)  # one image alone is refused before the long work
            contents = [str(origin) for origin in own.origin.tolist()]
            return ladder_comparisons(list(own.values), kind=kind, content=contents, seed=self.seed)

        training: dict[str, Any] = {"cache": cache, "steps": steps, "batch_size": batch_size, "held_out": held_out}
        return self._fit(made, **training, warn_below=warn_below, progress=progress)

    def fit_comparisons(
        self: Own,
        comparisons: Comparisons,
        *,
        cache: str | Path | None = None,
        steps: int = 1000,
        batch_size: int = 64,
        held_out: float = 0.2,
        warn_below: float = 0.8,
        progress: bool = True,
    ) -> Own:
        """Train on judged pairs, and measure on contents that were held out.

        With several processes the first one trains and the others wait for its result. It looks at the pictures where
        the scorer is: `scorer.to("cuda")` first.

        Args:
            comparisons: of `qa_hooks.ratings.as_comparisons`, or your own.
            cache: a folder that keeps the statistics of the pictures, which take most of the time. A fit that was cut
                off goes on from there, and another seed or number of steps finds them again.
            steps: of each of the three stages.
            batch_size: pairs of a step.
            held_out: share of the contents that is not trained on; at least one.
            warn_below: warn if fewer held-out pairs than this share are in the right order.
            progress: show bars when stderr is a terminal.

        Returns:
            Itself.

        Raises:
            ValueError: fewer than two contents, pictures that cannot be read, a loss that is not finite any more.
        """
        check_fit(steps=steps, batch_size=batch_size, held_out=held_out, calibration=None)
        training: dict[str, Any] = {"cache": cache, "steps": steps, "batch_size": batch_size, "held_out": held_out}
        return self._fit(lambda: comparisons, **training, warn_below=warn_below, progress=progress)

    def _fit(
        self: Own,
        made: Callable[[], Comparisons],
        *,
        cache: str | Path | None,
        held_out: float,
        warn_below: float,
        progress: bool,
        **training: int,
    ) -> Own:
        """Train on comparisons that only the first process needs."""

        def train() -> Fitted:
            comparisons = made()
            tested, trained = comparisons.split(held_out, self.seed)
            seen = look(self.extractor, comparisons, cache=cache, progress=progress)
            heads = family_heads(seen.widths)
            train_heads(heads, seen, trained, **training, seed=self.seed, progress=progress)
            with torch.no_grad():
                facts = held_out_agreement(distances(heads, seen, tested), tested)
            return Fitted(heads.state_dict(), {WIDTHS: list(seen.widths), HELD_OUT: facts})

        with training_room(self.extractor.mean.device, self.seed), one_thread():
            self.fit_on_one(train)
        accuracy = self.held_out.get("accuracy", float("nan"))
        if not accuracy >= warn_below:
            warn(
                f"{self.name} puts {accuracy:.3f} of the held-out pairs in the right order ({warn_below:g} is wanted): "
                "give it more contents, other features, or more steps"
            )
        return self

    @torch.no_grad()
    def judge(self, comparisons: Comparisons, *, cache: str | Path | None = None, progress: bool = True) -> Tensor:
        """The distance D of every item of comparisons, `(n,)`, lower is better; each picture is looked at once.

        Args:
            comparisons: as for `fit_comparisons`.
            cache, progress: as in `fit_comparisons`.
        """
        seen = look(self.extractor, comparisons, cache=cache, progress=progress)
        moved = seen._replace(moments=seen.moments.to(self.device), similar=seen.similar.to(self.device))
        return distances(self.heads, moved, comparisons).distance.cpu()

    def extra_repr(self) -> str:
        known = f", held-out accuracy {self.held_out['accuracy']:.3f}" if "accuracy" in self.held_out else ""
        interval = f" ({self.held_out['low']:.3f} to {self.held_out['high']:.3f})" if "low" in self.held_out else ""
        return f"{super().extra_repr()}{known}{interval}"

    def options(self) -> dict[str, Any]:
        saved = {name: getattr(self.extractor, name) for name in EXTRACTOR}
        own = {"extractor": saved, "seed": self.seed, WIDTHS: self._widths, HELD_OUT: self.held_out}
        return {**own, **AdaptiveScorer.options(self)}

    @classmethod
    def from_saved(
        cls: type[Own],
        options: dict[str, Any],
        tensors: dict[str, Tensor],
        value_range: Range,
        extractor: FeatureExtractor | nn.Module | str | None = None,
    ) -> Own:
        """Rebuild, with the extractor of the file or one that is given and has the same fingerprint."""
        made = saved_extractor(options["extractor"], extractor)
        return super().from_saved({**options, "extractor": made}, tensors, value_range)

    @classmethod
    def divide(cls, options: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[dict[str, Any], Fitted]:
        widths = [check_count("a width", width) for width in options.pop(WIDTHS)]
        held = {name: float(value) for name, value in options.pop(HELD_OUT).items()}
        if not set(held) <= set(FACTS) or not all(map(math.isfinite, held.values())) or len(widths) < 2:
            raise ValueError(f"its {HELD_OUT} is {held} and its {WIDTHS} are {widths}")
        return options, Fitted(tensors, {WIDTHS: widths, HELD_OUT: held})

    def network_for(self, facts: dict[str, Any]) -> nn.Module:
        return family_heads(facts[WIDTHS])

    def take_facts(self, facts: dict[str, Any]) -> None:
        self._widths = list(facts[WIDTHS])
        self.held_out = {name: value for name, value in facts[HELD_OUT].items() if math.isfinite(value)}

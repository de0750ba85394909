"""A scorer fitted on people's opinions: a small head on an extractor's features, in the units of the opinions.

`qa_hooks.ratings.fit_mos` and `fit_pairs` (`qa-hooks fit mos`, `fit pairs`) make it: they divide the images by content
and measure, on contents that took no part, how well it agrees with people. That number and its interval are in the
file. As a reward it is a network's judgement like any other, and can be fooled: ask `diagnose` (`qa-hooks doctor`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from qa_hooks._base.processes import broadcast_tensors, rank, together
from qa_hooks.features import FeatureExtractor, Features
from qa_hooks.functional.filters import full_precision
from qa_hooks.images import Range, as_tensor, check_images
from qa_hooks.scorers.in_features import ScorerInFeatures
from qa_hooks.scorers.opinions.alignment import joined, joined_width
from qa_hooks.scorers.opinions.head import Head, fit_head
from qa_hooks.scorers.opinions.targets import Targets

Own = TypeVar("Own", bound="OpinionScorer")
AGREEMENT = ("value", "low", "high", "n", "clusters")
STATISTICS = ("srcc", "plcc", "accuracy")
HEAD = Head._fields
IMAGE, ALIGNMENT = ABOUT = ("image", "alignment")
FACTS = ("kind", "images", "opinions", "contents", "held_out", "penalty")


class OpinionScorer(ScorerInFeatures):
    """What people would say of an image, as far as an extractor's features tell.

    Fitted on ratings it scores in their units and their direction; fitted on pairs, in units in which the difference of
    two scores says how probable it is that one image is found better, and higher is better.

    SRCC .83 with people's ratings of five distortions together, on contents held out: docs/own_scorer.md.

    Fitted on opinions of images together with their prompts (`about="alignment"`) it needs `prompt=`, and its features
    are those of `qa_hooks.scorers.opinions.alignment`.

    Args:
        extractor: from `create_extractor`, or its name.
        about: "image", or "alignment": how well an image fits its prompt; then the extractor must know prompts.
        higher_is_better: the direction of the ratings.
        scale: what the numbers mean, in words.
        facts: what it was fitted on, and how well it agrees with people on contents held out; saved with it.
        value_range: what the numbers of the images mean.

    Attributes:
        facts: "kind" ("ratings" or "pairs"), the numbers of "images", "opinions" and "contents" that it was fitted on,
            "penalty" of its head, and "held_out": a dictionary for each statistic, with "value", "low", "high", "n" and
            "clusters".

    Example:
        >>> from qa_hooks.scorers.opinions.targets import RatingTargets
        >>> features = torch.rand(40, 448)
        >>> scorer = OpinionScorer("random").fit(features, RatingTargets(features[:, 0].double()), range(40))
        >>> scorer(torch.rand(2, 3, 16, 16)).shape
        torch.Size([2])
    """

    name = "opinion"
    fitted = HEAD
    fit_call = "fit_mos(ratings) or fit_pairs(preferences) of qa_hooks.ratings"
    centre: Tensor
    rate: Tensor
    level: Tensor
    weights: Tensor
    bias: Tensor

    def __init__(
        self,
        extractor: FeatureExtractor | str | Mapping[str, Any],
        *,
        about: str = "image",
        higher_is_better: bool = True,
        scale: str = "",
        facts: Mapping[str, Any] | None = None,
        value_range: Range = (0.0, 1.0),
    ) -> None:
        super().__init__(extractor, value_range=value_range)
        if not isinstance(higher_is_better, bool):
            raise TypeError(f"higher_is_better must be True or False, got {higher_is_better!r}")
        self.higher_is_better, self.scale, self.facts = higher_is_better, str(scale), dict(facts or {})
        check_facts(self.facts)
        self.about = check_about(about, self.extractor)
        if about == ALIGNMENT:
            self.inputs = frozenset({"prompt"})

    def own_options(self) -> dict[str, Any]:
        about = {"about": self.about} if self.about != IMAGE else {}  # files of before say nothing of it
        return {"higher_is_better": self.higher_is_better, "scale": self.scale, "facts": self.facts, **about}

    def width(self, dim: int) -> int:
        return joined_width(dim) if self.about == ALIGNMENT else dim

    def rows(self, images: Tensor, **inputs: Any) -> Tensor:
        features: Tensor = self.extractor(images)
        if self.about == IMAGE:
            return features
        return joined(features, self.extractor.prompts(inputs["prompt"]))

    def shapes(self, tensors: dict[str, Tensor], dim: int) -> dict[str, tuple[int, ...]]:
        outputs = 2 if tensors["bias"].shape == (2,) else 1
        return {**dict.fromkeys(HEAD[:3], (dim,)), "weights": (outputs, 2 * dim), "bias": (outputs,)}

    def fit(self: Own, features: Features | Tensor, targets: Targets, contents: Sequence[int], *, seed: int = 0) -> Own:
        """Fit the head; what is held out and how well it agrees is for the caller (`qa_hooks.ratings.fit_mos`).

        Args:
            features: `(n, dim)` of this extractor, the same on every process.
            targets: what people said of these n images.
            contents: `(n,)` numbers; images of one content are never divided where the penalty is chosen.
            seed: of these divisions.
        """
        values = self._checked(features)
        if len(contents) != len(values):
            raise ValueError(f"contents has {len(contents)} values for {len(values)} images")
        found: dict[str, Tensor] | None = None
        with together():
            if rank() == 0:
                with torch.inference_mode(False), torch.enable_grad(), full_precision(values.device):
                    head, penalty = fit_head(values.detach().cpu().clone(), targets, list(contents), seed=seed)
                found = {name: tensor.float() for name, tensor in head._asdict().items()}
                found["penalty"] = torch.tensor(penalty, dtype=torch.float64, device="cpu")
        tensors = broadcast_tensors(found)
        self.facts["penalty"] = float(tensors.pop("penalty"))
        self._set(tensors)
        self.fitted_size = features.size if isinstance(features, Features) else None
        return self

    def score_rows(self, features: Tensor) -> Tensor:
        return self._head(features)[:, 0]

    def spread(self, images: Any, *, prompt: Sequence[str] | None = None) -> Tensor:
        """`(N,)` the standard deviation that people's ratings of these images would have, in units of the ratings.

        Args:
            images: as in a call.
            prompt: N prompts, where it needs them.

        Raises:
            ValueError: it was fitted on ratings without spreads, or on pairs; a prompt is missing.
        """
        self._check_fitted()
        self._check_inputs({"prompt": prompt})
        if len(self.bias) < 2:
            raise ValueError(f"{self.name} was fitted without people's spreads, so it expects none")
        unit = self._at_fitted_size(self._to_unit(check_images("images", as_tensor(images), floating=False)))
        rows = self.rows(unit, prompt=prompt)
        with full_precision(rows.device):
            return self._head(rows)[:, 1].exp()

    def _head(self, features: Tensor) -> Tensor:
        return Head(self.centre, self.rate, self.level, self.weights, self.bias)(features)

    def extra_repr(self) -> str:
        said = f", {agreement_text(self.facts)}" if self.facts.get("held_out") else ""
        fitted = "" if self._is_fitted else ", not fitted"
        return f"{self.name}, value_range={self.value_range}, extractor={self.extractor.name}{said}{fitted}"


def check_about(about: Any, extractor: FeatureExtractor) -> str:
    """The value itself; `ValueError` unless it is known and the extractor has what it needs."""
    if about not in ABOUT:
        raise ValueError(f"about must be one of {', '.join(ABOUT)}, got {about!r}")
    if about == ALIGNMENT and not extractor.reads_prompts:
        raise ValueError(
            f"opinions of how well images fit their prompts need an extractor that knows prompts, and "
            f"{extractor.name} knows none: take a CLIP-like model, extractor='transformers:MODEL'"
        )
    return str(about)


def check_facts(facts: Mapping[str, Any]) -> None:
    """`ValueError` unless these could be the facts of a scorer of opinions; a file may hold anything."""
    if unknown := set(facts) - set(FACTS):
        raise ValueError(f"facts may hold {', '.join(FACTS)}, got {sorted(unknown)}")
    held_out = facts.get("held_out", {})
    if not isinstance(held_out, Mapping) or len(held_out) > len(STATISTICS):
        raise ValueError(f"held_out must be a dictionary by statistic, got {type(held_out).__name__}")
    for name, row in held_out.items():
        numbers = [row.get(part) for part in AGREEMENT] if isinstance(row, Mapping) else []
        if name not in STATISTICS or not numbers or not all(isinstance(number, (int, float)) for number in numbers):
            raise ValueError(f"held_out must have the numbers {', '.join(AGREEMENT)} for {', '.join(STATISTICS)}")
    for name in ("images", "opinions", "contents"):
        if not isinstance(facts.get(name, 0), int):
            raise ValueError(f"{name} must be a whole number, got {facts[name]!r}")


def agreement_text(facts: Mapping[str, Any]) -> str:
    """How well a scorer of opinions agrees with people on contents held out, in one line.

    Example:
        >>> agreement_text({"held_out": {"srcc": {"value": 0.8, "low": 0.7, "high": 0.9, "n": 90, "clusters": 6}}})
        'srcc 0.800 [0.700, 0.900] on 90 held out of 6 contents'
    """
    texts = [
        f"{name} {row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}] on {row['n']} held out of {row['clusters']} "
        "contents"
        for name, row in dict(facts.get("held_out", {})).items()
    ]
    return "; ".join(texts) or "not measured"

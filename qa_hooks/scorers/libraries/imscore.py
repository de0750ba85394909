"""Preference scorers of imscore: `create_scorer("imscore:pickscore")`.

All are higher for better images and without a limit that is guaranteed; all but the aesthetic ones judge an image
together with its prompt. imscore downloads their weights when the scorer is made; each has a licence of its own.
The packages hpsv2 and image-reward, which had the same scorers first, pin old dependencies and are not used.

MPS divides by the largest similarity of the whole batch, so its scores would depend on an image's neighbours: images
are scored one by one. It computes in half precision. HPSv3, a vision-language model, cuts the gradient: a monitor.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from qa_hooks._base.libraries import import_library, installed_version, loading
from qa_hooks.images import Range
from qa_hooks.scorers.libraries.adapter import LibraryScorer, unknown_metric

PROMPT = frozenset({"prompt"})


class Preference(NamedTuple):
    """What imscore does not state.

    Attributes:
        path: of the class.
        weights: where `from_pretrained` finds them.
        inputs: beside the images.
        nominal_range: where most scores lie.
        each: scores depend on the batch, so images are scored one by one.
        half: it computes in half precision only.
        differentiable: whether a gradient reaches the images.
        licence: of the weights, as their authors state it.
    """

    path: str
    weights: str
    inputs: frozenset[str] = PROMPT
    nominal_range: Range | None = None
    each: bool = False
    half: bool = False
    differentiable: bool = True
    licence: str = "see the weights' card"


SCORERS: Mapping[str, Preference] = {
    "pickscore": Preference("imscore.pickscore.model.PickScorer", "RE-N-Y/pickscore", nominal_range=(10.0, 30.0)),
    "hpsv2.1": Preference("imscore.hps.model.HPSv2", "RE-N-Y/hpsv21", nominal_range=(0.0, 0.4)),
    "mps": Preference("imscore.mps.model.MPS", "RE-N-Y/mpsv1", each=True, half=True),
    "imagereward": Preference("imscore.imreward.model.ImageReward", "RE-N-Y/ImageReward", nominal_range=(-3.0, 3.0)),
    "clipscore": Preference(
        "imscore.preference.model.CLIPScore", "RE-N-Y/clipscore-vit-large-patch14", nominal_range=(0.0, 40.0)
    ),
    "pickscore-siglip": Preference("imscore.preference.model.SiglipPreferenceScorer", "RE-N-Y/pickscore-siglip"),
    "laion-aesthetic": Preference(
        "imscore.aesthetic.model.LAIONAestheticScorer", "RE-N-Y/laion-aesthetic", frozenset(), (1.0, 10.0)
    ),
    "hpsv3": Preference("imscore.hpsv3.model.HPSv3", "RE-N-Y/hpsv3", differentiable=False),
}


class ImscoreScorer(LibraryScorer):
    """A scorer of imscore, by name.

    Args:
        metric: a name of `SCORERS`.
        model: one that is made already, of the class that the name stands for; it is taken over: frozen, in eval mode.
        weights: another name of the weights, or a folder that `save_pretrained` wrote.
        value_range: what the numbers of the images mean.

    Raises:
        ImportError: imscore, or a package that this scorer needs, is not installed.
        ValueError: an unknown name.
        RuntimeError: the weights could not be loaded; or, when called, this version does not run with the installed
            transformers.

    Example:
        >>> from qa_hooks.scorers import create_scorer
        >>> scorer = create_scorer("imscore:pickscore")  # doctest: +SKIP
        >>> scorer(images, prompt=["a cat", "a dog"])  # doctest: +SKIP
    """

    library = "imscore"

    def __init__(
        self,
        metric: str,
        *,
        model: nn.Module | None = None,
        weights: str | None = None,
        value_range: Range = (0.0, 1.0),
    ) -> None:
        facts = SCORERS.get(metric)
        if facts is None:
            raise unknown_metric(self.library, metric, SCORERS)
        if model is not None and weights is not None:
            raise ValueError("a model that is made already has its weights: leave weights out")
        built = _built(f"imscore:{metric}", facts, weights) if model is None else model
        if not isinstance(built, nn.Module) or not callable(getattr(built, "score", None)):
            raise TypeError(
                f"model must be a scorer of imscore, with score(pixels, prompts), got {type(built).__name__}"
            )
        super().__init__(
            built.half() if facts.half else built,
            spec=f"imscore:{metric}",
            higher_is_better=True,
            score_range=None,
            inputs=facts.inputs,
            differentiable=facts.differentiable,
            value_range=value_range,
            options={} if weights is None else {"weights": weights},
        )
        self.nominal_range, self.licence, self._each = facts.nominal_range, facts.licence, facts.each

    def measure(self, images: Tensor, **inputs: Any) -> Tensor:
        prompts = list(inputs["prompt"]) if "prompt" in inputs else [""] * len(images)
        parts = [(images[i : i + 1], prompts[i : i + 1]) for i in range(len(images))] if self._each else []
        try:
            scores = [self.metric.score(*part).reshape(-1) for part in parts or [(images, prompts)]]
        except (AttributeError, TypeError) as error:
            versions = " and ".join(f"{name} {installed_version(name)}" for name in ("imscore", "transformers"))
            raise RuntimeError(f"{self.spec} does not run here: {versions} do not fit each other: {error}") from error
        return torch.cat(scores)


def _built(spec: str, facts: Preference, weights: str | None) -> Any:
    import_library("imscore")
    module, _, name = facts.path.rpartition(".")
    with loading(spec):
        kind = getattr(importlib.import_module(module), name)
        return cast(Any, kind.from_pretrained(weights or facts.weights))

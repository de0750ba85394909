"""Metrics of other libraries as scorers: `create_scorer("pyiqa:musiq")`, `"torchmetrics:arniqa"`, `"piq:gmsd"`,
`"imscore:pickscore"`, `"transformers:MODEL"`.

What differs between the libraries is settled here, once: scores per image and never a batch's mean, the published
direction and range, [0, 1] images whatever the user's range is, a frozen network in eval mode that follows
`.to(device)`, and a gradient wherever the library has one. The library sees images clamped to [0, 1] (some refuse
others); the gradient passes the clamp, so that pixels outside can come back.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import PurePath
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn

from qa_hooks._base.checks import check_channels, with_options
from qa_hooks._base.libraries import import_library, loading
from qa_hooks.functional.clamp import through_clamp
from qa_hooks.images import Range
from qa_hooks.scorers.scorer import Scorer

LIBRARIES = {
    "pyiqa": ("qa_hooks.scorers.libraries.pyiqa", "PyIQAScorer"),
    "torchmetrics": ("qa_hooks.scorers.libraries.torchmetrics", "TorchMetricsScorer"),
    "piq": ("qa_hooks.scorers.libraries.piq", "PIQScorer"),
    "imscore": ("qa_hooks.scorers.libraries.imscore", "ImscoreScorer"),
    "transformers": ("qa_hooks.scorers.libraries.transformers", "TransformersScorer"),
}


def create_library_scorer(spec: str, value_range: Range = (0.0, 1.0), **options: Any) -> Scorer:
    """A scorer from `library:metric`; options go to the library's own function or class.

    Raises:
        ImportError: the library, or something that the metric needs, is not installed.
        ValueError: an unknown metric.
        RuntimeError: its weights could not be loaded.
    """
    library, _, metric = spec.partition(":")
    module, kind = LIBRARIES[library]
    scorer: Scorer = with_options(
        spec, getattr(importlib.import_module(module), kind), options, metric, value_range=value_range
    )
    return scorer


class LibraryScorer(Scorer):
    """Base class of scorers that wrap a metric of another library; a subclass writes `measure`.

    Attributes:
        licence: of the library's code; a metric's weights can have their own.
        nominal_range: where most scores lie, when the library says so without a guarantee; then `score_range` is None.
    """

    library: ClassVar[str] = ""
    licence: str = "see the library"
    nominal_range: Range | None = None

    def __init__(
        self,
        metric: Any,
        *,
        spec: str,
        higher_is_better: bool,
        score_range: Range | None,
        inputs: frozenset[str],
        differentiable: bool,
        value_range: Range,
        options: Mapping[str, Any],
    ) -> None:
        super().__init__(value_range=value_range)
        self.metric = self.keep(metric)
        self._network = isinstance(metric, nn.Module) and any(p.numel() for p in metric.parameters())
        self.spec, self.name = spec, _named(spec, options)
        self.higher_is_better, self.score_range = higher_is_better, score_range
        self.inputs, self.differentiable, self._options = inputs, differentiable, dict(options)

    def measure(self, images: Tensor, **inputs: Any) -> Tensor:
        """What a subclass writes: images and reference in [0, 1] -> `(N,)` or `(N, ...)`, averaged over the rest."""
        raise NotImplementedError

    def score(self, images: Tensor, **inputs: Any) -> Tensor:
        check_channels(self.spec, images)
        pictures = {"images": images, **{name: value for name, value in inputs.items() if name == "reference"}}
        for name, value in pictures.items():
            value = through_clamp(value)
            pictures[name] = value.expand(-1, 3, -1, -1) if self._network and value.shape[1] == 1 else value
        try:
            scores = self.measure(pictures.pop("images"), **{**inputs, **pictures})
        except (AssertionError, ValueError) as error:
            raise ValueError(f"{self.spec} refuses images of the shape {tuple(images.shape)}: {error}") from error
        return scores.flatten(1).mean(1) if scores.ndim > 1 else scores

    def options(self) -> dict[str, Any]:
        return {"spec": self.spec, "version": metadata.version(self.library), **self._options}

    def tensors(self) -> dict[str, Tensor]:
        networks = enumerate(self._frozen)
        return {f"{i}.{k}": v.detach().cpu().contiguous() for i, net in networks for k, v in net.state_dict().items()}

    def save(self, path: Any) -> None:
        """Refused: the weights are the library's; the name is all there is to save."""
        raise TypeError(f"{self.name} is made again by create_scorer({self.spec!r}); there is nothing of ours to save")


def _named(spec: str, options: Mapping[str, Any]) -> str:
    """A metric's name, with its options, since with them it is another measure: "pyiqa_psnr_test_y_channel"."""
    words = [spec.replace("+", "plus")]
    for option, value in options.items():
        said = {True: option, False: f"no_{option}"}.get(value) if isinstance(value, bool) else None
        words.append(said or f"{option}_{PurePath(value).name if isinstance(value, str) else value}")
    return re.sub(r"\W+", "_", "_".join(words)).strip("_")


class Metric(NamedTuple):
    """The facts about a metric that its library does not state.

    Attributes:
        path: of the function or class.
        higher_is_better, score_range: as in `Scorer`.
        inputs: beside the images.
        options: of the class, or of each call of the function.
        part: the attribute of the class's instance that is called, when it is not the instance.
        call: options of each call of an instance.
        each: the library gives one number for a batch, so it is called image by image.
        differentiable: whether a usable gradient reaches the images.
    """

    path: str
    higher_is_better: bool
    score_range: Range | None = None
    inputs: tuple[str, ...] = ("reference",)
    options: Mapping[str, Any] = {}
    part: str = ""
    call: Mapping[str, Any] = {}
    each: bool = False
    differentiable: bool = True


class TableScorer(LibraryScorer):
    """A metric out of a table of `Metric`s.

    Args:
        metric: its name in the table.
        value_range: what the numbers of the images mean.
        options: for the library's function or class.
    """

    TABLE: ClassVar[Mapping[str, Metric]] = {}

    def __init__(self, metric: str, *, value_range: Range = (0.0, 1.0), **options: Any) -> None:
        facts = self.TABLE.get(metric)
        if facts is None:
            raise unknown_metric(self.library, metric, self.TABLE)
        spec = f"{self.library}:{metric}"
        import_library(self.library)
        module, _, name = facts.path.rpartition(".")
        target = getattr(importlib.import_module(module), name)
        chosen = {**facts.options, **options}
        unknown = sorted(set(options) - set(inspect.signature(target).parameters))
        if unknown:
            raise TypeError(f"{spec} has no option {', '.join(unknown)}; see {facts.path}")
        if inspect.isclass(target):
            with loading(spec):
                built = target(**chosen)
            called = getattr(built, facts.part) if facts.part else built
        else:
            called = functools.partial(target, **chosen)
        self._facts = facts
        super().__init__(
            called,
            spec=spec,
            higher_is_better=facts.higher_is_better,
            score_range=facts.score_range,
            inputs=frozenset(facts.inputs),
            differentiable=facts.differentiable,
            value_range=value_range,
            options=options,
        )

    def measure(self, images: Tensor, **inputs: Any) -> Tensor:
        given = [images, *(inputs[name] for name in self._facts.inputs)]
        if not self._facts.each:
            return cast(Tensor, self.metric(*given, **self._facts.call))
        rows = [self.metric(*(part[i : i + 1] for part in given), **self._facts.call) for i in range(len(images))]
        return torch.stack([row.mean() for row in rows])


def unknown_metric(library: str, metric: str, known: Mapping[str, Any]) -> ValueError:
    """The error for a name that is not in a library's list."""
    near = difflib.get_close_matches(metric, known, 4, 0.4) if len(known) > 40 else sorted(known)
    return ValueError(f"unknown metric {library}:{metric}; {'near it are' if len(known) > 40 else 'known are'} {near}")

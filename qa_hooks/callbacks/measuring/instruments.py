"""What is measured of samples: rows of each block of images, and the values of all rows.

A monitor uses an instrument in the process that trains, or sends it to another one (`packed`), which makes it again
(`make_instrument`): the same code gives the same numbers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from qa_hooks._base.processes import rank, shared, together
from qa_hooks.callbacks.measuring.messages import Facts, Tensors
from qa_hooks.evaluation.measure import Measurement, measure
from qa_hooks.evaluation.reference import Reference
from qa_hooks.evaluation.set_metrics import METRICS
from qa_hooks.features import FeatureExtractor
from qa_hooks.features.rebuilding import saved_extractor
from qa_hooks.scorers.carrying import packed_scorer, unpacked_scorer
from qa_hooks.scorers.score_source import first_refusal, score_each
from qa_hooks.scorers.scorer import Scorer

Block = Mapping[str, Tensor]  # "images" (n, C, H, W), "position" (n,) int64 on the CPU, and further inputs
Found = dict[str, Any]  # values as JSON can hold them, and tensors


class Instrument(Protocol):
    """Measures one set of images, block by block.

    Attributes:
        dtype: of the rows.
    """

    dtype: torch.dtype

    def rows(self, block: Block) -> Tensor:
        """`(n, k)` on the CPU or the device of the network; the first column is the position."""

    def values(self, rows: Tensor) -> Found:
        """What all rows, sorted by position, say; on several processes all of them call it, with the same rows."""

    def check_portable(self) -> None:
        """`ValueError` says what another process could not make again, and what to write."""

    def packed(self) -> tuple[Facts, Tensors]:
        """What `make_instrument` needs."""


@dataclass(eq=False)
class ScoreInstrument:
    """The score of each image, NaN where the scorer refused it.

    Attributes:
        scorer: any scorer.
        refusal: why the scorer refused the first of these images, or "".
    """

    scorer: Scorer
    refusal: str = field(default="", init=False)
    dtype = torch.float64

    def rows(self, block: Block) -> Tensor:
        inputs = {name: value for name, value in block.items() if name not in ("position", "images")}
        scores, refused = score_each(self.scorer, block["images"], **inputs)
        self.refusal = self.refusal or first_refusal(refused)
        return torch.stack([block["position"].double(), scores], 1)

    def values(self, rows: Tensor) -> Found:
        refusal, self.refusal = self.refusal, ""
        return {"scores": rows[:, 1].contiguous(), "refusal": refusal}

    def check_portable(self) -> None:
        packed_scorer(self.scorer)

    def packed(self) -> tuple[Facts, Tensors]:
        facts, tensors = packed_scorer(self.scorer)
        return {"kind": "scores", "scorer": facts}, {f"scorer.{name}": tensor for name, tensor in tensors.items()}


@dataclass(eq=False)
class SetInstrument:
    """Distances of a set of images to real ones, and its other set metrics.

    Attributes:
        extractor: of the features.
        reference: the real images' statistics in these features.
        metrics, scorer, groups: as in `qa_hooks.evaluation.measure`.
        classifier: images in [0, 1] -> logits, for "is".
    """

    extractor: FeatureExtractor
    reference: Reference
    metrics: Sequence[str]
    scorer: Any = None
    classifier: Callable[[Tensor], Tensor] | None = None
    groups: int = 10
    dtype = torch.float32

    def rows(self, block: Block) -> Tensor:
        images = block["images"].to(self.extractor.mean.device)
        features = self.extractor(images)
        if not bool(torch.isfinite(features).all()):
            raise ValueError(f"{self.extractor.name} gives features that are not finite")
        columns = [block["position"][:, None], features]
        if self.classifier is not None and "is" in self.metrics:
            columns.append(self.classifier(images.float() / 255))
        return torch.cat([column.to(features) for column in columns], 1)

    def values(self, rows: Tensor) -> Found:
        found: dict[str, Measurement] = {}
        with together():
            # A diversity score fits a model, for which all processes are needed; the rest is rank 0's.
            found = self._measured(rows, {"ds"} & set(self.metrics))
            if rank() == 0:
                found = self._measured(rows, set(self.metrics) - {"ds"}) | found
        return shared({name: list(value) for name, value in found.items()})

    def check_portable(self) -> None:
        if self.classifier is not None and "is" in self.metrics:
            raise ValueError(
                'the classifier of "is" is code of your own, which another process cannot make again: leave "is" out '
                "of metrics=, or where= out"
            )
        if self.extractor.spec is None:
            raise ValueError(
                f"{self.extractor.name} is a network of your own, which another process cannot make again: give an "
                'extractor by name, such as "inception" or "dinov2_vits14", or leave where= out'
            )
        try:
            json.dumps(self.extractor.spec)
        except TypeError as error:
            raise ValueError(
                f"the options of {self.extractor.name} cannot be told another process ({error}): write paths as text"
            ) from None
        if self._scored:
            packed_scorer(self.scorer)

    def packed(self) -> tuple[Facts, Tensors]:
        own, reference = self.extractor, self.reference
        facts: Facts = {"kind": "set", "metrics": list(self.metrics), "groups": self.groups, "scorer": None}
        facts["extractor"] = {"spec": own.spec, "name": own.name, "fingerprint": own.fingerprint}
        facts["reference"] = {"count": reference.count, "data": reference.data, "extractor": reference.extractor}
        parts = ("mean", "covariance", "rows", "shapes")
        tensors = {f"reference.{name}": getattr(reference, name) for name in parts}
        if self._scored:
            facts["scorer"], scorer = packed_scorer(self.scorer)
            tensors |= {f"scorer.{name}": tensor for name, tensor in scorer.items()}
        return facts, tensors

    @property
    def _scored(self) -> bool:
        return any(METRICS[metric].needs == "scorer" for metric in self.metrics)

    def _measured(self, rows: Tensor, metrics: set[str]) -> dict[str, Measurement]:
        if not metrics:
            return {}
        features, logits = rows[:, 1 : 1 + self.extractor.dim], rows[:, 1 + self.extractor.dim :]
        options: dict[str, Any] = {"scorer": self.scorer, "groups": self.groups}
        options["logits"] = logits if "is" in metrics else None
        chosen = [metric for metric in self.metrics if metric in metrics]
        return measure(features, self.reference, chosen, extractor=self.extractor, **options)


def in_order(rows: Tensor) -> Tensor:
    """Rows sorted by position, which is the first column."""
    return rows[rows[:, 0].argsort(stable=True)]


def make_instrument(
    facts: Facts, tensors: Tensors, device: torch.device, extractors: dict[str, FeatureExtractor]
) -> Instrument:
    """The instrument that `packed` described.

    Args:
        facts, tensors: what it gave.
        device: where its network shall work.
        extractors: extractors that are here already, by fingerprint; the one that is made joins them.

    Raises:
        ValueError: a part of it cannot be made here, or is another one here.
    """
    if facts["kind"] == "scores":
        return ScoreInstrument(unpacked_scorer(facts["scorer"], _below("scorer", tensors)).to(device))
    fingerprint = facts["extractor"]["fingerprint"]
    if fingerprint not in extractors:
        extractors[fingerprint] = saved_extractor(facts["extractor"], None).to(device)
    extractor, own = extractors[fingerprint], _below("reference", tensors)
    reference, scorer = Reference(**facts["reference"], **own).to(device), None
    if facts["scorer"] is not None:
        scorer = unpacked_scorer(facts["scorer"], _below("scorer", tensors), extractor=extractor)
    return SetInstrument(extractor, reference, facts["metrics"], scorer, None, facts["groups"])


def _below(part: str, tensors: Tensors) -> dict[str, Any]:
    start = f"{part}."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}

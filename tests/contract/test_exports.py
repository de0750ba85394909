"""Nothing escapes the table: every export, every subclass and every metric of an adapter has a row, or a reason."""

from __future__ import annotations

import importlib

import pytest

from contract.all_rows import ROWS, TABLES
from contract.scorer_rows import ADAPTERS, DOWNLOADS, LIBRARY_ROWS
from qa_hooks.losses import QALoss
from qa_hooks.penalties import CriticPenalty
from qa_hooks.scorers import Scorer
from qa_hooks.scorers.catalogue import SPECS
from qa_hooks.weighting import Weighter

# Exports that take no tensors of their own.
NO_TENSORS = {
    "functional": {
        "FeatureConfig": "settings",
        "KernelDistance": "a result",
        "PrecisionRecall": "a result",
    },
    "losses": {},
    "penalties": {
        "AttachedPenalty": "a handle, see tests/unit/penalties/test_attach.py",
        "attach_penalty": "hangs a penalty on an optimizer, see tests/unit/penalties/test_attach.py",
        "SeenBatch": "keeps what a network saw for attach_penalty, see tests/unit/penalties",
        "CriticPass": "what a penalty is handed: every penalty's row reads it",
    },
    "scorers": {
        "Comparisons": "a table, see tests/unit/scorers/test_fitted.py",
        "ladder_comparisons": "bytes in, a table out, see tests/unit/scorers/test_fitted.py",
        "create_scorer": "a name in, a scorer out",
        "load_scorer": "a file in, a scorer out",
    },
    "weighting": {"Picked": "a result", "SelectedInstances": "a result"},
}
BASES = {
    "AdaptiveScorer",
    "FullReferenceScorer",
    "FeatureScorer",
    "TrainedScorer",
    "LibraryScorer",
    "TableScorer",
    "ScorerInFeatures",
}
# Their own class: the scorer inside has the row. LPIPS and DISTS need weights that are not in the package; the scorers
# of prompts are in tests/unit/scorers/test_prompt_scorers.py.
WITHIN = {
    "CalibratedScorer",
    "PyIQAScorer",
    "TorchMetricsScorer",
    "PIQScorer",
    "LPIPS",
    "DISTS",
    "ImscoreScorer",
    "TransformersScorer",
}


def exports_with_a_row(package: str) -> set[str]:
    return {name.split()[0] for name in TABLES[package]}


@pytest.mark.parametrize("package", TABLES)
def test_every_export_has_a_row_or_a_reason(package):
    exports = set(importlib.import_module(f"qa_hooks.{package}").__all__)
    reasons = NO_TENSORS[package]
    assert exports_with_a_row(package) | set(reasons) == exports
    assert not exports_with_a_row(package) & set(reasons)


def every_subclass(kind: type) -> set[type]:
    return {
        c for sub in kind.__subclasses__() for c in {sub, *every_subclass(sub)} if c.__module__.startswith("qa_hooks")
    }


@pytest.mark.parametrize(
    ("package", "kind"),
    [("losses", QALoss), ("penalties", CriticPenalty), ("scorers", Scorer), ("weighting", Weighter)],
)
def test_every_subclass_has_a_row(package, kind):
    for entry in SPECS.values():
        importlib.import_module(entry.module)
    named = {c.__name__ for c in every_subclass(kind)}
    assert named - BASES - WITHIN <= exports_with_a_row(package)


def test_every_metric_of_an_adapter_has_a_row():
    metrics = {f"{library}:{m}" for library, kind in ADAPTERS.items() for m in getattr(kind, "TABLE", {})}
    assert {name for name in metrics if name.split(":")[1] not in DOWNLOADS} == set(LIBRARY_ROWS) - {"pyiqa:psnr"}


def test_the_rows_are_usable():
    for name, row in ROWS.items():
        inputs = row.inputs(row.batches[0])
        assert row.images <= len(inputs), name
        assert all(x.ndim == 4 for x in inputs[: row.images]), name
        assert all(place < len(inputs) for place in row.gradient), name

"""Metrics of pyiqa (IQA-PyTorch): `create_scorer("pyiqa:musiq")`, for whatever `pyiqa.list_models()` names.

Direction, reference and range are read from the library. Its ranges marked "~" are no bounds (MUSIQ can leave 0 to
100), so they become `nominal_range`. pyiqa 0.1.16 is under the PolyForm Noncommercial licence.
"""

from __future__ import annotations

import re
from typing import Any, cast

import torch
from torch import Tensor, nn

from qa_hooks._base.libraries import import_library, loading
from qa_hooks.images import Range
from qa_hooks.scorers.libraries.adapter import LibraryScorer, unknown_metric

# Round trips through PIL, histograms, torch.no_grad inside: no gradient, or none that means anything; MAD's is NaN.
MONITOR_ONLY = ("qalign", "qrealign", "compare2score", "afine", "piqe", "entropy", "mad")
_FAMILY = re.compile("[_-]")  # "afine_all_scale" is of the family "afine"
OF_SETS = ("fid", "sfid", "fid_dinov2", "inception_score", "fgresq_pair")
TAKES_PROMPT = {"clipscore": "caption_list"}


class PyIQAScorer(LibraryScorer):
    """A metric of pyiqa, by name or as the object that `pyiqa.create_metric` returned.

    Args:
        metric: the name, or a metric object, which is taken over: frozen, in eval mode, unreduced.
        value_range: what the numbers of the images mean.
        options: of `pyiqa.create_metric` with that name ("test_y_channel", "pretrained_model_path", ...).

    Raises:
        ImportError, ValueError, RuntimeError: as `create_library_scorer`; a metric of sets of images.

    Example:
        >>> from qa_hooks.scorers import create_scorer
        >>> scorer = create_scorer("pyiqa:musiq")  # doctest: +SKIP
        >>> scorer.higher_is_better, scorer.score_range, scorer.nominal_range  # doctest: +SKIP
        (True, None, (0.0, 100.0))
    """

    library = "pyiqa"
    licence = "PolyForm-Noncommercial-1.0.0"

    def __init__(self, metric: str | nn.Module, *, value_range: Range = (0.0, 1.0), **options: Any) -> None:
        name = metric if isinstance(metric, str) else str(getattr(metric, "metric_name", type(metric).__name__))
        if name in OF_SETS:
            raise ValueError(f"pyiqa:{name} compares sets of images, not single ones; see GenerativeMonitor")
        built = _build(metric, options) if isinstance(metric, str) else metric
        if not all(hasattr(built, fact) for fact in ("lower_better", "metric_mode", "as_loss")):
            raise TypeError(f"metric must be a name or what pyiqa.create_metric returns, got {type(metric).__name__}")
        # Unreduced, and without pyiqa's own range check: images are clamped before they come here.
        built.loss_reduction, built.loss_weight, built.check_input_range = "none", None, False
        stated, bounded = _parse_range(getattr(built, "score_range", None))
        inputs = {"reference"} if built.metric_mode == "FR" else set()
        super().__init__(
            built,
            spec=f"pyiqa:{name}",
            higher_is_better=not built.lower_better,
            score_range=stated if bounded else None,
            inputs=frozenset(inputs | ({"prompt"} if name in TAKES_PROMPT else set())),
            differentiable=_FAMILY.split(name)[0] not in MONITOR_ONLY,
            value_range=value_range,
            options=options,
        )
        self.nominal_range = stated
        self._prompt = TAKES_PROMPT.get(name, "")

    def measure(self, images: Tensor, **inputs: Any) -> Tensor:
        metric = self.metric
        metric.as_loss = torch.is_grad_enabled()  # as a loss it switches gradients on, also where nobody wants them
        prompt = {self._prompt: inputs["prompt"]} if self._prompt else {}
        scores = metric(images, inputs.get("reference"), **prompt)
        return cast(Tensor, scores[0] if isinstance(scores, tuple) else scores)


def _build(name: str, options: dict[str, Any]) -> Any:
    with loading(f"pyiqa:{name}"):
        pyiqa = import_library("pyiqa")
        from pyiqa.default_model_configs import DEFAULT_CONFIGS

        if name not in DEFAULT_CONFIGS:
            raise unknown_metric("pyiqa", name, DEFAULT_CONFIGS)
        # On the CPU first: pyiqa then registers the tensor whose device decides where the images go.
        return pyiqa.create_metric(name, as_loss=True, loss_reduction="none", device=torch.device("cpu"), **options)


def _parse_range(text: str | None) -> tuple[Range | None, bool]:
    """The library's "0, 1" or "~0, ~100" -> ((0, 100), whether these are bounds)."""
    try:
        low, high = (float(end.replace("~", "")) for end in (text or "").split(","))
    except ValueError:
        return None, False
    return (low, high), "~" not in (text or "")

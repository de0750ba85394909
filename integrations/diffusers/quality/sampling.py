"""A sampler at one setting of the dial, for every monitor, comparison and table that takes `sample(n, generator)`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qa_hooks._base.isolation import isolated
from qa_hooks._base.reach import modules_of
from qa_hooks.images import as_tensor
from qa_hooks.sources.samples import Sample, check_sample


class QualitySample:
    """`sample(n, generator)` inside `adapter.quality(q)`; made by `adapter.at(q, sample)`."""

    def __init__(self, adapter: Any, q: Any, sample: Sample, options: dict[str, Any]) -> None:
        check_sample(sample)
        adapter.scores.as_rows(q)  # what cannot be set is told now
        self.adapter, self.q, self.sample, self.options = adapter, q, sample, options
        self.denoiser = adapter.denoiser  # so that those who protect the networks behind a sampler find it

    def __call__(self, n: int, generator: torch.Generator) -> Tensor:
        with isolated(*modules_of(self.sample)), self.adapter.quality(self.q, **self.options):
            return as_tensor(self.sample(n, generator))

"""A tensor is its numbers: no result depends on how they lie in memory, nor on the number of threads."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from contract.all_rows import ROWS
from contract.layouts import LAYOUTS, value_and_gradient

pytestmark = pytest.mark.filterwarnings("ignore")
THREADS = (1, 2, 8)


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def outcome(threads: int, *arguments) -> list[Tensor] | str:
    """What comes out with so many threads; a refusal counts as an answer."""
    torch.set_num_threads(threads)
    try:
        return value_and_gradient(*arguments)
    except (ValueError, TypeError) as error:
        return type(error).__name__


@pytest.mark.parametrize("name", ROWS)
def test_every_layout_gives_the_numbers_of_the_contiguous_tensor(name):
    row, wrong, compared = ROWS[name], [], 0
    for turn, (n, layout) in enumerate(itertools.product(row.batches, LAYOUTS)):
        laid_out = [layout(x) for x in row.inputs(n)]
        plain = tuple(x.clone(memory_format=torch.contiguous_format) for x in laid_out)
        if all(a.stride() == b.stride() for a, b in zip(laid_out, plain, strict=True)) and layout is not LAYOUTS[0]:
            continue  # these tensors have no such layout
        threads = THREADS[turn % len(THREADS)]
        expected = outcome(1, row, plain, Tensor.contiguous)
        found = outcome(threads, row, plain, layout)
        if isinstance(found, str) or isinstance(expected, str):
            assert found == expected, (layout.__name__, n, threads)
            continue
        compared += 1
        for what, a, b in zip(("value", *row.gradient), found, expected, strict=True):
            scale = float(b.abs().nan_to_num().max()) if b.numel() else 0.0
            if not torch.allclose(a, b, rtol=0, atol=row.rtol * scale + 1e-12, equal_nan=True):
                off = float((a - b).abs().max()) / scale
                wrong.append(f"{layout.__name__}, batch of {n}, {threads} threads, {what}: off by {off:.2g}")
    assert compared
    assert not wrong

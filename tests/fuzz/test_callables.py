"""Every callable of the contract table on shapes, strides, types, ranges and NaN that nobody chose.

What holds: a finite result, or an error that says why; inputs and global state stay as they were.
"""

from __future__ import annotations

import random
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, note
from hypothesis import strategies as st
from torch import Tensor

from contract.all_rows import ROWS
from contract.layouts import LAYOUTS, cut_out, every_second, numbers, reversed_axes
from contract.row import Row
from fuzz.effort import effort

NAMES = [name for name in ROWS if not name.startswith(("piq:", "torchmetrics:")) and not name.endswith(" fit")]
CRITICS = ("penalties.", "functional.gradient_penalty")
# A critic, a network or a model decides the shapes: only the numbers vary.
FIXED_SHAPES = ("functional.gradient_penalty", "penalties.", "functional.niqe_features of blocks", "scorers.Natural")
# Covariances and their factors: numbers of any kind would be none.
STRUCTURED = {
    "functional.naturalness_distance": (1, 2),
    "functional.frechet_distance": (1, 3),
    "functional.mixture_log_density": (1, 3),
}
ORDERS = (reversed_axes, cut_out, every_second)
ANY_SOURCE = ("weighting.pick", "weighting.select", "penalties.fit")
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
VALUES = {
    "as they are": lambda x: x,
    "constant": lambda x: torch.full_like(x, 0.25),
    "zero": torch.zeros_like,
    "two values": lambda x: (x > x.mean()).to(x),
    "faint": lambda x: 0.5 + 1e-6 * x,
    "tiny": lambda x: 1e-20 * x,
    "large": lambda x: 200 * x,
    "symmetric": lambda x: 2 * x - 1,
    "one spot": lambda x: torch.zeros_like(x).flatten().index_fill(0, torch.tensor(x.numel() // 2), 1.0).view_as(x),
}
INTERVALS = ("functional.bootstrap_interval", "functional.paired_difference")
BAD = {"NaN": torch.nan, "infinity": torch.inf, "minus infinity": -torch.inf}


def global_state() -> tuple[object, ...]:
    return (
        hash(torch.get_rng_state().numpy().tobytes()),
        hash(random.getstate()),
        hash(np.random.get_state()[1].tobytes()),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.is_autocast_enabled("cpu"),
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
    )


@st.composite
def calls(draw: st.DrawFn) -> tuple[str, list[Tensor], bool]:
    """A row, its tensors, and whether all numbers are finite."""
    name = draw(st.sampled_from(NAMES))
    row: Row = ROWS[name]
    inputs = list(row.inputs(draw(st.sampled_from(row.batches))))
    if row.images and not name.startswith(FIXED_SHAPES):
        sides = st.integers(1, 40)
        shape = (len(inputs[0]), draw(st.sampled_from([1, 3, 3, 3, 2, 4])), draw(sides), draw(sides))
        if "NIQE" in name:
            shape = (*shape[:2], shape[2] + 80, shape[3] + 80)
        generator = torch.Generator().manual_seed(draw(st.integers(0, 9)))
        inputs[: row.images] = [torch.rand(shape, generator=generator) for _ in range(row.images)]
    finite, critic = True, name.startswith(CRITICS)
    for place in range(len(inputs)):
        x = inputs[place]
        if not x.is_floating_point():
            continue
        if any(name.startswith(known) and place in places for known, places in STRUCTURED.items()):
            inputs[place] = draw(st.sampled_from([torch.Tensor.contiguous, *ORDERS]))(x)
            continue
        x = VALUES[draw(st.sampled_from(["as they are", "as they are", *VALUES]))](x)
        # A critic in float32 takes no images in float64, with or without us.
        x = x.to(draw(st.sampled_from([torch.float32, *(d for d in DTYPES if d.itemsize <= (4 if critic else 8))])))
        if draw(st.integers(0, 9)) == 0 and x.numel():
            x = x.clone(memory_format=torch.contiguous_format)
            x.view(-1)[draw(st.integers(0, x.numel() - 1))] = BAD[draw(st.sampled_from(sorted(BAD)))]
            finite = False
        inputs[place] = draw(st.sampled_from([torch.Tensor.contiguous, *LAYOUTS]))(x)
        finite = finite and bool(torch.isfinite(inputs[place]).all())
    return name, inputs, finite


@pytest.fixture(scope="module")
def _ready() -> None:
    """Fit the models of the table once: what is imported for that is not what is tested."""
    for name in NAMES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ROWS[name].call(*ROWS[name].inputs(ROWS[name].batches[-1]))


@pytest.mark.usefixtures("_ready")
@effort(300, 150_000)
@given(calls())
def test_finite_or_a_clear_error(call):
    name, inputs, finite = call
    row = ROWS[name]
    note(f"{name} {[(tuple(x.shape), x.stride(), x.dtype) for x in inputs]}")
    row_inputs = [x.detach() for x in inputs]
    kept = [x.clone() for x in inputs]
    for place in row.gradient:
        row_inputs[place].requires_grad_()
    critic = name.startswith(CRITICS)
    before = global_state()
    try:
        with warnings.catch_warnings(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=critic):
            warnings.simplefilter("ignore")
            result = numbers(row.call(*row_inputs))
    except (ValueError, TypeError) as error:
        assert len(str(error)) > 10
        result = None
    assert global_state() == before
    for x, y in zip(inputs, kept, strict=True):
        assert torch.equal(x.nan_to_num(7.0), y.nan_to_num(7.0))
    if result is None or not finite:
        return
    if name in INTERVALS and not result.isfinite().all():  # equal values: nobody knows how sure the value is
        assert result[0].isfinite()
        assert result[1:3].isnan().all()
        return
    assert torch.isfinite(result).all()
    if row.gradient and result.requires_grad:
        gradients = torch.autograd.grad(result.sum(), [row_inputs[k] for k in row.gradient], allow_unused=True)
        for gradient in gradients:
            assert gradient is None or not gradient.isnan().any()


@pytest.mark.parametrize("name", [name for name in NAMES if ROWS[name].images and name != "losses.ScoreLoss balanced"])
def test_no_callable_takes_what_is_no_batch_of_images(name):
    row = ROWS[name]
    inputs = row.inputs(row.batches[-1])
    wrong = {
        "an array": inputs[0].numpy(),
        "one image": inputs[0][0],
        "whole numbers": (255 * inputs[0]).to(torch.int64),
        "an empty batch": inputs[0][:0],
        "a video": inputs[0][:, None],
    }
    for what, images in wrong.items():
        if name.startswith(("scorers.", "pyiqa", *ANY_SOURCE)) and what in ("an array", "one image", "a video"):
            continue  # these take images in any form
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises((ValueError, TypeError)):
                row.call(images, *inputs[1:])

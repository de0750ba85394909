"""Checks that a reward's gradient can reach an adapter through a pipeline; without them it would silently be zero."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qa_hooks._base.checks import warn
from qa_hooks._base.graph import graph_behind
from qa_hooks.integrations.training_checks import check_offloading

QUANTISED = ("4bit", "8bit", "quant", "gguf", "qlinear", "wqlinear", "hqqlinear")
NO_NUMPY = "images as NumPy arrays or PIL have no gradient"


def check_pipeline(pipe: Any, decoder: nn.Module | None, decode: str) -> None:
    """Refuse pipelines whose images cannot have a gradient.

    Args:
        pipe: the pipeline.
        decoder: its VAE, or None.
        decode: as in `grad_last_steps`.
    """
    if getattr(pipe, "safety_checker", None) is not None:
        raise ValueError(
            "the safety checker blackens images and needs them without a gradient: load the pipeline with "
            "safety_checker=None for training"
        )
    if decoder is None and decode != "full":
        raise ValueError(f"{type(pipe).__name__} has no vae, so decode={decode!r} means nothing")
    if decoder is not None and decode != "tiny":
        check_offloading(decoder)
        config = getattr(decoder, "config", None)
        if getattr(decoder, "dtype", None) == torch.float16 and getattr(config, "force_upcast", False):
            raise ValueError(
                "this VAE overflows in float16, so the pipeline casts it up to decode and down again before the "
                'backward pass: use pipe.vae.to(torch.bfloat16), a VAE made for float16, or decode="tiny"'
            )


def check_latents(latents: Any) -> None:
    """Refuse start noise that is far from N(0, 1), to which pipelines apply the scheduler's scale themselves."""
    if not isinstance(latents, Tensor):
        return
    spread = float(latents.detach().float().std(correction=0))
    if not 0.2 < spread < 5:
        raise ValueError(
            f"latents= has a standard deviation of {spread:.3g}: pipelines expect noise of N(0, 1) and multiply it by "
            "scheduler.init_noise_sigma themselves"
        )


def parts(value: Any) -> Iterator[Any]:
    """The items in nested mappings, lists, tuples and sets."""
    if isinstance(value, (dict, list, tuple, set)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from parts(part)
    else:
        yield value


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested lists, tuples and mappings."""
    return (part for part in parts(value) if isinstance(part, Tensor))


def carries_gradient(value: Any) -> bool:
    """True when some tensor in it requires a gradient."""
    return any(tensor.requires_grad for tensor in tensors(value))


def cut_in_denoiser(denoiser: nn.Module, output: Any) -> str | None:
    """Why a denoiser with trained parameters gave an output without their gradient; None when all is well."""
    name, trained = type(denoiser).__name__, {n: p for n, p in denoiser.named_parameters() if p.requires_grad}
    kinds = sorted({type(module).__name__ for module in denoiser.modules()})
    quantised = [kind for kind in kinds if any(word in kind.lower() for word in QUANTISED)]
    if not trained:
        return None
    if carries_gradient(output):
        if quantised:
            _, reached = graph_behind(tensors(output))
            if lost := [n for n, p in trained.items() if id(p) not in reached]:
                return f"{quantised[0]} cuts the graph: no gradient reaches {lost[0]!r}; load the base unquantised"
        return None
    if quantised:
        return f"the output of {name} has no gradient: {quantised[0]} cuts the graph; load the base unquantised"
    return f"the output of {name} has no gradient: something in it detaches or runs under no_grad"


def no_gradient_at_all(called: Mapping[str, nn.Module], trained: Iterable[str], k: int) -> str:
    """Why none of the denoisers that the last k steps called has given a gradient.

    Args:
        called: these denoisers, by the pipeline's names.
        trained: the names of all that is trained in the pipeline.
        k: how many steps.
    """
    names = list(trained)
    classes = " and ".join(sorted({type(part).__name__ for part in called.values()}))
    if not names:
        return (
            f"no parameter of {classes} requires a gradient: add the adapter before sampling "
            "(qa_hooks.integrations.peft.inject_lora)"
        )
    return (
        f"the last k={k} steps call {', '.join(called) or 'no denoiser'} ({classes}), where nothing is trained, and do "
        f"not depend on what is: {_listed(names)}; take a larger k, or train what these steps use"
    )


def warn_without_gradient(trained: Iterable[tuple[str, Tensor]], images: Any, k: int) -> None:
    """Warn, by name, of what requires a gradient and gets none from the images.

    Args:
        trained: names and tensors.
        images: with their graph.
        k: how many steps are in it.
    """
    wanted = list(trained)
    nodes, reached = graph_behind(tensors(images))
    lost = [name for name, tensor in wanted if id(tensor) not in reached and tensor.grad_fn not in nodes]
    if lost:
        warn(
            f"{len(lost)} of {len(wanted)} tensors that require a gradient get none from the last k={k} steps: "
            f"{_listed(lost)}. They stay as they are: requires_grad_(False) if nobody trains them; a larger k if they "
            "work in earlier steps; .train() for a network beside the denoiser that is trained as a whole"
        )


def _listed(names: list[str]) -> str:
    """The parts that the names belong to, with one name of each."""
    first: dict[str, list[str]] = {}
    for name in names:
        first.setdefault(name.partition(".")[0], []).append(name)
    return ", ".join(
        f"{len(own)} in {part}, such as {own[0]!r}" if own[0] != part else repr(part) for part, own in first.items()
    )

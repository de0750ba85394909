"""What keeps a reward's gradient from reaching an adapter through a pipeline, each found before it is a silent zero."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from qa_hooks.integrations.training_checks import check_offloading

QUANTISED = ("4bit", "8bit", "quant", "gguf", "qlinear", "wqlinear", "hqqlinear")
NO_NUMPY = "images as NumPy arrays or PIL have no gradient"


def same_weights(module: nn.Module, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of one call, for checkpointing; run again with weights that have changed, it raises.

    Autograd itself sees only changes of what it holds, and a checkpoint holds no weights.
    """
    trained = [(p, p._version) for p in module.parameters() if p.requires_grad]

    def run(*args: Any, **kwargs: Any) -> Any:
        if any(p._version != version for p, version in trained):
            raise RuntimeError(
                f"weights of {type(module).__name__} have changed between sampling and backward, so the gradient would "
                "be that of neither: call backward before optimizer.step()"
            )
        return function(*args, **kwargs)

    return run


def check_pipeline(pipe: Any, decode: str) -> None:
    """Refuse pipelines whose images cannot have a gradient."""
    try:
        source = inspect.getsource(inspect.unwrap(type(pipe).__call__))
    except (OSError, TypeError):
        source = ""
    if ".numpy()" in source and "image_processor" not in source:
        raise TypeError(
            f"{type(pipe).__name__} always turns its images into NumPy arrays, without a gradient: sample with "
            "qa_hooks.integrations.diffusers.reward_sample(pipe.unet, pipe.scheduler, ...)"
        )
    if getattr(pipe, "safety_checker", None) is not None:
        raise ValueError(
            "the safety checker blackens images and needs them without a gradient: load the pipeline with "
            "safety_checker=None for training"
        )
    vae = getattr(pipe, "vae", None)
    if isinstance(vae, nn.Module) and decode != "tiny":
        check_offloading(vae)
        if vae.dtype == torch.float16 and getattr(vae.config, "force_upcast", False):
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


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested lists, tuples and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors(part)


def carries_gradient(value: Any) -> bool:
    """True when some tensor in it requires a gradient."""
    return any(tensor.requires_grad for tensor in tensors(value))


def missing_gradient(denoiser: nn.Module, output: Any) -> str | None:
    """Why the denoiser's output lacks a gradient, wholly or (quantised layers) for a part; None when it has one."""
    name, trained = type(denoiser).__name__, [p for p in denoiser.parameters() if p.requires_grad]
    kinds = sorted({type(module).__name__ for module in denoiser.modules()})
    quantised = [kind for kind in kinds if any(word in kind.lower() for word in QUANTISED)]
    if carries_gradient(output):
        if quantised and trained:
            reached = leaves(output)
            if lost := [n for n, p in denoiser.named_parameters() if p.requires_grad and id(p) not in reached]:
                return f"{quantised[0]} cuts the graph: no gradient reaches {lost[0]!r}; load the base unquantised"
        return None
    if quantised:
        return f"the output of {name} has no gradient: {quantised[0]} cuts the graph; load the base unquantised"
    if not trained:
        return (
            f"no parameter of {name} requires a gradient: add the adapter before sampling "
            "(qa_hooks.integrations.peft.inject_lora)"
        )
    return f"the output of {name} has no gradient: something in it detaches or runs under no_grad"


def leaves(output: Any) -> set[int]:
    """The ids of all leaves of the graph."""
    nodes = [tensor.grad_fn for tensor in tensors(output) if tensor.grad_fn is not None]
    seen, found = set(nodes), set()
    while nodes:
        node = nodes.pop()
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        for parent, _ in node.next_functions:
            if parent is not None and parent not in seen:
                seen.add(parent)
                nodes.append(parent)
    return found

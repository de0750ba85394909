"""Ways of training under which a gradient would be wrong or missing, or weights are in parts: refused by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from qa_hooks._base.sharding import sharded_kind

GATHER = (
    "on all ranks state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)) of "
    "torch.distributed.checkpoint.state_dict, on one of them load it into an unsharded copy with the same adapter"
)


def check_accelerator(accelerator: Any) -> None:
    """`TypeError` unless it is one of Accelerate."""
    if not hasattr(accelerator, "sync_gradients"):
        raise TypeError(f"accelerator must be an accelerate.Accelerator, got {type(accelerator).__name__}")


def check_plain_training(accelerator: Any) -> None:
    """Refuse training that shards the weights (FSDP, DeepSpeed); `accelerator` may be None."""
    if accelerator is None:
        return
    check_accelerator(accelerator)
    kind = str(getattr(accelerator.distributed_type, "value", accelerator.distributed_type))
    if kind in ("FSDP", "DEEPSPEED", "MEGATRON_LM", "TP"):
        raise ValueError(f"{kind} shards weights and gradients, which is not supported here: use DDP (or one process)")


def inside_ddp(module: nn.Module) -> nn.Module:
    """The network in a DDP or DataParallel wrapper, which several calls before one backward pass confuse."""
    return module.module if isinstance(module, (DistributedDataParallel, DataParallel)) else module


def check_sharded(model: nn.Module) -> None:
    """Refuse FSDP and DeepSpeed by name."""
    if kind := sharded_kind(model, engines=True):
        raise ValueError(f"{kind} shards the weights, which is not supported here: use DDP (or one process)")


def check_whole(model: nn.Module, what: str, instead: str) -> None:
    """Refuse to read or change the weights of a network that `fully_shard`, FSDP or DeepSpeed's ZeRO-3 has cut up.

    Raises:
        ValueError: `what` cannot be done, and what to do `instead`.
    """
    if kind := sharded_kind(model):
        raise ValueError(f"{what} needs whole weights, and this network's are sharded ({kind}): {instead}")


def check_model(model: nn.Module) -> None:
    """Refuse sharded, offloaded and float16-trained networks."""
    check_sharded(model)
    check_offloading(model)
    halves = [name for name, p in model.named_parameters() if p.requires_grad and p.dtype == torch.float16]
    if halves:
        raise ValueError(
            f"{len(halves)} trainable parameters are float16, such as {halves[0]!r}: a GradScaler refuses them "
            '("Attempting to unscale FP16 gradients") and small steps are lost. Freeze the base with '
            "requires_grad_(False) and keep the adapter in float32"
        )


def check_offloading(model: nn.Module) -> None:
    """Refuse weights that are elsewhere when the backward pass comes."""
    for name, module in model.named_modules():
        hook = getattr(module, "_hf_hook", None)
        group = getattr(getattr(module, "_diffusers_hook", None), "hooks", {})
        if (hook is not None and getattr(hook, "offload", True)) or "group_offloading" in group:
            raise ValueError(
                f"{type(model).__name__} is offloaded ({name or 'the whole of it'}): its weights would be gone when "
                "the backward pass needs them; leave out enable_model_cpu_offload and the like"
            )

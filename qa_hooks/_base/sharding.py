"""Networks whose weights lie in parts on several processes (`fully_shard`, FSDP, DeepSpeed's ZeRO-3), by name."""

from __future__ import annotations

from torch import nn

SHARDED = ("FullyShardedDataParallel", "FSDPModule", "DTensor")
ENGINE = "DeepSpeedEngine"


def sharded_kind(model: nn.Module, *, engines: bool = False) -> str | None:
    """What has cut up the weights of a network; None where they are whole.

    Args:
        model: the network.
        engines: also name DeepSpeed's engine, which may hold whole weights and yet has a backward pass of its own.

    Example:
        >>> sharded_kind(nn.Linear(2, 2)) is None
        True
    """
    parts = (*model.modules(), *model.parameters())
    kinds = {kind.__name__ for part in parts for kind in type(part).__mro__}
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        return "ZeRO-3"
    wanted = (*SHARDED, ENGINE) if engines else SHARDED
    return next((kind for kind in wanted if kind in kinds), None)

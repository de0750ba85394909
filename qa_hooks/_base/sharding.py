"""Networks whose weights lie in parts on several processes (`fully_shard`, FSDP, DeepSpeed's ZeRO-3)."""

from __future__ import annotations

from torch import nn

SHARDED = ("FullyShardedDataParallel", "FSDPModule", "DTensor")


def sharded_kind(model: nn.Module) -> str | None:
    """What has cut up the weights of a network, by name; None where they are whole.

    Example:
        >>> sharded_kind(nn.Linear(2, 2)) is None
        True
    """
    parts = (*model.modules(), *model.parameters())
    kinds = {kind.__name__ for part in parts for kind in type(part).__mro__}
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        return "ZeRO-3"
    return next((kind for kind in SHARDED if kind in kinds), None)

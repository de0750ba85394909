"""Fingerprints: short hexadecimal digests that tell one network, scorer or set of images from another."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor


def fingerprint(*parts: bytes | Tensor | str) -> str:
    """16 hexadecimal digits of bytes, texts and tensors (with their shape and type), in their order.

    Example:
        >>> fingerprint("a", torch.zeros(2)) == fingerprint("a", torch.zeros(2)) != fingerprint("a", torch.zeros(2, 1))
        True
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(
            part.encode() if isinstance(part, str) else part if isinstance(part, bytes) else tensor_bytes(part)
        )
    return digest.hexdigest()


def tensor_bytes(tensor: Tensor) -> bytes:
    """Shape, type and content of a tensor of any type."""
    plain = tensor.detach().cpu().contiguous()
    header = f"{tuple(plain.shape)}{plain.dtype}".encode()
    if not plain.numel():
        return header
    array: np.ndarray[Any, Any] = plain.reshape(-1).view(torch.uint8).numpy()
    return header + array.tobytes()

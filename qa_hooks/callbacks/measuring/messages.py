"""What the training process and the one that measures tell each other: JSON and tensors; nothing is pickled.

A message is two lengths of 8 bytes, the JSON, and the tensors as safetensors.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import IO, Any

from torch import Tensor

Facts = dict[str, Any]
Tensors = dict[str, Tensor]

LENGTHS = struct.Struct("<QQ")


def send(stream: IO[bytes], facts: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> None:
    """Write one message; `OSError` where nobody reads."""
    from safetensors.torch import save

    text = json.dumps(facts).encode()
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in (tensors or {}).items()}
    data = save(plain) if plain else b""
    stream.write(LENGTHS.pack(len(text), len(data)))
    stream.write(text)
    stream.write(data)
    stream.flush()


def receive(stream: IO[bytes]) -> tuple[Facts, Tensors]:
    """Read one message.

    Raises:
        EOFError: the other process is gone.

    Example:
        >>> import io
        >>> stream = io.BytesIO()
        >>> send(stream, {"do": "measure"}, {"rows": Tensor([1.0])})
        >>> _ = stream.seek(0)
        >>> receive(stream)
        ({'do': 'measure'}, {'rows': tensor([1.])})
    """
    from safetensors.torch import load

    text_length, data_length = LENGTHS.unpack(_exactly(stream, LENGTHS.size))
    facts: Facts = json.loads(_exactly(stream, text_length))
    data = _exactly(stream, data_length)
    return facts, load(data) if data else {}


def _exactly(stream: IO[bytes], count: int) -> bytes:
    parts = []
    while count:
        part = stream.read(count)
        if not part:
            raise EOFError("the other process is gone")
        parts.append(part)
        count -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)

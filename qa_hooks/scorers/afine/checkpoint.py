"""The file of the published A-FINE: where it is found, what must be in it, and the networks made of it.

`afine.pth` is a dictionary of state dicts under the keys `finetuned_clip` (all of CLIP; its text side is left out),
`natural`, `fidelity`, `fidelity_scale`, `natural_scale` and `adapter`. It is read with `weights_only=True`. The
scorer's own safetensors file has the same tensors under `PART.NAME`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qa_hooks.scorers.afine.clip import ClipVision
from qa_hooks.scorers.afine.heads import FidelityHead, Heads, NaturalnessHead
from qa_hooks.scorers.catalogue import AFINE_FILES

BACKBONE, VISION = "finetuned_clip", "visual."
PARTS = ("natural", "fidelity", "fidelity_scale", "natural_scale", "adapter")
State = dict[str, dict[str, Tensor]]


def find_weights() -> Path:
    """The file in torch.hub's folder of checkpoints.

    Raises:
        ValueError: there is none; the message says where to get it and how to name it.
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    for name in AFINE_FILES:
        if (folder / name).is_file():
            return folder / name
    raise ValueError(
        "A-FINE needs its checkpoint: get afine.pth (the link is in the README of github.com/ChrisDud0257/AFINE) and "
        f'put it into {folder}, or name it: create_scorer({{"type": "afine", "weights": "PATH/afine.pth"}})'
    )


def parts_of(content: Any) -> State:
    """The state dict of each part, in float32 on the CPU.

    Args:
        content: of afine.pth, or the flat tensors of our own file.

    Raises:
        ValueError, TypeError: parts that are missing, or hold anything but finite numbers.
    """
    if not isinstance(content, Mapping):
        raise TypeError(f"it holds a {type(content).__name__} and no dictionary")
    if content and all(isinstance(value, Tensor) for value in content.values()):
        content = _nested(content)
    missing = [part for part in (BACKBONE, *PARTS) if not isinstance(content.get(part), Mapping)]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}; it has {', '.join(map(str, list(content)[:8])) or 'nothing'}")
    found: State = {}
    for part in (BACKBONE, *PARTS):
        state = {str(name).removeprefix("module."): value for name, value in content[part].items()}
        if part == BACKBONE:
            state = {name.removeprefix(VISION): value for name, value in state.items() if name.startswith(VISION)}
            state = {name: value for name, value in state.items() if not name.startswith(("ln_post.", "proj"))}
        else:
            state = {name: value for name, value in state.items() if name not in ("mean", "std")}  # CLIP's, known
        for name, value in state.items():
            if not isinstance(value, Tensor) or not value.is_floating_point() or not bool(value.isfinite().all()):
                raise ValueError(f"{part}.{name} is no tensor of finite numbers")
        found[part] = {name: value.detach().cpu().float().clone() for name, value in state.items()}
    return found


def _nested(tensors: Mapping[str, Tensor]) -> State:
    found: State = {}
    for name, value in tensors.items():
        part, _, rest = name.partition(".")
        found.setdefault(part, {})[VISION + rest if part == BACKBONE else rest] = value
    return found


def networks_of(state: State) -> tuple[ClipVision, Heads]:
    """Backbone and heads with these weights; their sizes are those of the tensors."""
    clip = ClipVision.like(state[BACKBONE])
    hidden = len(state["natural"]["proj_feat.bias"])
    with torch.device("meta"):
        heads = published_heads(clip.width, clip.depth, hidden)
    clip.load_state_dict(state[BACKBONE], assign=True)
    heads.load_state_dict({f"{part}.{name}": v for part in PARTS for name, v in state[part].items()}, assign=True)
    return clip, heads


def published_heads(width: int, depth: int, hidden: int) -> Heads:
    """The heads on the image itself and on the tokens after each block."""
    widths = (3, *[width] * depth)
    return Heads(NaturalnessHead(widths, hidden=hidden), FidelityHead(widths))


def random_checkpoint(
    *, width: int = 64, depth: int = 2, patch: int = 32, positions: int = 50, hidden: int = 8, seed: int = 0
) -> dict[str, dict[str, Tensor]]:
    """A checkpoint of the published form with random weights, for trying things out.

    Args:
        width, depth, patch, positions: of the vision transformer; the published one has 768, 12, 32 and 50.
        hidden: of the naturalness head; published 128.
        seed: of the weights.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        clip, heads = ClipVision(width, depth, patch, positions), published_heads(width, depth, hidden)

    def drawn(shape: torch.Size, name: str) -> Tensor:
        numbers = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
        if name.startswith("fidelity."):
            return 0.1 + 0.01 * numbers
        if "ln_" in name and name.endswith("weight"):
            return 1 + 0.1 * numbers
        return numbers * (shape[1:].numel() ** -0.5 if len(shape) > 1 else 0.1)

    content = {BACKBONE: {f"{VISION}{name}": drawn(value.shape, name) for name, value in clip.state_dict().items()}}
    scalars = {"fidelity_scale.yita3": 0.5, "fidelity_scale.yita4": 0.15}
    scalars |= {"natural_scale.yita3": 0.0, "natural_scale.yita4": 1.0, "adapter.k": 0.5}
    for name, value in heads.state_dict().items():
        part, _, rest = name.partition(".")
        number = scalars.get(name)
        filled = drawn(value.shape, name) if number is None else torch.tensor(number, dtype=torch.float32, device="cpu")
        content.setdefault(part, {})[rest] = filled
    return content

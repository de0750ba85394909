"""LoRA in the networks of super-resolution and restoration that `spandrel` knows, each as small as it can be built.

    python -m benchmarks sr_architectures [--only SwinIR SPAN] [--out docs/sr_architectures.md]

Each network is built with random weights (nothing is downloaded), gets `inject_lora(rank=2, example=...)`, takes two
steps of Adam on an L1 loss, is merged, and its adapter is saved and loaded into a fresh copy. The table says how many
layers have LoRA; which were left out, and why; and, relative to what the adapter changes, how far the merged network
and the loaded one are from the trained one. "right" is below 1e-3 for both, in train and in eval mode.

It needs `pip install spandrel`.
"""

from __future__ import annotations

import argparse
import collections
import copy
import importlib
import inspect
import pkgutil
import re
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from qa_hooks._base.libraries import import_library
from qa_hooks.integrations.peft import inject_lora, load_lora, merge_lora, save_lora

ROOM = 1e-3
SIDE = 32
HEADS = {"depths": [2], "num_heads": [2], "window_size": 8, "embed_dim": 16, "img_size": 32}
# The arguments of each class that make it small; {} is its own default.
SMALL: dict[str, dict[str, Any]] = {
    "ATD": {"embed_dim": 24, "depths": (2,), "num_heads": (2,), "category_size": 16, "num_tokens": 8, "img_size": 32}
    | {"upscale": 2, "upsampler": "pixelshuffledirect"},
    "UnetUpsampler": {
        "dim": 8,
        "image_size": 64,
        "input_image_size": 16,
        "up_dim_mults": (1, 2),
        "down_dim_mults": (2,),
        "style_network": {"dim_in": 8, "dim_out": 8, "depth": 1},
    },
    "CRAFT": {"depths": [2], "num_heads": [6]},
    "DAT": {"embed_dim": 24, "depth": [2], "num_heads": [2], "split_size": [2, 4], "img_size": 32},
    "DRCT": {"embed_dim": 24, "depths": (2,), "num_heads": (2,), "window_size": 8, "img_size": 32, "gc": 8}
    | {"upscale": 2, "upsampler": "pixelshuffle"},
    "DRUNet": {"in_nc": 3, "out_nc": 3, "nc": [8, 16, 16, 32], "nb": 1},
    "DnCNN": {"in_nc": 3, "out_nc": 3, "nc": 16, "nb": 5},
    "RRDBNet": {"num_filters": 16, "num_blocks": 1},
    "FBCNN": {"nb": 1},
    "FFTformer": {"dim": 16, "num_blocks": [1, 1, 1], "num_refinement_blocks": 1},
    "GFPGANv1Clean": {"out_size": 32, "num_style_feat": 32, "channel_multiplier": 1, "narrow": 0.1, "num_mlp": 2},
    "GRL": {"embed_dim": 24, "depths": [2], "num_heads_window": [2], "num_heads_stripe": [2], "img_size": 32}
    | {"upscale": 2, "upsampler": "pixelshuffledirect"},
    "HAT": {**HEADS, "depths": (2,), "num_heads": (2,), "embed_dim": 32, "upscale": 2, "upsampler": "pixelshuffle"},
    "IPT": {"patch_size": 24, "n_feats": 8, "num_heads": 2, "num_layers": 1},
    "MMRRDBNet_test": {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 16, "num_block": 1, "num_grow_ch": 8}
    | {"num_feats": [8, 8, 8, 8], "num_blocks": [1, 1, 1, 1]},
    "MixDehazeNet": {"embed_dims": [8, 16, 32, 16, 8], "depths": [1, 1, 1, 1, 1]},
    "MoESR": {"n_blocks": 1, "n_block": 1, "dim": 16},
    "LaMa": {"in_nc": 4},
    "MoSR": {"n_block": 2, "dim": 16},
    "NAFNet": {"width": 8, "middle_blk_num": 1, "enc_blk_nums": [1, 1], "dec_blk_nums": [1, 1]},
    "PLKSR": {"dim": 16, "n_blocks": 2},
    "RealPLKSR": {"dim": 16, "n_blocks": 2},
    "RCAN": {"n_resgroups": 1, "n_resblocks": 2, "n_feats": 16, "reduction": 4},
    "RGT": {"embed_dim": 24, "depth": [2], "num_heads": [2], "split_size": [8, 8], "img_size": 32},
    "RestoreFormer": {
        "ch": 32,
        "n_embed": 16,
        "embed_dim": 32,
        "ch_mult": (1, 2),
        "num_res_blocks": 1,
        "resolution": 32,
    },
    "SAFMN": {"dim": 16, "n_blocks": 2},
    "SAFMN_BCIE": {"dim": 16, "n_blocks": 2, "num_layers": 2},
    "SCUNet": {"config": [1, 1, 1, 1, 1, 1, 1], "dim": 64},
    "SPAN": {"num_in_ch": 3, "num_out_ch": 3, "feature_channels": 16},
    "Swin2SR": {**HEADS, "upsampler": "pixelshuffle"},
    "SwinIR": {**HEADS, "upsampler": "pixelshuffle"},
    "Uformer": {"img_size": 128, "embed_dim": 8, "depths": [1] * 9, "num_heads": [1, 1, 2, 2, 2, 2, 2, 1, 1]},
}
SIDES = {
    **{"Uformer": 128, "UnetUpsampler": 16, "IPT": 24},
    **dict.fromkeys(("UpCunet2x_fast", "FFTformer", "KBNet_l", "KBNet_s", "MixDehazeNet", "SCUNet"), 64),
}


class Row(NamedTuple):
    """An architecture and what became of it."""

    name: str
    outcome: str
    layers: str = ""
    left_out: str = ""
    merged: str = ""
    loaded: str = ""


def architectures() -> Iterator[type[nn.Module]]:
    """The classes of networks that the modules of `spandrel.architectures` export."""
    package = import_library("spandrel.architectures")
    for info in pkgutil.iter_modules(package.__path__):
        if info.name.startswith("_"):
            continue
        module = importlib.import_module(f"spandrel.architectures.{info.name}")
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isclass(value) and issubclass(value, nn.Module):
                yield value


def build(kind: type[nn.Module]) -> nn.Module:
    """A small network with the same random weights each time."""
    torch.manual_seed(0)
    network = kind(**SMALL.get(kind.__name__, {}))
    for parameter in network.parameters():  # layers that begin at zero hide what is behind them
        if parameter.ndim < 4 and not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return network


def example(kind: type[nn.Module]) -> tuple[Tensor, ...]:
    """An input of the network."""
    side = SIDES.get(kind.__name__, SIDE)
    batch = 1 if kind.__name__ == "SeemoRe" else 2  # in eval mode it sends a whole batch to one expert
    image = torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(0))
    return (image, (image[:, :1] > 0.5).float()) if kind.__name__ == "LaMa" else (image,)


def first(output: Any) -> Tensor:
    """The image in a network's output."""
    while not isinstance(output, Tensor):
        output = output[0]
    return output


@torch.no_grad()
def outputs(network: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    """The images in train and in eval mode, with the same noise."""
    found = []
    for training in (True, False):
        torch.manual_seed(0)
        found.append(first(copy.deepcopy(network).train(training)(*[x.clone() for x in inputs])).flatten())
    return torch.cat(found)


def examine(kind: type[nn.Module]) -> Row:
    """Two steps, merged, saved and loaded."""
    try:
        network, inputs = build(kind), example(kind)
        outputs(network, inputs)
    except (TypeError, ValueError, RuntimeError, AssertionError, AttributeError, IndexError) as error:
        return Row(kind.__name__, f"not built: {type(error).__name__}: {error}"[:100])
    base = copy.deepcopy(network)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            parameters = inject_lora(network, rank=2, example=inputs)
        except ValueError as error:
            return Row(kind.__name__, f"refused: {error}"[:160])
    left_out = reasons([str(warning.message) for warning in caught])
    optimizer = torch.optim.Adam(parameters, lr=0.01)
    network.train()
    for _ in range(2):
        optimizer.zero_grad()
        (first(network(*[x.clone() for x in inputs])) - 0.3).abs().mean().backward()
        silent = sum(parameter.grad is None for parameter in parameters)
        optimizer.step()
    trained = outputs(network, inputs)
    buffers = {name: buffer for name, buffer in network.named_buffers() if "lora_" not in name}
    for name, buffer in base.named_buffers():
        buffer.copy_(buffers[name])
    effect = float((trained - outputs(base, inputs)).norm())
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save_lora(network, folder)
        load_lora(base, folder)
    merge_lora(network)
    merged, loaded = (float((outputs(n, inputs) - trained).norm()) / max(effect, 1e-12) for n in (network, base))
    good = merged < ROOM and loaded < ROOM and not silent and effect > 0
    outcome = ("right" if good else "WRONG") + (f", {silent} without a gradient" if silent else "")
    return Row(kind.__name__, outcome, str(len(parameters) // 2), left_out, f"{merged:.0e}", f"{loaded:.0e}")


def reasons(messages: list[str]) -> str:
    """How many layers were left out, by reason."""
    found: collections.Counter[str] = collections.Counter()
    for message in messages:
        if match := re.fullmatch(r"LoRA is left out of (.*?): (.*)", message):
            more = re.search(r"and (\d+) more$", match[1])
            found[match[2].replace(", or does not use it: it would get no gradient", "")] += (
                match[1].count(", ") + 1 + (int(more[1]) if more else 0)
            )
    return "; ".join(f"{count}: {reason}" for reason, count in found.items())


def table(rows: list[Row]) -> str:
    """The page of the documentation."""
    right = sum(row.outcome == "right" for row in rows)
    lines = [
        "# LoRA in networks of super-resolution and restoration",
        "",
        "Made by `python -m benchmarks sr_architectures --out docs/sr_architectures.md`, whose first lines say how. "
        f"{len(rows)} classes of spandrel, {right} right. Errors are relative to what the adapter changes.",
        "",
        "| network | outcome | layers with LoRA | left out by the self-test, by name | merged | loaded |",
        "|---|---|---|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks sr_architectures", description=__doc__)
    parser.add_argument("--only", nargs="+", default=[], help="names of classes")
    parser.add_argument("--out", type=Path, help="write the table to this file")
    args = parser.parse_args(arguments)
    try:
        kinds = list(architectures())
    except ImportError as error:
        parser.error(str(error))
    rows = []
    for kind in kinds:
        if not args.only or kind.__name__ in args.only:
            rows.append(examine(kind))
            print(" | ".join(rows[-1]), flush=True)
    if args.out:
        args.out.write_text(table(rows), encoding="utf-8")

"""A small diffusion model of the digits, trained in about two CPU minutes, and what to measure when it is tuned.

Either v-prediction (Salimans and Ho, 2022) on the cosine schedule (Nichol and Dhariwal, 2021), sampled by DDIM in ten
steps with trailing spacing; or flow matching (Lipman et al., 2023), sampled by Euler's method. 276 thousand parameters.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qa_hooks._base.files import check_writable, write_text
from qa_hooks._base.hashing import fingerprint
from qa_hooks._base.progress import counted
from qa_hooks.demo.networks import update_ema

BATCH = 64


def make_digits_pipeline(flow: bool = False) -> Any:
    """A pipeline with an untrained UNet for `(N, 1, 16, 16)`: a `DDIMPipeline`, or one that follows a flow."""
    diffusers: Any = importlib.import_module("diffusers")
    unet = diffusers.UNet2DModel(
        sample_size=16,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(16, 32, 32),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=16,
        add_attention=False,  # in the middle block; there is some at the same 4x4 beside it
    )
    if flow:  # DDPMPipeline is Diffusers' plain loop over any scheduler
        return diffusers.DDPMPipeline(unet, diffusers.FlowMatchEulerDiscreteScheduler())
    options = {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    return diffusers.DDIMPipeline(unet, diffusers.DDIMScheduler(beta_schedule="squaredcos_cap_v2", **options))


def train_digits_pipeline(
    images: Tensor, folder: str | Path, *, steps: int = 1400, seed: int = 0, flow: bool = False
) -> Any:
    """A pipeline with averaged weights, trained on images or, where that was done before, read from the folder.

    Args:
        images: `(N, 1, 16, 16)` in [-1, 1].
        folder: of the pipeline, in Diffusers' format.
        steps: of the training.
        seed: of weights, batches and noise; the global random state stays as it is.
        flow: flow matching instead of v-prediction.
    """
    made_by = {"images": fingerprint(images), "steps": steps, "batch_size": BATCH, "seed": seed}
    made_by |= {"flow": True} if flow else {}
    note = Path(folder) / "made_by.json"
    if note.exists() and note.read_text() == json.dumps(made_by):
        return type(make_digits_pipeline(flow)).from_pretrained(folder)
    check_writable(folder, name="folder")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline, trained = make_digits_pipeline(flow), make_digits_pipeline(flow).unet
        trained.load_state_dict(pipeline.unet.state_dict())
        optimizer = torch.optim.AdamW(trained.parameters(), lr=2e-3)
        warm_up = min(0.3, 50 / steps)
        rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=warm_up, cycle_momentum=False)
        for step in counted(range(steps), "the base model", unit="step"):
            clean = images[torch.randint(len(images), (BATCH,), device="cpu")]
            noise, t = torch.randn_like(clean), torch.randint(1000, (BATCH,), device="cpu")
            if flow:
                level = ((t + 1) / 1000)[:, None, None, None]
                noisy, target, t = (1 - level) * clean + level * noise, noise - clean, t + 1
            else:
                noisy = pipeline.scheduler.add_noise(clean, noise, t)
                target = pipeline.scheduler.get_velocity(clean, noise, t)
            loss = F.mse_loss(trained(noisy, t).sample, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
            update_ema(pipeline.unet, trained, min(0.995, (step + 1) / (step + 10)))
    pipeline.save_pretrained(folder)
    write_text(note, json.dumps(made_by))
    return type(pipeline).from_pretrained(folder)  # as the next call will have it, to the bit


@contextlib.contextmanager
def distances_to_base(denoiser: nn.Module) -> Iterator[list[float]]:
    """For each call of a denoiser with LoRA the mean squared distance to what its base answers to the same input.

    Over a sampling their mean is, up to weights of the steps, the KL divergence of the two models' paths.
    """
    from qa_hooks.integrations.peft import without_lora

    found: list[float] = []

    def compare(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        with torch.no_grad(), without_lora(module):
            base = module.forward(*args, **kwargs)
            found.append(float((output[0] - base[0]).float().square().mean()))

    handle = denoiser.register_forward_hook(compare, with_kwargs=True)
    try:
        yield found
    finally:
        handle.remove()


class Living(TorchDispatchMode):
    """Bytes of the storages that operations have made and that still live; `peak` is their maximum."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        output = func(*args, **(kwargs or {}))
        for value in tree_leaves(output):
            if isinstance(value, Tensor) and value.untyped_storage()._cdata not in given:  # not changed in place
                self._add(value.untyped_storage())
        return output

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def peak_memory(function: Callable[[], Any], device: torch.device) -> float:
    """MiB that a call takes at its peak over what was there before, as the allocator counts them."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    living = Living()
    with living:
        function()
    return living.peak / 2**20

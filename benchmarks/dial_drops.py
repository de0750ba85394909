"""How often the quality is dropped while an adapter trains, and what that costs: the table in docs/quality_dial.md.

    python -m benchmarks dial_drops [--drops 0 0.01 0.1 0.5] [--seeds 0 1 2] [--steps 400] [--base-steps 900]

A small UNet with cross-attention is trained on stripes that are blurred to different degrees, and frozen. Then one
adapter for each drop and seed is conditioned on their contrast. `edges` is a score that is held out.

Columns: Spearman of each score with q over 9 settings; how far the contrast moves from the lowest to the highest
setting, in deviations of the training images; the Frechet distance to the training images, in features of an untrained
network, and the mean contrast, of images with no score given; the mean contrast at the highest setting, without and
with guidance over quality of 3, and the distance of the latter's images. All are of 200 images. The base is in the
first row.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from scipy.stats import spearmanr
from torch import Tensor

from qa_hooks.data import QualityTable
from qa_hooks.features import create_extractor
from qa_hooks.functional import frechet_distance
from qa_hooks.functional.degradations import blur
from qa_hooks.integrations.diffusers import QualityAdapter, reward_sample
from qa_hooks.integrations.diffusers.denoising import denoising_loss

SCHEDULER = DDIMScheduler(timestep_spacing="trailing", clip_sample=False)
TEXT = torch.ones(1, 1, 8)
IMAGES, SAMPLES, BATCH, LEVELS, GUIDANCE = 2000, 200, 32, 9, 3.0
COLUMNS = (
    ("Spearman", 2),
    ("held-out Spearman", 2),
    ("contrast moves by", 2),
    ("no score: FD", 4),
    ("no score: contrast", 2),
    ("top: contrast", 2),
    ("top, guided: contrast", 2),
    ("top, guided: FD", 4),
)


def stripes(n: int, generator: torch.Generator) -> Tensor:
    """Sine waves of random direction and phase, blurred to different degrees, `(n, 1, 8, 8)` in [-1, 1]."""
    angle, phase = (6.28 * torch.rand(n, 1, 1, generator=generator) for _ in range(2))
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    waves = torch.sin(1.6 * (angle.cos() * x + angle.sin() * y) + phase)[:, None]
    sigma = 0.3 + 1.2 * torch.rand(n, generator=generator)
    return torch.cat([blur(wave[None], float(width)) for wave, width in zip(waves, sigma, strict=True)])


def contrast(images: Tensor) -> Tensor:
    """What is conditioned on: the deviation of the pixels of images in [-1, 1]."""
    return images.flatten(1).std(1)


def edges(images: Tensor) -> Tensor:
    """What is held out: the steepest step between two neighbours."""
    return (images[..., 1:] - images[..., :-1]).abs().flatten(1).amax(1)


def train(
    unet: UNet2DConditionModel,
    parameters: Iterable[Tensor],
    images: Tensor,
    steps: int,
    seed: int,
    before: Callable[[Tensor], Any] = lambda index: None,
) -> None:
    """The denoiser's own training; `before` gets the indices of each batch."""
    optimizer = torch.optim.AdamW(parameters, lr=3e-3)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    generator = torch.Generator().manual_seed(seed)
    condition = {"encoder_hidden_states": TEXT.expand(BATCH, -1, -1)}
    for _ in range(steps):
        index = torch.randint(len(images), (BATCH,), generator=generator)
        before(index)
        loss = denoising_loss(unet, SCHEDULER, images[index], condition=condition, generator=generator).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()


def train_base(images: Tensor, steps: int) -> UNet2DConditionModel:
    """A UNet of these images, frozen."""
    torch.manual_seed(0)
    kinds = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D")}
    kinds |= {"up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")}
    sizes = {"block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 4}
    unet = UNet2DConditionModel(8, 1, 1, cross_attention_dim=8, **sizes, **kinds)
    train(unet, unet.parameters(), images, steps, seed=0)
    return unet.requires_grad_(False).eval()


def table_of(images: Tensor) -> QualityTable:
    """The scores that adapters are conditioned on."""
    return QualityTable([str(i) for i in range(len(images))], contrast(images)[:, None], "contrast", True)


def train_adapter(unet: UNet2DConditionModel, images: Tensor, steps: int, seed: int, drop: float) -> QualityAdapter:
    """An adapter of a frozen UNet whose quality is dropped at this rate, and no text."""
    table = table_of(images)
    adapter = QualityAdapter(unet, table, drop=(drop, 0.0, 0.0), seed=seed)
    q = adapter.of_images(table)
    train(unet, adapter.parameters(), images, steps, seed, lambda index: adapter.condition(q[index]))
    return adapter.eval()


@torch.no_grad()
def sample(unet: UNet2DConditionModel, seed: int, guidance: float | None = None) -> Tensor:
    """Images in [0, 1] of one seed; guidance is over quality alone, since both halves have the same text."""
    noise = torch.randn(SAMPLES, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    text = {"encoder_hidden_states": TEXT.expand(SAMPLES, -1, -1)}
    other = None if guidance is None else text
    return reward_sample(
        unet, SCHEDULER, noise, num_steps=10, condition=text, negative_condition=other, guidance_scale=guidance
    )


def sample_at(adapter: QualityAdapter, q: float | None, seed: int, guidance: float | None = None) -> Tensor:
    """`sample` at a setting of the dial."""
    with adapter.quality(q, guidance=guidance is not None):
        return sample(adapter.denoiser, seed, guidance)


def distance_to(images: Tensor) -> Callable[[Tensor], float]:
    """The Frechet distance of samples in [0, 1] to images in [-1, 1]."""
    extractor = create_extractor({"type": "random", "width": 4})

    def moments(part: Tensor) -> tuple[Tensor, Tensor]:
        features = extractor(part).double()
        return features.mean(0), features.T.cov()

    real = moments((images + 1) / 2)
    return lambda samples: float(frechet_distance(*moments(samples), *real))


def measure(adapter: QualityAdapter, seed: int, distance: Callable[[Tensor], float]) -> list[float]:
    """One row's numbers, in the order of `COLUMNS`."""
    levels = adapter.levels(LEVELS)
    images = [sample_at(adapter, q, seed) for q in levels]
    scores = [[float(judge(2 * part - 1).mean()) for part in images] for judge in (contrast, edges)]
    none, guided = sample_at(adapter, None, seed), sample_at(adapter, levels[-1], seed, GUIDANCE)
    units = [_in_units(adapter, part) for part in (images[0], images[-1], none, guided)]
    orders = [float(spearmanr(levels, values)[0]) for values in scores]
    return [*orders, units[1] - units[0], distance(none), units[2], units[1], units[3], distance(guided)]


def _in_units(adapter: QualityAdapter, samples: Tensor) -> float:
    return float(adapter.scores.standardise(contrast(2 * samples - 1)[:, None]).mean())


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drops", type=float, nargs="+", default=[0.0, 0.01, 0.1, 0.5])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=400, help="of each adapter (default: 400)")
    parser.add_argument("--base-steps", type=int, default=900, help="of the base (default: 900)")
    options = parser.parse_args(arguments)
    images = stripes(IMAGES, torch.Generator().manual_seed(0))
    distance, began = distance_to(images), time.process_time()
    unet = train_base(images, options.base_steps)
    base = [sample(unet, seed) for seed in options.seeds]
    plain = QualityAdapter(unet, table_of(images))
    units = torch.tensor([[distance(part), _in_units(plain, part)] for part in base])
    plain.detach()
    print("| drop | " + " | ".join(name for name, _ in COLUMNS) + " |\n|" + "---|" * (len(COLUMNS) + 1))
    print(f"| base | - | - | - | {_spread(units[:, 0], 4)} | {_spread(units[:, 1], 2)} | - | - | - |", flush=True)
    for drop in options.drops:
        rows = []
        for seed in options.seeds:
            adapter = train_adapter(unet, images, options.steps, seed, drop)
            rows.append(measure(adapter, seed, distance))
            adapter.detach()
        columns = [_spread(part, digits) for part, (_, digits) in zip(torch.tensor(rows).T, COLUMNS, strict=True)]
        print(f"| {drop:g} | " + " | ".join(columns) + " |", flush=True)
    print(f"\n{time.process_time() - began:.0f} s of CPU time")


def _spread(values: Tensor, digits: int) -> str:
    """Mean and deviation over seeds."""
    if len(values) < 2:
        return f"{float(values.mean()):.{digits}f}"
    return f"{float(values.mean()):.{digits}f} ± {float(values.std()):.{digits}f}"

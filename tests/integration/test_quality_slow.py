"""The dial after a real training: scores follow q, the held-out one too, and q = 0 costs nothing."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("diffusers")

from diffusers import DDIMScheduler, UNet2DConditionModel
from scipy.stats import spearmanr

from qa_hooks.data import QualityTable
from qa_hooks.features import create_extractor
from qa_hooks.functional import frechet_distance
from qa_hooks.functional.degradations import blur
from qa_hooks.integrations.diffusers import QualityAdapter, reward_sample
from qa_hooks.integrations.diffusers.denoising import denoising_loss

SCHEDULER = DDIMScheduler(timestep_spacing="trailing", clip_sample=False)
TEXT = torch.ones(1, 1, 8)


def stripes(n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Sine waves of random direction and phase, `(n, 1, 8, 8)` in [-1, 1], and how far each is blurred."""
    angle, phase = (6.28 * torch.rand(n, 1, 1, generator=generator) for _ in range(2))
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    waves = torch.sin(1.6 * (angle.cos() * x + angle.sin() * y) + phase)[:, None]
    sigma = 0.3 + 1.2 * torch.rand(n, generator=generator)
    return torch.cat([blur(w[None], float(s)) for w, s in zip(waves, sigma, strict=True)]), sigma


def contrast(images: torch.Tensor) -> torch.Tensor:
    """What is conditioned on: the deviation of the pixels."""
    return images.flatten(1).std(1)


def edges(images: torch.Tensor) -> torch.Tensor:
    """What is held out: the steepest step between two neighbours."""
    return (images[..., 1:] - images[..., :-1]).abs().flatten(1).amax(1)


def train(unet, parameters, images: torch.Tensor, steps: int, seed: int, before=None) -> None:
    optimizer = torch.optim.AdamW(parameters, lr=3e-3)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        index = torch.randint(len(images), (32,), generator=generator)
        if before is not None:
            before(index)
        condition = {"encoder_hidden_states": TEXT.expand(32, -1, -1)}
        loss = denoising_loss(unet, SCHEDULER, images[index], condition=condition, generator=generator).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()


@torch.no_grad()
def sample(unet, seed: int) -> torch.Tensor:
    noise = torch.randn(200, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    condition = {"encoder_hidden_states": TEXT.expand(200, -1, -1)}
    return reward_sample(unet, SCHEDULER, noise, num_steps=10, condition=condition)


@pytest.mark.slow
def test_scores_follow_the_dial():
    torch.manual_seed(0)
    images, _ = stripes(2000, torch.Generator().manual_seed(0))
    kinds = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D")}
    kinds |= {"up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")}
    sizes = {"block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 4}
    unet = UNet2DConditionModel(8, 1, 1, cross_attention_dim=8, **sizes, **kinds)
    train(unet, unet.parameters(), images, 900, seed=0)
    unet.requires_grad_(False).eval()
    extractor = create_extractor({"type": "random", "width": 4})
    real = extractor((images + 1) / 2)

    def distance(samples: torch.Tensor) -> float:
        return float(frechet_distance(*_moments(extractor(samples)), *_moments(real)))

    base = torch.tensor([distance(sample(unet, seed)) for seed in range(6)])
    table = QualityTable([str(i) for i in range(len(images))], contrast(images)[:, None], "contrast", True)
    found = []
    for seed in range(3):
        adapter = QualityAdapter(unet, table, drop=(0.1, 0.0, 0.0), seed=seed)
        q = adapter.of_images(table)
        train(unet, adapter.parameters(), images, 400, seed, before=lambda index, a=adapter, q=q: a.condition(q[index]))
        levels = adapter.levels(9)
        with_q = []
        for level in levels:
            with adapter.quality(level, guidance=False):
                with_q.append(sample(unet, seed))
        with adapter.quality(0.0, guidance=False):
            middle = distance(sample(unet, seed))
        for judge, least in ((contrast, 0.9), (edges, 0.7)):
            assert spearmanr(levels, [float(judge(2 * x - 1).mean()) for x in with_q])[0] >= least
        found.append(middle)
        adapter.detach()
    assert min(found) <= float(base.mean() + 3 * base.std())  # and not farther from the data than the base is
    assert max(found) <= 1.5 * float(base.max())


def _moments(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return features.double().mean(0), features.double().T.cov()

"""Honest runs of three generators, kept on disk: what each drew at each look, so that guards are replayed.

A trajectory is a file with `looks`, uint8 `(looks, n, C, S, S)`: the same inputs at each look while training goes on,
honestly. Beside them lie `real`, images for the guard, and the files of the scorers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gan_training import Run
from benchmarks.reward_guard import Quality, Setting, Upscaler, crops, fit_quality, photographs, shrink
from qa_hooks._base.files import write_safetensors
from qa_hooks.demo import load_digits_images
from qa_hooks.images import to_uint8
from qa_hooks.scorers import FunctionScorer, GMMScorer, KNNScorer, Scorer

STEPS = 4  # of the training between two looks


class Size(NamedTuple):
    """How much of everything: looks of a run, images of a look, steps before the first look."""

    looks: int
    n: int
    before: int
    quality_steps: int


FULL, TINY = Size(50, 24, 300, 150), Size(6, 12, 6, 4)
Looks = Iterator[Tensor]  # uint8 (n, C, S, S) each


def super_resolution(seed: int, size: Size, data: str | None) -> tuple[Tensor, Looks]:
    """A network for x3 that goes on with L1, on photographs of 72 pixels."""
    images = photographs(data)
    held = max(1, len(images) // 5)
    train, test = crops(images[:-held], 240, 0), crops(images[-held:], size.n, seed)
    torch.manual_seed(seed)
    net, setting = Upscaler(), Setting(train, test, [torch.nn.Identity()], False)
    advance = _without_reward(net, 1e-3, seed, setting)
    for _ in range(size.before):
        advance()
    advance, inputs = _without_reward(net, 2e-4, seed + 1, setting), shrink(test)

    def looks() -> Looks:
        while True:
            with torch.no_grad():
                yield to_uint8(net(inputs).clamp(0, 1))
            for _ in range(STEPS):
                advance()

    return train[:200], looks()


def _without_reward(net: torch.nn.Module, lr: float, seed: int, setting: Setting) -> Callable[[], None]:
    """Steps of L1 alone; the other benchmark asks its reward in each step."""
    optimizer, rng = torch.optim.Adam(net.parameters(), lr), torch.Generator().manual_seed(seed)
    inputs = shrink(setting.train)

    def advance() -> None:
        rows = torch.randint(len(inputs), (8,), generator=rng)
        loss = F.l1_loss(net(inputs[rows]), setting.train[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return advance


def gan(seed: int, size: Size, data: str | None) -> tuple[Tensor, Looks]:
    """The demo's WGAN-GP of digits, which goes on training."""
    real = load_digits_images().train / 2 + 0.5
    run = Run("plain", seed, to_uint8(real), batch=64, warmup=0)
    for _ in range(size.before):
        run.step()

    def looks() -> Looks:
        while True:
            yield run.images(_digits_of(size))
            for _ in range(STEPS):
                run.step()

    return real[:400], looks()


def ddpm(seed: int, size: Size, data: str | None) -> tuple[Tensor, Looks]:
    """A small diffusion model of digits (v-prediction, DDIM of ten steps), which goes on training."""
    import tempfile

    from qa_hooks.demo.diffusion import train_digits_pipeline

    real = load_digits_images().train
    with tempfile.TemporaryDirectory() as folder:
        pipeline = train_digits_pipeline(real, folder, steps=max(2, 2 * size.before), seed=seed)
    pipeline.set_progress_bar_config(disable=True)
    trained, rng = copy.deepcopy(pipeline.unet), torch.Generator().manual_seed(seed + 1)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=2e-4)

    def advance() -> None:
        clean = real[torch.randint(len(real), (64,), generator=rng)]
        noise, t = torch.randn(clean.shape, generator=rng), torch.randint(1000, (64,), generator=rng)
        noisy = pipeline.scheduler.add_noise(clean, noise, t)
        loss = F.mse_loss(trained(noisy, t).sample, pipeline.scheduler.get_velocity(clean, noise, t))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def looks() -> Looks:
        while True:
            pipeline.unet = trained
            start = torch.Generator().manual_seed(0)
            images: Any = pipeline(_digits_of(size), generator=start, num_inference_steps=10, output_type="np").images
            yield to_uint8(torch.from_numpy(images).permute(0, 3, 1, 2))
            for _ in range(STEPS):
                advance()

    return real[:400] / 2 + 0.5, looks()


def _digits_of(size: Size) -> int:
    return 2 * size.n  # they are small


GENERATORS: dict[str, Callable[[int, Size, str | None], tuple[Tensor, Looks]]] = {
    "super-resolution": super_resolution,
    "GAN": gan,
    "DDPM": ddpm,
}


@lru_cache(maxsize=1)
def trajectory(folder: Path, generator: str, seed: int, size: Size, data: str | None) -> dict[str, Tensor]:
    """`looks` and `real` of an honest run: from its file, or made now."""
    path = folder / f"{generator}-seed{seed}.safetensors"
    if not path.exists():
        real, looks = GENERATORS[generator](seed, size, data)
        drawn = torch.stack([next(looks) for _ in range(size.looks)])
        tensors = {"looks": drawn, "real": to_uint8(real)}
        write_safetensors(path, tensors, {"format": "qa_hooks.hacks", "generator": generator})
    return load_file(path)


@lru_cache
def scorers(folder: Path, generator: str, size: Size, data: str | None) -> list[Scorer]:
    """The score that is optimised, and two that are not; fitted once on images that no look shows."""
    if generator != "super-resolution":
        real = load_digits_images().train[:700] / 2 + 0.5
        features = {"type": "random", "width": 16}
        gmm = GMMScorer(features, 7, pca=16).fit(real, progress=False)
        knn = KNNScorer(features).fit(real, progress=False)
        contrast_of = FunctionScorer(lambda x: x.std((1, 2, 3)), name="contrast", higher_is_better=True)
        return [gmm, knn, contrast_of]
    path = folder / "quality.safetensors"
    networks = [Quality(width) for width in (16, 12, 20)]
    if path.exists():
        state = load_file(path)
        for number, network in enumerate(networks):
            network.load_state_dict({key[2:]: value for key, value in state.items() if key.startswith(f"{number}.")})
    else:
        images = photographs(data)
        train = crops(images[: -max(1, len(images) // 5)], 240, 2)
        networks = [fit_quality(train, number, size.quality_steps) for number in range(3)]
        kept = {f"{n}.{key}": value for n, net in enumerate(networks) for key, value in net.state_dict().items()}
        write_safetensors(path, kept, {"format": "qa_hooks.hacks"})
    frozen = [network.requires_grad_(False).eval() for network in networks]
    return [FunctionScorer(net, name=f"q{n}", higher_is_better=True) for n, net in enumerate(frozen)]

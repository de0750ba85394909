"""What our losses, penalties and monitors cost on the device, in turns with their peers (`benchmarks.timing`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

import torch
from torch import nn

from benchmarks import niqe, ssim
from benchmarks.gpu_checks import Finding
from benchmarks.penalties import PEER, dcgan_critic, step
from benchmarks.timing import OURS, Row, compare, device
from qa_hooks import Hooks
from qa_hooks.callbacks import GenerativeMonitor
from qa_hooks.demo import LATENT, make_generator
from qa_hooks.penalties import QAGANPenalty, fit_gradient_model
from qa_hooks.scorers import NIQE

BUDGET = 0.05


def measurements(tiny: bool) -> Iterator[tuple[str, Callable[[], Finding]]]:
    """All of them, by name; each returns {"ok", "found"} and the numbers."""
    shapes = [(2, 3, 64, 64)] if tiny else [(16, 3, 256, 256), (16, 3, 512, 512)]
    for shape in shapes:
        yield f"SSIM forward and backward, {_size(shape)}", partial(similarity, shape)
    yield f"NIQE forward and backward, {_size(shapes[0][:2])}x192x192", partial(naturalness, shapes[0][0])
    for name, (make, shape) in critics(tiny).items():
        for quality in ("none", "ssim", "niqe"):
            yield f"critic step, {name}, {_size(shape)}, {quality}", partial(critic_step, make, shape, quality)
    yield f"GenerativeMonitor within {BUDGET:.0%}", partial(monitored, 4.0 if tiny else 30.0)


def critics(tiny: bool) -> dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]]:
    if tiny:
        return {"DCGAN": (dcgan_critic, (8, 3, 32, 32))}
    return {
        "DCGAN": (dcgan_critic, (64, 3, 32, 32)),
        "size of StyleGAN2's": (large_critic, (8, 3, 256, 256)),
    }


def large_critic() -> nn.Module:
    """Residual blocks from 256x256 to 4x4 with StyleGAN2's widths, 29 million parameters; without its filters."""
    widths = [64, 128, 256, 512, 512, 512, 512]
    layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 1), nn.LeakyReLU(0.2)]
    for width, out in pairwise(widths):
        layers.append(Residual(width, out))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * 16, 512), nn.LeakyReLU(0.2), nn.Linear(512, 1))


class Residual(nn.Module):
    """Two convolutions and a halving, beside a 1x1 convolution."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(width, out, 3, 2, 1), nn.LeakyReLU(0.2)
        )
        self.skip = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(width, out, 1, bias=False))

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = (self.body(maps) + self.skip(maps)) / 2**0.5
        return result


def similarity(shape: tuple[int, ...]) -> Finding:
    x, y = ssim.images(*shape)
    candidates = {name: ssim.forward_backward(score, x, y) for name, score in ssim.implementations(False).items()}
    return shown(compare("", candidates, goal=1.0, inexact=ssim.INEXACT, calls=5))


def naturalness(count: int) -> Finding:
    """Against pyiqa, with the same parameters; both as a loss is used. Its grey is another, its work is the same."""
    scorer = NIQE().to(device())
    images = ssim.images(count, 3, 192, 192)[0]
    candidates = {OURS: niqe.backward(scorer, images)}
    peer = niqe.pyiqa(scorer.model)
    if peer is not None:
        candidates["pyiqa"] = niqe.backward(peer.to(device()), images)
    return shown(compare("", candidates, goal=1.0))


def critic_step(make: Callable[[], nn.Module], shape: tuple[int, ...], quality: str) -> Finding:
    """Forward, backward and Adam, against a WGAN-GP step by hand."""
    critic = make().to(device())
    real, fake = (torch.rand(shape, device=device()) * 2 - 1 for _ in range(2))
    model = None
    if quality == "niqe":
        batches = (torch.rand(shape, device=device()) * 2 - 1 for _ in range(-(-400 // shape[0])))
        model = fit_gradient_model(critic, batches, progress=False)
    penalty = QAGANPenalty(quality, value_range=(-1, 1), model=model)
    candidates = {OURS: step(critic, real, fake, penalty), PEER: step(critic, real, fake, None)}
    return shown(compare("", candidates, goal=1.25, runs=15))


def shown(row: Row) -> Finding:
    """A comparison as words; "ok" is that the goal is met, None without a peer."""
    peers = ", ".join(f"{name} {value:.2f} ms" for name, value in row.peers.items())
    words = f"{row.ours:.2f} ms; {peers or 'no peer installed'}"
    known = row.ratio == row.ratio
    if known:
        words += f"; ratio {row.ratio:.3f} ({row.spread[0]:.3f}-{row.spread[1]:.3f}), goal <= {row.goal:g}"
    return {"ok": row.ratio <= row.goal if known else None, "found": words, "ours": row.ours, "peers": row.peers}


def monitored(seconds: float) -> Finding:
    """The share of a run's time that a monitor of precision and distances takes, when it is due at each 50th step."""
    generator = make_generator(32, 3).to(device())
    optimizer = torch.optim.Adam(generator.parameters(), 1e-4)
    real = (torch.rand(512, 3, 32, 32) * 255).byte()

    def sample(n: int, rng: torch.Generator) -> torch.Tensor:
        images: torch.Tensor = generator(torch.randn(n, LATENT, generator=rng).to(device()))
        return images

    monitor = GenerativeMonitor(
        sample, real, extractor="random", metrics=("fd", "pr"), n=256, every=50, value_range=(-1, 1)
    )
    spent, looks = 0.0, 0
    with Hooks([monitor], budget=BUDGET) as hooks:
        hooks.step()  # the first look measures the real images and tells the cost
        start, steps = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            generator(torch.randn(64, LATENT, device=device())).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
            if (steps + 1) % 50 == 0 and device().type == "cuda":
                torch.cuda.synchronize()  # the training's own work is not the monitor's
            before, last = time.perf_counter(), monitor.last["step"]
            hooks.step()
            if monitor.last["step"] != last:
                looks += 1
                spent += time.perf_counter() - before
        total = time.perf_counter() - start
    words = f"{spent / total:.1%} of {total:.0f} s in {looks} looks, {steps} steps"
    return {"ok": spent / total <= 1.5 * BUDGET if looks else None, "found": words, "share": spent / total}


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))

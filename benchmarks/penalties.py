"""What a QAGAN penalty adds to a WGAN-GP critic step: whole steps (forward, backward, Adam) taken in turns.

    python -m benchmarks penalties [--threads 1 2] [--runs 9] [--quick]

The peer is a hand-written WGAN-GP step with drift; scores of real and fake images are shared with the penalty, as a
loop does.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.timing import OURS, compare, device, header, parser, table
from qa_hooks.demo import make_critic
from qa_hooks.penalties import QAGANPenalty, fit_gradient_model

PEER = "WGAN-GP by hand"
GOALS = {
    "none": {"demo": 1.02, "dcgan": 1.02},
    "ssim": {"demo": 1.06, "dcgan": 1.06},
    "niqe": {"demo": 1.25, "dcgan": 1.15},
}


def dcgan_critic() -> nn.Sequential:
    """The DCGAN critic 48-96-192 for 32x32x3."""
    layers: list[nn.Module] = []
    for width, out in ((3, 48), (48, 96), (96, 192)):
        layers += [nn.Conv2d(width, out, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(192 * 16, 1))


def step(critic: nn.Module, real: Tensor, fake: Tensor, penalty: QAGANPenalty | None) -> Callable[[], None]:
    """One critic step, with our penalty or a hand-written one."""
    optimizer = torch.optim.Adam(critic.parameters(), lr=0.0, betas=(0.0, 0.9))

    def by_hand(real_scores: Tensor) -> Tensor:
        mix = torch.rand(len(real), 1, 1, 1, device=real.device)
        points = (mix * fake + (1 - mix) * real).requires_grad_()
        (gradient,) = torch.autograd.grad(critic(points).sum(), points, create_graph=True)
        return ((gradient.flatten(1).norm(dim=1) - 1) ** 2).mean() + 1e-5 * real_scores.square().mean()

    def run() -> None:
        real_scores, fake_scores = critic(real), critic(fake)
        loss = fake_scores.mean() - real_scores.mean()
        if penalty is None:
            loss = loss + by_hand(real_scores)
        else:
            loss = loss + penalty(critic, real, fake, real_scores=real_scores, fake_scores=fake_scores)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return run


def main(arguments: list[str]) -> None:
    options = parser(__doc__).parse_args(arguments)
    critics = {"demo": (make_critic(16, 1), (64, 1, 16, 16)), "dcgan": (dcgan_critic(), (64, 3, 32, 32))}
    for threads in options.threads:
        torch.set_num_threads(threads)
        print(header([], threads))
        rows = []
        for name, (critic, shape) in critics.items():
            critic = critic.to(device())
            real, fake = (torch.rand(shape, device=device()) * 2 - 1 for _ in range(2))
            batches = (torch.rand(shape, device=device()) * 2 - 1 for _ in range(7))
            model = fit_gradient_model(critic, batches, progress=False)
            for quality in ("none", "ssim", "niqe"):
                penalty = QAGANPenalty(quality, value_range=(-1, 1), model=model if quality == "niqe" else None)
                candidates = {OURS: step(critic, real, fake, penalty), PEER: step(critic, real, fake, None)}
                work = f"critic step, {name} {'x'.join(map(str, shape[1:]))} batch {shape[0]}, {quality}"
                runs = 15 if options.quick else 4 * options.runs
                rows.append(
                    compare(work, candidates, goal=GOALS[quality][name], runs=runs, calls=4 if name == "demo" else 1)
                )
        print(table(rows) + "\n")

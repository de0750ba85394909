"""The network of a ranking scorer, and the loop that trains it to order an image's degradations.

A chain is an image at levels 0 (itself) to 4 of one degradation, s_a the score of level a; margin m = 0.5:

    loss = mean over a < b of max(0, m - (s_a - s_b))
         + 1/2 mean over other pairs of max(0, m - (s - s'))       s' of another chain, whose damage is larger by .06
         + 0.001 s^2

The second term makes scores comparable between images and kinds of degradation: which of two images of different chains
is the better one is said by GMSD, the distance of each to its own level 0. RankIQA has the first term, over all pairs
of one forward pass.

Source: Liu, van de Weijer and Bagdanov, "RankIQA: Learning from Rankings for No-reference Image Quality Assessment",
2017, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qa_hooks.functional.agreement import pairwise_accuracy
from qa_hooks.functional.channel_statistics import channel_statistics
from qa_hooks.functional.degradations import LADDERS, LEVELS, chain
from qa_hooks.functional.gradient_similarity import gmsd
from qa_hooks.images import to_grey
from qa_hooks.scorers.training import minimise

MARGIN = 0.5
ACROSS, GAP, DECAY = 0.5, 0.06, 1e-3
GREY = 0.25  # share of the chains that are made grey
TEST_BATCH = 64
KINDS = tuple(LADDERS)
MEASURES = (*KINDS, "adjacent", "other_image")


class RankNetwork(nn.Module):
    """`(N, 3, H, W)` in [0, 1] -> `(N,)`: four convolutions, mean and deviation of their maps, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(32, 48, 3, stride=2, padding=1),
            nn.LeakyReLU(0.2),
        )
        self.head = nn.Linear(96, 1)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.body((images - 0.5) * 4)
        scores: Tensor = self.head(channel_statistics([maps])).squeeze(1)
        return scores


def rank_loss(scores: Tensor, damage: Tensor) -> Tensor:
    """Scores `(LEVELS, K)` of K chains, level 0 the best, and how damaged each image is -> the loss above, a scalar.

    Example:
        >>> scores = torch.tensor([4.0, 3.0, 2.0, 1.0, 0.0]).expand(2, 5).T
        >>> round(float(rank_loss(scores, damage=-scores)), 6)
        0.006
    """
    better, worse = torch.triu_indices(LEVELS, LEVELS, 1, device=scores.device)
    own = F.relu(MARGIN - (scores[better] - scores[worse])).mean()
    values, damages = scores.flatten(), damage.flatten()
    chains = torch.arange(scores.shape[1], device=scores.device).repeat(LEVELS)
    pairs = (damages[None] - damages[:, None] > GAP) & (chains[None] != chains[:, None])
    missing = F.relu(MARGIN - (values[:, None] - values[None])) * pairs
    across = missing.sum() / pairs.sum().clamp_min(1)
    return own + ACROSS * across + DECAY * scores.square().mean()


def damage_of(chains: Tensor) -> Tensor:
    """`(LEVELS, K, C, h, w)` in [0, 1] -> `(LEVELS, K)`: GMSD of each image to its chain's level 0."""
    clean = chains[:1].expand_as(chains)
    damage: Tensor = gmsd(chains.flatten(0, 1), clean.flatten(0, 1)).unflatten(0, chains.shape[:2])
    return damage


def train_ranking(
    network: nn.Module,
    crops: Tensor,
    *,
    steps: int = 2000,
    batch_size: int = 12,
    lr: float = 2e-3,
    seed: int = 0,
    progress: bool = True,
) -> None:
    """Train a ranking network in place, to be called in a `training_room`. Every chain is made anew.

    Args:
        network: on its device.
        crops: uint8 `(n, 3, h, w)`; kept where they are, batches are moved.
        steps, batch_size, lr: of AdamW, whose learning rate falls linearly to zero; batch_size counts chains.
        seed: of crops, mirroring and noise.
        progress: show a bar when stderr is a terminal.

    Raises:
        ValueError: the loss is not finite any more.
    """
    device = next(network.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)

    def batch_loss(step: int) -> Tensor:
        chains = torch.cat([_random_chains(crops, kind, n, generator) for kind, n in _share(batch_size, step)], 1)
        chains = chains.to(device)
        scores: Tensor = network(chains.flatten(0, 1)).unflatten(0, (LEVELS, -1))
        return rank_loss(scores, damage_of(chains))

    minimise(batch_loss, network, optimizer, schedule, steps=steps, what="ranking scorer", progress=progress)


def _share(batch_size: int, step: int) -> list[tuple[str, int]]:
    """How many chains of each kind in this step; what does not divide evenly goes to each kind in turn."""
    counts = dict.fromkeys(KINDS, 0)
    for number in range(batch_size):
        counts[KINDS[(step * batch_size + number) % len(KINDS)]] += 1
    return [(kind, count) for kind, count in counts.items() if count]


def _random_chains(crops: Tensor, kind: str, count: int, generator: torch.Generator) -> Tensor:
    """`(LEVELS, count, 3, h, w)` in [0, 1]."""
    images = crops[torch.randint(len(crops), (count,), generator=generator, device="cpu")].float() / 255
    mirror, grey = torch.rand(2, generator=generator, dtype=torch.float32, device="cpu").tolist()
    if mirror < 0.5:
        images = images.flip(-1)
    if grey < GREY:  # before it is degraded, so that noise and compression are grey, too
        images = to_grey(images)
    return chain(images, kind, generator=generator).expand(-1, -1, 3, -1, -1)


@torch.no_grad()
def network_scores(network: nn.Module, crops: Tensor) -> Tensor:
    """uint8 `(n, 3, h, w)` -> scores `(n,)` on the CPU."""
    device = next(network.parameters()).device
    return torch.cat([network(part.to(device).float() / 255).cpu() for part in crops.split(TEST_BATCH)])


@torch.no_grad()
def held_out_accuracies(network: nn.Module, crops: Tensor, *, seed: int = 0) -> dict[str, float]:
    """Share of pairs in the right order, by kind; of neighbouring levels; and of different images two levels apart.

    Args:
        network: images in [0, 1] -> scores.
        crops: uint8 `(n, 3, h, w)`; the other image is the next crop.
        seed: of the noise.
    """
    device = next(network.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    scores = {}
    for kind in KINDS:
        levels = [chain(part.float() / 255, kind, generator=generator) for part in crops.split(TEST_BATCH)]
        scores[kind] = torch.cat([torch.stack([network(x.to(device)).cpu() for x in part]) for part in levels], 1)
    return chain_accuracies(scores)


def chain_accuracies(scores: Mapping[str, Tensor]) -> dict[str, float]:
    """Scores `(LEVELS, n)` by kind -> accuracies by kind, and "adjacent" and "other_image" over all; ties count half.

    Example:
        >>> chain_accuracies({"blur": torch.tensor([[2.0, 9.0], [1.0, 8.0], [0.0, 7.0]])})
        {'blur': 1.0, 'adjacent': 1.0, 'other_image': 0.5}
    """

    def accuracy(better: list[Tensor], worse: list[Tensor]) -> float:
        good, bad = torch.cat(better), torch.cat(worse)
        return float(pairwise_accuracy(good, bad, torch.ones_like(good)))

    def pairs(least: int) -> list[tuple[int, int]]:
        return [(a, b) for b in range(len(next(iter(scores.values())))) for a in range(b - least + 1)]

    every = list(scores.values())
    result = {kind: accuracy([s[a] for a, _ in pairs(1)], [s[b] for _, b in pairs(1)]) for kind, s in scores.items()}
    result["adjacent"] = accuracy([s[:-1].flatten() for s in every], [s[1:].flatten() for s in every])
    far = pairs(2)
    result["other_image"] = accuracy(
        [s[a] for s in every for a, _ in far], [s[b].roll(1) for s in every for _, b in far]
    )
    return result

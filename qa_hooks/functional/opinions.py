"""Losses that compare what a scorer expects with what people said.

    p(a better than b) = Phi((s_a - s_b) / sqrt 2)        Thurstone's case V (1927): every opinion has a deviation of 1
    p(a better than b) = 1 / (1 + exp(-(s_a - s_b)))      Bradley and Terry (1952)
    fidelity(p, q)     = 1 - sqrt(p q) - sqrt((1 - p) (1 - q))                                  Tsai et al. 2007
    divergence         = log(s / d) + (d^2 + (m - u)^2) / (2 s^2) - 1/2      of N(m, d^2), people's, from N(u, s^2)

The fidelity loss is bounded, so that one pair that people judged against all others cannot pull without end. It is
computed from logarithms of the probabilities: for scores far apart a probability is 0 or 1 in floating point, and its
root has no gradient.

Source: Zhang, Ma, Zhai, Yang, "Uncertainty-Aware Blind Image Quality Assessment in the Laboratory and Wild", 2021, for
the fidelity loss with Thurstone's model.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

LINKS = ("thurstone", "bradley-terry")


def log_preference(difference: Tensor, *, link: str = "thurstone") -> tuple[Tensor, Tensor]:
    """The logarithms of how probable it is that a is found better, and that b is.

    Args:
        difference: score of a minus score of b.
        link: "thurstone" or "bradley-terry".

    Example:
        >>> better, worse = log_preference(torch.tensor([0.0]))
        >>> round(float(better.exp()), 3), round(float(worse.exp()), 3)
        (0.5, 0.5)
    """
    if link not in LINKS:
        raise ValueError(f"link must be one of {LINKS}, got {link!r}")
    if link == "bradley-terry":
        return logsigmoid(difference), logsigmoid(-difference)
    scaled = difference / math.sqrt(2)
    return torch.special.log_ndtr(scaled), torch.special.log_ndtr(-scaled)


def fidelity_loss(difference: Tensor, target: Tensor, *, link: str = "thurstone") -> Tensor:
    """The fidelity loss of each pair.

    Args:
        difference: `(n,)`, score of a minus score of b.
        target: `(n,)`, the share of people who find a better: 1, 0, or 0.5 for a tie.
        link: "thurstone" or "bradley-terry".

    Returns:
        `(n,)` in [0, 1].

    Example:
        >>> fidelity_loss(torch.tensor([0.0, 9.0]), torch.tensor([0.5, 1.0])).abs().max() < 1e-6
        tensor(True)
    """
    better, worse = log_preference(difference, link=link)
    return 1 - target.sqrt() * (better / 2).exp() - (1 - target).sqrt() * (worse / 2).exp()


def normal_divergence(mean: Tensor, deviation: Tensor, target: Tensor, spread: Tensor) -> Tensor:
    """How far an expected distribution of opinions is from people's, both normal (Kullback and Leibler).

    Args:
        mean, deviation: `(n,)`, expected.
        target, spread: `(n,)`, mean and standard deviation of people's opinions.

    Returns:
        `(n,)`, 0 where the two are the same.

    Example:
        >>> one = torch.ones(1)
        >>> float(normal_divergence(one, one, one, one))
        0.0
    """
    return (deviation / spread).log() + (spread.square() + (target - mean).square()) / (2 * deviation.square()) - 0.5

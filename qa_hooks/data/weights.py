"""How much each sample of a data set counts, by its quality: weights of mean 1, for a loss or for a sampler.

    w_i = floor + (1 - floor) N exp(s_i / tau) / sum_j exp(s_j / tau)        s: normalised scores, higher better

The softmax over the samples of a data set is the one over the candidates of a sample (`selection_probabilities`);
`w_i / N` is a probability that never falls below `floor / N`, so that nothing is never seen.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qa_hooks._base.checks import check_share
from qa_hooks._base.text import plural
from qa_hooks.data.quality_table import QualityTable
from qa_hooks.data.selection import selection_probabilities
from qa_hooks.images import Range

MISSING = ("raise", "never", "average")
NORMALIZE = ("zscore", "range", "rank", "none")


def quality_weights(
    scores: QualityTable | Tensor,
    *,
    temperature: float = 1.0,
    normalize: str = "zscore",
    score_range: Range | None = None,
    higher_is_better: bool | None = None,
    floor: float = 0.1,
    missing: str = "raise",
) -> Tensor:
    """Weights of mean 1 from raw scores.

    Args:
        scores: a `QualityTable` of one candidate, or `(N,)`, one for each sample of the data set (not of the batch: a
            weight says what a sample is worth among all); of a table of several candidates `table.values[:, 0]`.
        temperature: tau, in units of the normalised scores: small favours the best, `inf` makes every weight exactly 1.
        normalize: "zscore": one standard deviation better is worth `exp(1 / tau)`; "range": differences as a share of
            `score_range`; "rank": ranks from 0 (worst) to 1 (best), ties share theirs; "none": scores as they are.
        score_range: worst and best possible score, for "range"; None takes the table's.
        higher_is_better: the direction of the scores; None takes the table's, of a tensor True.
        floor: in [0, 1], the share that is the same for all; 1 makes every weight exactly 1.
        missing: samples whose score is not finite: "raise"; "never" gives them weight 0; "average" gives them 1.

    Returns:
        `(N,)` float32.

    Raises:
        TypeError, ValueError: no `(N,)` tensor, no finite score, an option out of its range, "range" without a range,
            a table of several candidates, or of the other direction.

    Example:
        >>> scores = torch.tensor([20.0, 30.0, 40.0, 30.0])
        >>> quality_weights(scores, floor=0.2).round(decimals=2)
        tensor([0.3200, 0.7000, 2.2700, 0.7000])
    """
    if isinstance(scores, QualityTable):
        higher_is_better, score_range = _direction(scores, higher_is_better), score_range or scores.score_range
        scores = only_candidate(scores)
    if not isinstance(scores, Tensor) or not (scores.is_floating_point() or scores.dtype == torch.int64):
        got = str(scores.dtype) if isinstance(scores, Tensor) else f"{type(scores).__name__}: torch.tensor(scores)"
        raise TypeError(f"scores must be a tensor (N,) of numbers, got {got}")
    if scores.ndim != 1 or not len(scores):
        raise ValueError(f"scores must be (N,), one for each sample, got {tuple(scores.shape)}")
    floor = check_share("floor", floor, zero=True, one=True)
    if normalize not in NORMALIZE:
        raise ValueError(f"normalize must be one of {NORMALIZE}, got {normalize!r}")
    if missing not in MISSING:
        raise ValueError(f"missing must be one of {MISSING}, got {missing!r}")
    known = scores.isfinite()
    if not known.any():
        raise ValueError(f"not one of {plural(len(scores), 'score')} is finite")
    if not known.all() and missing == "raise":
        raise ValueError(
            f"{int((~known).sum())} of {plural(len(scores), 'score')} are not finite, the first at "
            f"{int((~known).nonzero()[0])}: pass missing='never' to leave those samples out, or missing='average' to "
            "treat them as average"
        )
    own = scores[known].detach().double()
    if normalize == "rank":
        own, normalize = _ranks(own), "none"
    share = selection_probabilities(
        own[None],
        temperature=temperature,
        normalize=normalize,
        score_range=score_range,
        higher_is_better=True if higher_is_better is None else higher_is_better,
    )[0].double()
    share = share / share.max()  # equal shares become ones, whose sum is exact
    weights = torch.lerp(share * (len(own) / share.sum()), torch.ones_like(share), floor)
    if missing == "never":
        weights = weights * (len(scores) / len(own))
    all_weights = torch.full(
        scores.shape, 0.0 if missing == "never" else 1.0, dtype=torch.float64, device=scores.device
    )
    all_weights[known] = weights
    return all_weights.float()


def _direction(table: QualityTable, asked: bool | None) -> bool:
    if asked is not None and asked != table.higher_is_better:
        known = "higher" if table.higher_is_better else "lower"
        raise ValueError(f"the table says that {known} values of {table.scorer_name} are better")
    return table.higher_is_better


def only_candidate(table: QualityTable) -> Tensor:
    """`(n,)` raw scores of a table with one candidate for each sample; `ValueError` for any other."""
    if table.candidates != 1:
        raise ValueError(
            f"the table has {table.candidates} candidates per sample, and a sample needs one score: pass "
            "table.values[:, 0], the scores of the originals, with higher_is_better=table.higher_is_better"
        )
    return table.values[:, 0]


def _ranks(scores: Tensor) -> Tensor:
    """`(n,)` in [0, 1]: the share of the others that a score beats, ties counted half."""
    _, position, counts = scores.unique(return_inverse=True, return_counts=True)
    below = counts.cumsum(0) - counts
    ranks: Tensor = (below + (counts - 1) / 2) / max(len(scores) - 1, 1)
    return ranks[position]

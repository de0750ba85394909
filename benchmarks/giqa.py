"""GIQA's scores side by side with scikit-learn, faiss and torch.cdist: time, agreement, memory.

    python -m benchmarks giqa [--threads 1 2] [--runs 9] [--quick]

Every peer computes the same numbers: scikit-learn the log-likelihood, faiss and cdist the nearest neighbours,
torch-fidelity precision and recall (ours has density and coverage besides). Peers that are not installed are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.timing import OURS, Candidate, Row, compare, device, parser, peak_memory, print_times, table
from qa_hooks.functional.mixture import mixture_log_density
from qa_hooks.functional.neighbours import nearest_neighbours, prepare_bank
from qa_hooks.functional.precision_and_recall import precision_recall

PEERS = ["scikit-learn", "faiss-cpu", "torch-fidelity"]


def mixture_work(dim: int, components: int) -> tuple[dict[str, Candidate], Any]:
    """The log-likelihood of a batch of 64, and how far the two lie apart."""
    from sklearn.mixture import GaussianMixture

    random = np.random.default_rng(0)
    rows = random.normal(size=(50 * dim, dim)) @ random.normal(size=(dim, dim)) / dim**0.5
    model = GaussianMixture(components, random_state=0).fit(rows)
    parts = rows[:64], np.log(model.weights_), model.means_, model.precisions_cholesky_
    tensors = [torch.from_numpy(part).float().to(device()) for part in parts]
    work: dict[str, Candidate] = {
        OURS: lambda: mixture_log_density(*tensors),
        "scikit-learn": lambda: model.score_samples(rows[:64]),
    }
    difference = np.abs(mixture_log_density(*tensors).cpu().numpy() / model.score_samples(rows[:64]) - 1).max()
    return work, difference


def neighbour_work(queries: Tensor, bank: Tensor, threads: int) -> dict[str, Candidate]:
    """The nearest row of the bank for each query."""
    prepared = prepare_bank(bank)
    work: dict[str, Candidate] = {
        OURS: lambda: nearest_neighbours(queries, prepared),
        "torch.cdist": lambda: torch.cdist(queries, bank).topk(1, largest=False),
    }
    try:
        import faiss
    except ImportError:
        return work
    faiss.omp_set_num_threads(threads)
    index = faiss.IndexFlatL2(bank.shape[1])
    index.add(bank.cpu().numpy())
    arrays = queries.cpu().numpy()
    found = nearest_neighbours(queries, prepared).indices.cpu().numpy()
    assert (index.search(arrays, 1)[1] == found).all()
    return {**work, "faiss": lambda: index.search(arrays, 1)}


def precision_recall_work(count: int, dim: int) -> tuple[dict[str, Candidate], str]:
    # 32 directions carry the spread, so that neither number is 0 or 1.
    directions = torch.randn(32, dim, device=device())
    real, fake = (scale * torch.randn(count, 32, device=device()) @ directions for scale in (1.0, 0.9))
    ours = precision_recall(real, fake)
    work: dict[str, Candidate] = {OURS: lambda: precision_recall(real, fake)}
    try:
        from torch_fidelity.metric_prc import calculate_precision_recall_full
    except ImportError:
        return work, str(ours)
    work["torch-fidelity"] = lambda: calculate_precision_recall_full(fake, real, 3)
    precision, recall = calculate_precision_recall_full(fake, real, 3)
    return work, f"{ours}, torch-fidelity precision {precision:.4f}, recall {recall:.4f}"


def times(runs: int, quick: bool, notes: dict[str, str]) -> Iterator[Row]:
    work, difference = mixture_work(64, 7)
    notes["GMM"] = f"largest relative difference from scikit-learn (float64) {difference:.1e}"
    yield compare("GMM score of 64, d = 64, full, K = 7", work, goal=0.3, runs=runs, calls=100)
    size = (2000, 512) if quick else (10_000, 2048)
    bank, queries = torch.randn(size, device=device()).abs(), torch.randn(64, size[1], device=device()).abs()
    work = neighbour_work(queries, bank, torch.get_num_threads())
    name = f"k-NN of 64 against {size[0]}x{size[1]}"
    if "faiss" in work:
        yield compare(name, work, goal=1.5, inexact=frozenset({"torch.cdist"}), runs=runs)
    yield compare(name, {key: call for key, call in work.items() if key != "faiss"}, goal=0.35, runs=runs)
    count = 500 if quick else 4000
    work, notes["precision, recall"] = precision_recall_work(count, size[1])
    yield compare(f"precision/recall, n = {count}, d = {size[1]}", work, goal=0.9, runs=runs)


def memory_work(name: str, *, small: bool) -> Candidate | None:
    """Called in a fresh process by `peak_memory`: scores as many images as `name` says, in batches of 64."""
    from qa_hooks.scorers import GMMScorer, KNNScorer

    random = torch.Generator().manual_seed(0)
    real = torch.rand(400, 3, 32, 32, generator=random)
    gmm = GMMScorer({"type": "random", "width": 16}, 3, pca=16).fit(real, progress=False).to(device())
    knn = KNNScorer(gmm.extractor).fit(real, progress=False).to(device())

    def run() -> list[Tensor]:
        scores = []
        with torch.no_grad():
            for _ in range(1 if small else int(name) // 64):
                images = torch.rand(64, 3, 32, 32, generator=random).to(device())
                scores += [gmm(images), knn(images)]
        return scores

    return run


def memory(threads: int) -> Row:
    """How much more four times as many images need."""
    few, many = (peak_memory("benchmarks.giqa", name, threads=threads) or 0.0 for name in ("2000", "8000"))
    ratio = many / few
    return Row("scoring 8000 images", many, {"2000 images": few}, ratio, (ratio, ratio), 1.1)


def main(arguments: list[str]) -> None:
    options = parser(__doc__).parse_args(arguments)
    print_times(times, options, PEERS)
    print("peak memory\n" + table([memory(options.threads[0])], unit="MB"))

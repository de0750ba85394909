"""Evaluation side by side with torch-fidelity, torchmetrics, clean-fid and Ignite: Frechet distance, moments, KID,
precision and recall, and what idle callbacks cost a step.

    python -m benchmarks evaluation [--threads 1 2] [--runs 9] [--quick]

Every peer computes the same numbers on the same features; how far they lie apart is printed below the table. Peers
that are not installed are left out. The goals are for d = 2048; `--quick` only shows that everything runs.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.giqa import precision_recall_work
from benchmarks.timing import OURS, Candidate, Row, compare, device, parser, print_times
from qa_hooks.callbacks import Callback, Hooks
from qa_hooks.features.moments import Moments
from qa_hooks.functional.frechet import frechet_distance, frechet_factor
from qa_hooks.functional.kid import kernel_distance

PEERS = ["torch-fidelity", "torchmetrics", "clean-fid", "pytorch-ignite", "scipy", "numpy"]
FEW = 64  # rows of an update


def features(count: int, dim: int, seed: int, shift: float = 0.0) -> Tensor:
    """Like a network's: rectified, with a decaying spectrum."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(dim, dim, generator=torch.Generator().manual_seed(99)) / dim**0.5
    spectrum = torch.logspace(0, -2, dim)
    return (torch.randn(count, dim, generator=generator) * spectrum @ basis * 2 + 0.3 + shift).relu().to(device())


def moments_of(rows: Tensor) -> tuple[Tensor, Tensor]:
    moments = Moments(rows.shape[1])
    moments.update(rows)
    return moments.mean(), moments.covariance()


def frechet_work(dim: int) -> tuple[dict[str, Candidate], str]:
    """From moments; the reference's factor is kept between measurements, as a monitor does."""
    (mean_a, cov_a), (mean_b, cov_b) = (moments_of(features(2 * dim, dim, seed, seed / 100)) for seed in (1, 2))
    factor = frechet_factor(cov_a)
    work: dict[str, Candidate] = {
        OURS: lambda: frechet_distance(mean_a, cov_a, mean_b, cov_b, factor_a=factor),
        f"{OURS}, first": lambda: frechet_distance(mean_a, cov_a, mean_b, cov_b),
    }
    arrays = [value.cpu().numpy() for value in (mean_a, cov_a, mean_b, cov_b)]
    with contextlib.suppress(ImportError):
        from torch_fidelity.metric_fid import fid_statistics_to_metric

        first, second = ({"mu": mean, "sigma": cov} for mean, cov in (arrays[:2], arrays[2:]))
        work["torch-fidelity"] = lambda: fid_statistics_to_metric(first, second, False)["frechet_inception_distance"]
    with contextlib.suppress(ImportError):
        from torchmetrics.image.fid import _compute_fid

        work["torchmetrics"] = lambda: _compute_fid(mean_a, cov_a, mean_b, cov_b)
    with contextlib.suppress(ImportError):
        from cleanfid import fid

        def clean() -> float:
            with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return float(fid.frechet_distance(*arrays))

        try:
            clean()
            work["clean-fid"] = clean
        except (TypeError, ValueError) as error:  # newer versions of SciPy have another sqrtm
            print(f"clean-fid does not run here: {error}")
    return work, ", ".join(f"{name} {float(call()):.8g}" for name, call in work.items())  # type: ignore[arg-type]


def moments_work(dim: int) -> tuple[dict[str, Candidate], str]:
    """What a batch costs, in turns of 32 batches: our rows wait until there are 512 of them."""
    batches = features(32 * FEW, dim, 1).split(FEW)
    own, total, outer = Moments(dim), torch.zeros(dim).double(), torch.zeros(dim, dim).double()
    total, outer = total.to(device()), outer.to(device())

    def ours() -> None:
        for rows in batches:
            own.update(rows)

    def theirs() -> None:
        """`FrechetInceptionDistance.update` without its network."""
        nonlocal total, outer
        for rows in batches:
            double = rows.double()
            total += double.sum(dim=0)
            outer += double.t().mm(double)

    ours()
    theirs()
    count = 32 * FEW
    covariance = (outer - count * torch.outer(total / count, total / count)) / (count - 1)
    apart = float((own.covariance() - covariance).abs().max() / covariance.abs().max())
    return {OURS: ours, "torchmetrics": theirs}, f"covariances differ by {apart:.1e} of the largest entry"


def kernel_work(count: int, dim: int, subsets: int, size: int) -> tuple[dict[str, Candidate], str]:
    real, fake = features(count, dim, 1), features(count, dim, 2, 0.01)
    work: dict[str, Candidate] = {
        OURS: lambda: kernel_distance(real, fake, subsets=subsets, subset_size=size),
        f"{OURS}, all rows": lambda: kernel_distance(real, fake),
    }
    arrays = real.cpu().numpy(), fake.cpu().numpy()
    with contextlib.suppress(ImportError):
        from torch_fidelity.metric_kid import kid_features_to_metric

        options: dict[str, Any] = {"kid_kernel": "poly", "kid_kernel_poly_degree": 3, "kid_kernel_poly_gamma": None}
        options |= {"kid_kernel_poly_coef0": 1.0, "rng_seed": 0, "verbose": False}
        options |= {"kid_subsets": subsets, "kid_subset_size": size}
        own = real.cpu(), fake.cpu()
        work["torch-fidelity"] = lambda: kid_features_to_metric(*own, **options)["kernel_inception_distance_mean"]
    with contextlib.suppress(ImportError):
        from torchmetrics.image.kid import poly_mmd

        def torchmetrics() -> float:
            """`KernelInceptionDistance.compute` without its network."""
            rows = [[torch.randperm(count)[:size] for _ in range(2)] for _ in range(subsets)]
            return float(torch.stack([poly_mmd(real[a], fake[b]) for a, b in rows]).mean())

        work["torchmetrics"] = torchmetrics
    with contextlib.suppress(ImportError):
        from cleanfid import fid

        work["clean-fid"] = lambda: fid.kernel_distance(*arrays, num_subsets=subsets, max_subset_size=size)
    found = {name: call() for name, call in work.items()}
    values = {name: value[0] if isinstance(value, tuple) else value for name, value in found.items()}
    return work, ", ".join(f"{name} {float(value):.6g}" for name, value in values.items())  # type: ignore[arg-type]


class Idle(Callback):
    """Due once in a million steps."""

    every = 10**6

    def __init__(self, number: int) -> None:
        self.number = number

    @property
    def state_key(self) -> str:
        return f"Idle{self.number}"


def idle_work() -> dict[str, Candidate]:
    """A thousand steps with five callbacks, none of them due."""
    hooks = Hooks([Idle(number) for number in range(5)])
    hooks.step()

    def ours() -> None:
        for _ in range(1000):
            hooks.step()

    work: dict[str, Candidate] = {OURS: ours}
    with contextlib.suppress(ImportError):
        from ignite.engine import Engine, Events

        engine = Engine(lambda engine, batch: None)
        for _ in range(5):
            engine.add_event_handler(Events.ITERATION_COMPLETED(every=10**6), lambda engine: None)
        engine.run([0, 1], max_epochs=1)

        def ignite() -> None:
            for _ in range(1000):
                engine.fire_event(Events.ITERATION_COMPLETED)

        work["Ignite"] = ignite
    return work


def times(runs: int, quick: bool, notes: dict[str, str]) -> Iterator[Row]:
    dim, count = (256, 600) if quick else (2048, 4000)
    ours = frozenset({f"{OURS}, first", f"{OURS}, all rows"})
    work, notes["Frechet distance"] = frechet_work(dim)
    yield compare(f"Frechet distance from moments, d = {dim}", work, goal=0.5, inexact=ours, runs=runs)
    work, notes["moments"] = moments_work(2048)
    yield compare(f"moments, 32 updates of {FEW} x 2048", work, goal=0.4, runs=runs)
    subsets, size = (20, 150) if quick else (20, 1000)
    work, notes["KID"] = kernel_work(count, dim, subsets, size)
    name = f"KID, {subsets} subsets of {size}, n = {count}, d = {dim}"
    yield compare(name, work, goal=1.0, inexact=ours, runs=runs)
    work, notes["precision, recall"] = precision_recall_work(count, dim)
    yield compare(f"precision/recall, n = {count}, d = {dim}", work, goal=0.9, runs=runs)
    yield compare("1000 steps with five idle callbacks", idle_work(), goal=1.0, runs=runs)


def main(arguments: list[str]) -> None:
    print_times(times, parser(__doc__).parse_args(arguments), PEERS)

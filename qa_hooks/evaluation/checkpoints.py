"""Which of two checkpoints is better? Both make images of the same seeds or prompts, and the differences decide.

    result = compare_checkpoints(sample_a, sample_b, [scorer], n=512, real="photos/", extractor="dinov2_vits14")
    print(result)
    result.verdicts                                # {"niqe_bsd100": "B better", "fd_dinov2_vits14": "cannot tell"}

Images of one seed share what the seed decides, so the spread of `b_i - a_i` is smaller than that of two independent
sets, and fewer images settle the matter. If the interval contains zero, the comparison is undecided: use more images,
or keep either model. Each metric is a test of its own: at 95 % confidence about one verdict in twenty is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qa_hooks._base.checks import check_count
from qa_hooks._base.isolation import isolated
from qa_hooks._base.processes import gather_rows, rank, together, world_size
from qa_hooks._base.random import permutation
from qa_hooks._base.reach import modules_of
from qa_hooks.evaluation.comparable import check_comparable, shapes_seen
from qa_hooks.evaluation.quality_diversity import check_finite
from qa_hooks.evaluation.set_metrics import check_metrics
from qa_hooks.evaluation.verdicts import COMPARED, Verdicts
from qa_hooks.features import FeatureExtractor, create_extractor, extract_features
from qa_hooks.images import Range, RangeGuard, as_tensor, to_uint8
from qa_hooks.scorers.scorer import Scorer, check_is_scorer, common_range
from qa_hooks.sources.batches import Source
from qa_hooks.sources.samples import Sample, in_range, numbered_blocks, sample_block

OUTSIDE = 0.25  # the share of pixels beyond which images have another range


class CheckpointComparison(Verdicts):
    """What `compare_checkpoints` found of the sets "A" and "B"; `print` shows it as two tables."""

    @property
    def verdicts(self) -> dict[str, str]:
        """ "B better", "A better", "cannot tell" or "no verdict", by metric."""
        return {name: comparison.verdict for name, comparison in self.comparisons["B"].items()}


def compare_checkpoints(
    sample_a: Sample,
    sample_b: Sample,
    scorers: Scorer | Sequence[Scorer] = (),
    *,
    n: int = 256,
    seed: int = 0,
    batch_size: int = 64,
    inputs: Sequence[Any] | Tensor | None = None,
    reference: Tensor | None = None,
    real: Source | None = None,
    extractor: FeatureExtractor | str | None = None,
    metrics: Sequence[str] = ("fd", "kid"),
    value_range: Range | None = None,
    confidence: float = 0.95,
    groups: int = 10,
    always_judge: bool = False,
    progress: bool = False,
) -> CheckpointComparison:
    """Compare two models, or two states of one, on the same seeds.

    Under several processes the images are shared out, in blocks of `batch_size`, and the numbers do not change. The
    caller's random state and networks stay as they are.

    Args:
        sample_a, sample_b: `sample(n, generator) -> (n, C, H, W)`, which draws its noise from the CPU generator; with
            `inputs`, `sample(inputs[i:j], generator)`.
        scorers: their per-image scores are compared; one `value_range` for all.
        n: images of each model; with `inputs`, their number.
        seed: seed of the noise.
        batch_size: images at a time. It belongs to the spec, for each block has a generator of its own.
        inputs: what both are given: prompts (scorers that need a prompt get them too), or a tensor `(n, ...)`.
        reference: `(n, C, H, W)`, for scorers that compare with one.
        real, extractor: real images (anything that `image_batches` takes) and what `create_extractor` takes; then
            `metrics` are compared too, by a jackknife of their difference. Images are rounded to uint8 for it.
        metrics: some of "fd", "kid", "pr" (precision, recall, density, coverage), "qs" and "ds" (the scores of GIQA,
            with a mixture fitted on the real images). Each row of the table says how many real images it takes:
            "fd" all of them, "kid" all or max(n, 2048), "pr" and "ds" n.
        value_range: what the numbers of images and `real` mean; by default the scorers', or [0, 1].
        confidence: confidence of the intervals.
        groups: number of groups of the jackknife.
        always_judge: give a verdict on `metrics` also in untrained features or on fewer than 50 images, where the
            numbers alone are worth having.
        progress: show a bar for the real images where there is a terminal.

    Raises:
        TypeError: a sample function that is not callable, or a scorer that is not a `Scorer`.
        ValueError: nothing to compare, images of two sizes, more than 25 % of pixels outside the range, scorers with
            several ranges, scores that are not finite.
        RuntimeError: another process failed; the message is its own.

    Example:
        >>> from qa_hooks.scorers import FunctionScorer
        >>> brightness = FunctionScorer(lambda x: x.mean((1, 2, 3)), name="brightness", higher_is_better=True)
        >>> dark = lambda n, generator: torch.rand(n, 3, 8, 8, generator=generator) / 2
        >>> bright = lambda n, generator: dark(n, generator) + 0.01
        >>> compare_checkpoints(dark, bright, brightness, n=64).verdicts
        {'brightness': 'B better'}
    """
    scorers = [scorers] if isinstance(scorers, Scorer) else list(scorers)
    value_range = common_range([check_is_scorer(scorer, "each of scorers") for scorer in scorers], value_range)
    metrics = check_metrics(metrics, COMPARED) if real is not None and extractor is not None else ()
    if (real is None) != (extractor is None):
        raise ValueError("fd and kid need both real= and extractor=")
    if not scorers and not metrics:
        raise ValueError("there is nothing to compare by: give scorers, or real= and extractor=")
    for name, sample in (("sample_a", sample_a), ("sample_b", sample_b)):
        if not callable(sample):
            raise TypeError(f"{name} must be callable as sample(n, generator), got {type(sample).__name__}")
    n = check_count("n" if inputs is None else "len(inputs)", n if inputs is None else len(inputs), least=2)
    _check_needs(scorers, n, inputs, reference)
    network = create_extractor(extractor) if extractor is not None else None
    job = _Job(scorers, network, value_range, n, seed, check_count("batch_size", batch_size), inputs, reference)
    with together(), isolated(*modules_of(sample_a), *modules_of(sample_b)):
        rows = job.run(sample_a, sample_b)
    rows = gather_rows(rows)
    rows = rows[rows[:, 0].argsort()]
    sides = [int(side) for side in rows[0, 1:4]]
    if bool((rows[:, 1:4] != rows[0, 1:4]).any()):
        raise ValueError("the images of one model have several sizes")
    a, b = rows[:, 4:].chunk(2, 1)
    how: dict[str, Any] = {"seed": seed, "confidence": confidence, "always_judge": always_judge}
    found = CheckpointComparison(labels=["A", "B"], paired=True, **how)
    for column, scorer in enumerate(scorers):
        scores = {"A": a[:, column], "B": b[:, column]}
        for label, values in scores.items():
            check_finite(values, f"{scorer.name} of {label}")
        found.add_scores(scorer.name, scores, higher_is_better=scorer.higher_is_better)
    found.spec = {"n": n, "seed": seed, "batch_size": batch_size, "images": "x".join(map(str, sides))}
    found.spec |= {"value_range": value_range, "confidence": confidence}
    if network is not None and real is not None:
        options: dict[str, Any] = {"batch_size": batch_size, "value_range": value_range, "progress": progress}
        with shapes_seen(network) as shapes:
            features = extract_features(network, real, quantised=True, **options).values
        check_comparable(network, shapes[0][:, :3].tolist(), sides)
        features = features[permutation(len(features), seed)]
        own = {"A": a[:, len(scorers) :].float(), "B": b[:, len(scorers) :].float()}
        found.add_sets(network, features, own, metrics, groups=groups)
        found.spec |= {"extractor": network.name, "fingerprint": network.fingerprint[:8], "real": len(features)}
    return found


@dataclass
class _Job:
    """What one process makes and measures: rows (position, C, H, W, scores and features of A, then of B)."""

    scorers: Sequence[Scorer]
    extractor: FeatureExtractor | None
    value_range: Range
    n: int
    seed: int
    batch_size: int
    inputs: Sequence[Any] | Tensor | None
    reference: Tensor | None

    def __post_init__(self) -> None:
        self.guards = {name: RangeGuard(self.value_range) for name in ("sample_a", "sample_b")}

    def run(self, sample_a: Sample, sample_b: Sample) -> Tensor:
        width = 4 + 2 * (len(self.scorers) + (self.extractor.dim if self.extractor is not None else 0))
        rows = [torch.zeros(0, width, dtype=torch.float64, device="cpu")]
        for block, start, stop in numbered_blocks(self.n, self.batch_size, rank=rank(), world_size=world_size()):
            a = self.images("sample_a", sample_a, block, start, stop)
            b = self.images("sample_b", sample_b, block, start, stop)
            if a.shape != b.shape:
                raise ValueError(
                    f"A makes images of {tuple(a.shape[1:])} and B of {tuple(b.shape[1:])}: scores of two sizes cannot "
                    "be compared; bring them to one"
                )
            positions = torch.arange(start, stop, dtype=torch.float64, device="cpu")[:, None]
            shape = torch.tensor([a.shape[1:]], dtype=torch.float64, device="cpu").expand(stop - start, 3)
            rows.append(torch.cat([positions, shape, *(self.measure(part, start, stop) for part in (a, b))], 1))
        return torch.cat(rows)

    def images(self, name: str, sample: Sample, block: int, start: int, stop: int) -> Tensor:
        given: Any = self.inputs[start:stop] if self.inputs is not None else None
        make = sample if given is None else lambda _, generator: sample(given, generator)
        images = sample_block(make, stop - start, self.seed, block)
        if not images.is_floating_point():
            return images
        low, high = self.value_range
        slack = 0.01 * (high - low)
        outside = float(((images < low - slack) | (images > high + slack)).double().mean())
        if outside > OUTSIDE:
            raise ValueError(
                f"{outside:.0%} of the pixels of {name} lie outside value_range=({low:g}, {high:g}), which is no "
                "overshoot but another range: convert them, or declare the range that both models' images have"
            )
        self.guards[name](predictions={f"{name}'s images": images})
        return in_range(images, self.value_range)

    def measure(self, images: Tensor, start: int, stop: int) -> Tensor:
        columns = []
        for scorer in self.scorers:
            given: dict[str, Any] = {}
            if "reference" in scorer.inputs and self.reference is not None:
                given["reference"] = self.reference[start:stop].to(images.device)
            if "prompt" in scorer.inputs and self.inputs is not None:
                given["prompt"] = list(self.inputs[start:stop])
            columns.append(scorer(images, **given).detach().cpu().double()[:, None])
        if self.extractor is not None:
            uint8 = to_uint8(images, self.value_range).to(self.extractor.mean.device)
            columns.append(self.extractor(uint8).detach().cpu().double())
        return torch.cat(columns, 1)


def _check_needs(
    scorers: Sequence[Scorer], n: int, inputs: Sequence[Any] | Tensor | None, reference: Tensor | None
) -> None:
    names = [scorer.name for scorer in scorers]
    if len(set(names)) < len(names):
        raise ValueError(f"two scorers have one name: {', '.join(names)}")
    needing = [scorer.name for scorer in scorers if "reference" in scorer.inputs]
    if needing and (reference is None or len(as_tensor(reference)) != n):
        raise ValueError(f"{', '.join(needing)} needs reference= with {n} images")
    if reference is not None and not needing:
        raise ValueError("reference= was given, but no scorer takes one")
    prompted = [scorer.name for scorer in scorers if "prompt" in scorer.inputs]
    if prompted and (inputs is None or isinstance(inputs, (Tensor, str))):
        raise ValueError(f"{', '.join(prompted)} needs prompts: inputs= as a list of strings")

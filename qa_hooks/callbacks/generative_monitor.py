"""FID and its kin as curves with error bars while a model trains, on one process or many."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qa_hooks._base.checks import check_call, check_count, warn
from qa_hooks._base.files import check_writable
from qa_hooks._base.processes import together
from qa_hooks._base.reach import modules_of
from qa_hooks.callbacks.callback import Context
from qa_hooks.callbacks.measuring.instruments import Block, Found, SetInstrument
from qa_hooks.callbacks.measuring.monitor import MeasuringMonitor
from qa_hooks.evaluation.comparable import check_comparable
from qa_hooks.evaluation.measure import Measurement, real_images_used
from qa_hooks.evaluation.reference import Reference, kept_rows, make_reference
from qa_hooks.evaluation.set_metrics import FEW, FEWEST_FOR_INTERVAL, METRICS, check_needs, few_images, higher_is_better
from qa_hooks.features import FeatureExtractor, create_extractor
from qa_hooks.images import Range, RangeGuard, check_range, to_uint8
from qa_hooks.sources.batches import Source, check_source, count_images, first_images, image_paths, is_shared
from qa_hooks.sources.samples import Sample, SampleSet, check_sample, sample_blocks
from qa_hooks.writers import Meaning, make_tag

LOG = logging.getLogger("qa_hooks")


class GenerativeMonitor(MeasuringMonitor):
    """Distances of generated to real images: Frechet and kernel distance, precision and recall, and others.

    Writes `qa_eval/{metric}_{extractor}_n={n}/value` with `/low` and `/high`, the ends of the 95 % interval. `fid` and
    `kid` are what they are called with the canonical Inception alone. Samples are quantised to 8 bits in memory, like
    the files that these numbers are defined on. Each measurement uses the same noise. On several processes sampling
    and features are shared out, and the numbers do not depend on how many there are.

    The Frechet distance is to all real images; the kernel distance to all of them, or to max(n, 2048) where there are
    more; precision, recall, density, coverage and DS are against n of them (all, where they are fewer). The first line
    in the log, each tag's description and `spec` say these numbers; `qa-hooks compare` and `watch` have the same.

    Args:
        sample: `sample(n, generator) -> (n, C, H, W)`, as in `SampleGrid`.
        real: the real images: anything that `qa_hooks.sources.batches.image_batches` takes, except an iterator. Their
            statistics are computed before the first step.
        extractor: from `create_extractor`, or what it takes. One that is given by name follows the sampler's networks
            to their device.
        metrics: some of "fd", "kid", "pr", "is", "qs", "ds"; see `qa_hooks.evaluation.measure`.
        n: generated images; part of each tag.
        every: steps between two measurements.
        batch_size: images at a time.
        seed: of the noise.
        value_range: what the numbers of the samples and of floating real images mean; samples are clamped to it.
        cache: a folder that keeps the statistics of the real images, under a name with the fingerprints of images and
            extractor: changed images are noticed.
        scorer: a fitted and calibrated `GMMScorer` or `KNNScorer` in the same extractor's features, for "qs" and "ds".
        classifier: images `(N, C, H, W)` float in [0, 1] on the extractor's device -> logits `(N, classes)`, for "is".
        groups: of the jackknife behind the intervals of "fd", "pr" and "is": they cost that many
            evaluations more (features are extracted once).
        where: "process", "cpu", "cuda:1", ...: the samples are drawn in the step, and features and values are computed
            in a process of its own while training goes on; "process" takes the device that the step would. The values
            are written at the step of their samples. At most two sets of samples are in memory; a measurement that is
            due while two are under way is left out. None computes in the step.
        name: in the tags and in the state's key, where several monitors share an extractor, such as one of the weights
            that train and one of their average.

    Attributes:
        last: of the last measurement: "step", and for each value ("fd", "kid", "precision", "recall", "density",
            "coverage", "is", "qs", "ds") its number, and its interval under "{value}_low" and "{value}_high".
        spec: how each value was made, for example `fd_random[random, 3e1f, uint8, ref=ab12, real=1400, n=2048]`;
            printed with the first measurement. A run that is resumed with other real images warns and goes on under the
            new spec; one with other settings is refused.

    Raises:
        TypeError, ValueError: arguments that do not fit.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 192), torch.nn.Unflatten(1, (3, 8, 8)), torch.nn.Sigmoid())
        >>> sample = lambda n, generator: net(torch.randn(n, 8, generator=generator))
        >>> monitor = GenerativeMonitor(sample, torch.rand(300, 3, 8, 8), extractor="random", n=256, every=500)
    """

    def __init__(
        self,
        sample: Sample,
        real: Source,
        *,
        extractor: FeatureExtractor | nn.Module | str | dict[str, Any],
        metrics: Sequence[str] = ("fd", "kid", "pr"),
        n: int = 2048,
        every: int = 1000,
        batch_size: int = 64,
        seed: int = 0,
        value_range: Range = (0.0, 1.0),
        cache: str | Path | None = None,
        scorer: Any = None,
        classifier: Callable[[Tensor], Tensor] | None = None,
        groups: int = 10,
        where: str | None = None,
        name: str | None = None,
    ) -> None:
        check_sample(sample)
        if classifier is not None:
            check_call("classifier", classifier, "classifier(images)", None)
        if isinstance(real, Iterator):
            raise TypeError(
                "real must be images that can be read again (a tensor, folder, list of files, dataset or loader), got "
                f"the iterator {type(real).__name__}"
            )
        if real is None:
            raise TypeError("real is None: give real images, such as a tensor, a folder or a dataset")
        check_source(real)
        image_paths(real)  # a folder that is missing is told now and not after hours
        super().__init__(every=every, where=where)
        self.metrics = check_needs(metrics, classifier=classifier, scorer=scorer)
        self._follows = isinstance(extractor, (str, dict))
        self.extractor = create_extractor(extractor)
        if {"qs", "ds"} & set(self.metrics) and scorer.extractor.fingerprint != self.extractor.fingerprint:
            raise ValueError(
                f"{scorer.name} works in features of {scorer.extractor.name} and the monitor in features "
                f"of {self.extractor.name}: pass extractor=scorer.extractor"
            )
        self.groups = check_count("groups", groups, least=2)
        self.n, self.batch_size = check_count("n", n, least=5 * groups), check_count("batch_size", batch_size)
        self.sample, self.real, self.seed, self.cache = sample, real, seed, cache
        self.value_range, self.scorer, self.classifier = check_range(value_range), scorer, classifier
        if cache is not None:
            check_writable(cache, name="cache")
        known, least = count_images(real) if is_shared(real) else None, max(groups, FEWEST_FOR_INTERVAL)
        if known is not None and known < least:
            raise ValueError(f"real has {known} images, and at least {least} are needed to measure distances to them")
        self.name, self._label = name or self.extractor.name, f",{name}" if name else ""
        self.last: dict[str, float] = {}
        self.spec: dict[str, str] = {}
        self._settings: dict[str, str] = {}  # the specs without what they say of the real images
        self.measures = tuple(value for metric in self.metrics for value in METRICS[metric].values)
        self._reference: Reference | None = None
        self._made: Reference | None = None
        self._guard = RangeGuard(self.value_range)
        self._told = False
        if where is not None:
            self._instrument(None).check_portable()

    def higher_is_better(self, key: str) -> bool | None:
        return higher_is_better(key)

    def functions(self) -> list[Callable[..., Any]]:
        return [self.sample] + ([] if self.classifier is None else [self.classifier])

    def on_train_start(self, ctx: Context) -> None:
        """Measure the real images now, so that this time is not counted in the measurements."""
        super().on_train_start(ctx)
        try:
            self._prepare(ctx)
        except Exception as error:
            if ctx.world_size == 1:
                raise
            self._failure = error  # the other processes wait in the first measurement, and are told there

    def rehearse(self, images: Tensor | None) -> Iterator[str]:
        """Two real images and two samples, from their range to their features."""
        instrument, guard, sizes = self._instrument(None), RangeGuard(self.value_range), []
        for real in first_images(self.real, 2):
            guard(data={"real": real})
            sizes.append(tuple(real.shape[1:]))
            instrument.rows(_block(to_uint8(real, self.value_range)))
        yield f"real: {', '.join(map(str, sizes))}; {self.extractor.name} gives {self.extractor.dim} features of each"
        if images is not None:
            check_comparable(self.extractor, sizes, images.shape[1:])
            instrument.rows(_block(to_uint8(images[:2], self.value_range)))
        self._tell_few(count_images(self.real))

    def asks(self, ctx: Context) -> list[SampleSet]:
        return [SampleSet(self.sample, self.n, self.batch_size, self.seed, ctx.rank, ctx.world_size)]

    def draw(self, ctx: Context) -> Iterator[Block]:
        """This process's samples, in 8 bits."""
        for start, samples in sample_blocks(*self.asks(ctx), guard=self._guard, one_pass=ctx.samples):
            if not bool(torch.isfinite(samples).all()):
                raise ValueError("the samples are not finite")
            images = to_uint8(samples, self.value_range)
            if self._reference is not None:
                check_comparable(self.extractor, self._reference.shapes[:, :3].tolist(), images.shape[1:])
            yield _block(images, start)

    def instrument(self) -> SetInstrument:
        """Features of samples, and the metrics of all of them; on several processes the rows are shared out."""
        if self._reference is None:
            raise RuntimeError("the statistics of the real images are missing: on_train_start was not called")
        return self._instrument(self._reference)

    def land(self, ctx: Context, found: Found) -> None:
        measured = {key: Measurement(*value) for key, value in found.items()}
        with together():
            if ctx.rank == 0:
                self._check_spec(measured)
        self.spec = {key: value.spec for key, value in measured.items()}
        self._settings = {key: value.settings for key, value in measured.items()}
        self.last = {"step": ctx.step}
        for key, value in measured.items():
            self.last |= {key: value.value, f"{key}_low": value.low, f"{key}_high": value.high}
            label = f"{value.name}_n={value.n}{self._label}"
            beside = f" against {value.real} real ones" if value.real else ""
            words = f"{value.n} generated images{beside}; 95 % interval on the page CUSTOM SCALARS"
            meaning = Meaning(words, value.spec, doubt=value.doubt)
            self.describe(ctx, make_tag("eval", label, "value"), meaning, key)
            for stat in ("value", "low", "high"):
                ctx.writer.scalar(make_tag("eval", label, stat), getattr(value, stat), ctx.step)
        if ctx.rank == 0 and not self._told:
            LOG.info("%s measures %s", self.state_key, "; ".join(self.spec.values()))
        self._told = True

    def state_dict(self) -> dict[str, Any]:
        late = self.late()
        return {"last": dict(self.last), "spec": dict(self.spec), "settings": dict(self._settings), **late}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.last, self.spec = dict(state["last"]), dict(state["spec"])
        self._settings = dict(state.get("settings", {}))  # states of before have none
        self.load_late(state)

    def _instrument(self, reference: Reference | None) -> SetInstrument:
        parts: Any = (self.extractor, reference, self.metrics, self.scorer, self.classifier, self.groups)
        return SetInstrument(*parts)

    def _prepare(self, ctx: Context) -> None:
        on_cuda = [p.device for net in modules_of(self.sample) for p in net.parameters() if p.is_cuda]
        self.here = on_cuda[0] if on_cuda and self._follows else self.extractor.mean.device
        if self._follows:
            self.extractor.to(self.place)
        start = time.perf_counter()
        options: dict[str, Any] = {"value_range": self.value_range, "batch_size": self.batch_size}
        reference = make_reference(self.extractor, self.real, rows=kept_rows(self.n), cache=self.cache, **options)
        if self._follows and self.where is not None:
            self.extractor.to("cpu")  # the other process has one of its own
        self._made = reference  # another monitor of the same images finds it while somebody holds it
        self._reference = reference.to(self.extractor.mean.device)
        if ctx.rank == 0:
            self._tell_few(reference.count)
            used = real_images_used(self.metrics, self.extractor, self.n, reference, scorer=self.scorer)
            known = f"{self.state_key} knows {reference.count} real images after {time.perf_counter() - start:.2f} s"
            LOG.info("%s%s", known, f"; it uses {used}" if used else "")

    def _tell_few(self, real: int | None) -> None:
        """Warn of few images; of `real` ones None says that their number is not known yet."""
        counts = ((FEW if real is None else real, "real image"), (self.n, "generated image"))
        few = "; ".join(words for count, noun in counts if (words := few_images(count, noun)))
        if few:
            warn(f"{self.state_key}: {few}: values are rough, and no interval tells what other real images would give")

    def _check_spec(self, found: dict[str, Measurement]) -> None:
        """Other real images are told and measured with; other settings are a mistake of the user's."""
        changed = [key for key, value in found.items() if self.spec.get(key, value.spec) != value.spec]
        for key in changed:
            if self._settings.get(key, found[key].settings) != found[key].settings:
                raise ValueError(
                    f"this run measured {self.spec[key]} until now, and now {found[key].spec}: these cannot be "
                    "compared; give a monitor with other settings another name="
                )
        if changed:
            warn(
                f"{self.state_key}: the real images are others than before, or are read in another way: this run "
                f"measured {self.spec[changed[0]]} until now, and goes on with {found[changed[0]].spec}; values from "
                "before cannot be compared with those from here on"
            )


def _block(images: Tensor, start: int = 0) -> Block:
    """Images with their positions, which begin at `start`."""
    return {"images": images, "position": torch.arange(start, start + len(images), device="cpu")}

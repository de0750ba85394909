"""Measurements of a `RewardGuard`: the run's images, the base model's images for the same inputs, real images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qa_hooks._base.adapters import without_lora
from qa_hooks._base.checks import check_call, check_count
from qa_hooks._base.reach import modules_of
from qa_hooks._base.text import plural
from qa_hooks.callbacks.callback import Context
from qa_hooks.callbacks.pictures import check_scorer
from qa_hooks.drawing.thumbnails import thumbnails
from qa_hooks.evaluation.comparable import check_comparable
from qa_hooks.features import FeatureExtractor, create_extractor
from qa_hooks.images import Range, RangeGuard, to_uint8, to_unit
from qa_hooks.rewards.alarm_rule import HELD_OUT
from qa_hooks.rewards.broken import broken_images
from qa_hooks.rewards.measures import Rows, differences, measure_change, measure_images, measure_tones
from qa_hooks.scorers.scorer import Scorer, common_range
from qa_hooks.sources.batches import (
    Source,
    check_source,
    count_images,
    first_images,
    image_batches,
    image_paths,
    is_shared,
)
from qa_hooks.sources.fingerprint import fixed_random
from qa_hooks.sources.samples import (
    Sample,
    SampleSet,
    check_sample,
    in_range,
    sample_block,
    sample_blocks,
)

FEWEST = 8  # images of a look, and real ones
REAL = 512  # images for the levels, evenly from what there is
KEPT = 128  # side of what is kept of the first look, to compare with


class GuardImages:
    """Looks at images: makes or takes them, and measures each with the scorers and the extractor.

    Args:
        scorer, heldout, base, sample, images, real, n, batch_size, seed, extractor, value_range: as in `RewardGuard`.

    Attributes:
        scorers: by the names of their values.
        first: `(n, C, h, w)` uint8, the base's images or those of the first look, of all processes.
        first_rows: what was measured of them, by the position of the batch.
        real_shapes: (C, H, W) of the real images, each shape once.

    Raises:
        TypeError, ValueError: arguments that do not fit.
    """

    def __init__(
        self,
        scorer: Scorer | None,
        heldout: Sequence[Scorer],
        base: Sample | nn.Module | str | None,
        *,
        sample: Sample | None,
        images: str | None,
        real: Source | None,
        n: int,
        batch_size: int,
        seed: int,
        extractor: FeatureExtractor | nn.Module | str | dict[str, Any],
        value_range: Range | None,
    ) -> None:
        self.scorers = _named_scorers(scorer, heldout)
        if (sample is None) == (images is None):
            raise ValueError("give either sample= (a function) or images= (the name the loop hands images over under)")
        if sample is not None:
            check_sample(sample)
        _check_base(base, sampling=sample is not None)
        if callable(base) and not isinstance(base, nn.Module):
            check_call("base", base, "base(n, generator)", 1, torch.Generator("cpu"))
        if real is not None:
            check_source(real)
            image_paths(real)  # a folder that is missing is told now
            _check_count(count_images(real))
        self.sample, self.name, self.base, self.real = sample, images or "", base, real
        self.value_range = common_range(self.scorers.values(), value_range)
        self.n, self.batch_size = check_count("n", n, least=FEWEST), check_count("batch_size", batch_size)
        self.seed = seed
        self.extractor = create_extractor(extractor)
        self._guards = {name: RangeGuard(self.value_range) for name in ("samples", "base", "real")}
        self.first: Tensor | None = None
        self.first_rows: dict[int, Rows] = {}
        self.real_shapes: set[tuple[int, ...]] = set()

    def asks(self, ctx: Context) -> list[SampleSet]:
        """As `Callback.asks`. The base's images are never shared: the base may be the same function without LoRA."""
        if self.sample is None:
            return []
        return [SampleSet(self.sample, self.n, self.batch_size, self.seed, ctx.rank, ctx.world_size)]

    def functions(self) -> list[Callable[..., Any]]:
        """The user's functions and networks that make images."""
        return [part for part in (self.sample, self.base) if callable(part)]

    def rehearse(self, images: Tensor | None) -> Iterator[str]:
        """As `Monitor.rehearse`: the range of two real images, and whether their size is the samples'."""
        if self.real is not None:
            sizes = []
            for real in first_images(self.real, 2):
                RangeGuard(self.value_range).check_data("real", real)
                sizes.append(tuple(real.shape[1:]))
            if images is not None:
                check_comparable(self.extractor, sizes, images.shape[1:])
            yield f"real: {', '.join(map(str, sizes))}"

    def rows(self, ctx: Context, *, comparing: bool) -> Rows:
        """What one look measures on this process.

        Args:
            ctx: with the images that were handed over.
            comparing: raise when the real images are of another size.

        Returns:
            Rows of its images, "position" among them, "pictures" and "bases" for the sheet; at the first look "kept".
        """
        rows: list[Rows] = []
        pictures, bases, kept = [], [], []
        shapes: set[tuple[int, ...]] = set()
        for start, images, handed in self._batches(ctx):
            if comparing and self.real_shapes:
                check_comparable(self.extractor, self.real_shapes, images.shape[1:])
            self.extractor.to(images.device)
            self._check_range("samples", images)
            unit = self._clamped(images)
            row = measure_images(unit, self.extractor) | _tones(unit) | self._scores(images)
            row |= {key: which.float().cpu() for key, which in broken_images(unit).items()}
            row["position"] = torch.arange(start, start + len(images), device="cpu")
            crop, picture = _centre(unit), _thumbnails(unit)
            shapes.add((*picture.shape[1:], *crop.shape[1:]))
            if len(shapes) > 1:
                raise ValueError(
                    f"images of one look must be of one size, got {tuple(images.shape[1:])} after others: the guard "
                    "compares them with each other, so crop them to one size"
                )
            before = self._before(start, len(images), handed)
            if before is not None:
                now = row["features"] if crop.shape == unit.shape else self.extractor(crop)
                base = self._rows_before(start, before)
                row |= measure_change(_in_8_bits(crop), before, now, base["features"])
                row |= differences(_tones(crop), base)
                row["base_features"] = base["features"]
                bases.append(_thumbnails(before))
            if self.sample is not None and self.first is None:
                kept.append(to_uint8(crop if before is None else before).cpu())
            rows.append(row)
            pictures.append(picture)
        tables: Rows = {key: torch.cat([row[key] for row in rows]) for key in rows[0]} if rows else {}
        for name, parts in (("pictures", pictures), ("bases", bases), ("kept", kept)):
            if parts:
                tables[name] = torch.cat(parts)
        return tables

    def _batches(self, ctx: Context) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """Position of the first image, images, and the base's, where the loop hands them over."""
        if self.sample is None:
            base = self.base if isinstance(self.base, str) else None
            return ctx.handed_over(self.name, base, batch_size=self.batch_size)
        return ((start, images, None) for start, images in sample_blocks(*self.asks(ctx), one_pass=ctx.samples))

    def _before(self, start: int, count: int, handed: Tensor | None) -> Tensor | None:
        """The middle of what the base makes of the same inputs, in [0, 1]; it is asked once, at the first look."""
        if handed is not None:
            images = handed
        elif self.first is not None:
            return self.first[start : start + count].to(self.extractor.mean.device).float() / 255
        elif self.base is None or isinstance(self.base, str) or self.sample is None:
            return None
        elif isinstance(self.base, nn.Module):
            with without_lora(self.base):
                images = sample_block(self.sample, count, self.seed, start // self.batch_size)
        else:
            images = sample_block(self.base, count, self.seed, start // self.batch_size)
        self._check_range("base", images)
        return _in_8_bits(_centre(self._clamped(images.to(self.extractor.mean.device))))

    def _rows_before(self, start: int, before: Tensor) -> Rows:
        rows = self.first_rows.get(start)
        if rows is None:
            rows = {"features": self.extractor(before).float().cpu(), **_tones(before)}
            if self.sample is not None:  # those do not change
                self.first_rows[start] = rows
        return rows

    def _check_range(self, name: str, images: Tensor) -> None:
        """Warn of another range; values that are not finite are counted, and have a warning of their own."""
        if images.is_floating_point():
            images = torch.nan_to_num(images, *[self.value_range[0]] * 3)
        self._guards[name](predictions={name: images})

    def _clamped(self, images: Tensor) -> Tensor:
        return to_unit(images, self.value_range).float().clamp(0, 1)  # clamp keeps nan, which is counted

    def _scores(self, images: Tensor) -> Rows:
        if images.is_floating_point():
            images = torch.nan_to_num(images.float(), self.value_range[0])
        images = in_range(images, self.value_range)
        return {key: scorer.goodness(images).float().cpu() for key, scorer in self.scorers.items()}

    def measure_real(self, ctx: Context) -> Rows:
        """Rows of up to `REAL` real images; none without them."""
        if self.real is None:
            return {}
        real = self.real
        devices = [image.device for images in ctx.images.values() for image in images]
        devices += [p.device for function in self.functions() for net in modules_of(function) for p in net.parameters()]
        self.extractor.to(next((device for device in devices if device.type == "cuda"), self.extractor.mean.device))
        count = count_images(real) if is_shared(real) else None
        indices = None if count is None else [i * count // min(count, REAL) for i in range(min(count, REAL))]
        rows: list[Rows] = []
        seen = 0
        with fixed_random(real):
            for _, images in image_batches(real, batch_size=self.batch_size, indices=indices):
                self.real_shapes.add(tuple(images.shape[1:]))
                self._guards["real"](data={"real": images})
                images = images.to(self.extractor.mean.device)
                unit = self._clamped(images)
                rows.append(measure_images(unit, self.extractor) | _tones(unit) | self._scores(images))
                seen += len(images)
                if seen >= REAL:
                    break
        _check_count(seen)
        return {key: torch.cat([row[key] for row in rows]) for key in rows[0]}


def _named_scorers(scorer: Scorer | None, heldout: Sequence[Scorer]) -> dict[str, Scorer]:
    """By the names of their values."""
    if isinstance(heldout, Scorer):
        raise TypeError("heldout must be a list of scorers, got one scorer")
    named = {} if scorer is None else {"score": scorer}
    for part in heldout:
        check_scorer(part, "heldout")
        if HELD_OUT + part.name in named:
            raise ValueError(f"two held-out scorers are called {part.name!r}")
        named[HELD_OUT + part.name] = part
    for part in named.values():
        check_scorer(part)
        if part.inputs:
            raise ValueError(
                f"{part.name} needs {', '.join(sorted(part.inputs))}, which the guard does not have: bind them in a "
                "FunctionScorer"
            )
    return named


def _check_count(count: int | None) -> None:
    """`ValueError` for a known number of real images that is too small."""
    if count is not None and count < FEWEST:
        raise ValueError(f"real has {plural(count, 'image')}, and at least {FEWEST} are needed to say what is normal")


def _check_base(base: Any, *, sampling: bool) -> None:
    """`TypeError` unless it goes with `sample=` (`sampling`) or `images=`."""
    if base is None or ((callable(base) or base == "start") if sampling else isinstance(base, str)):
        return
    raise TypeError(
        'base goes with sample= as a callable base(n, generator), a network with LoRA or "start", and with images= as '
        f"the name of its images, got {base!r}"
    )


def _centre(images: Tensor) -> Tensor:
    """The middle of `(n, C, H, W)`, at most `KEPT` pixels a side."""
    top, left = (max(0, (side - KEPT) // 2) for side in images.shape[-2:])
    return images[..., top : top + KEPT, left : left + KEPT]


def _in_8_bits(images: Tensor) -> Tensor:
    """As they are kept, so that what has not changed does not differ."""
    return to_uint8(torch.nan_to_num(images)).float() / 255


def _tones(images: Tensor) -> Rows:
    """Of the images in 8 bits, as the base's are kept."""
    return measure_tones(_in_8_bits(images))


def _thumbnails(images: Tensor) -> Tensor:
    return thumbnails(to_uint8(torch.nan_to_num(images)).cpu(), 96)

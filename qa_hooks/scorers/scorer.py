"""The one idea of the package: a scorer gives each image a number, and every hook is a use of that number."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qa_hooks._base.checks import warn
from qa_hooks._base.frozen import KeepsFrozen, moves_only
from qa_hooks._base.hashing import fingerprint
from qa_hooks.images import Range, RangeGuard, as_tensor, check_images, check_pair, check_range, to_unit
from qa_hooks.scorers.calibration import Calibration

OTHER_SIZES = ("warn", "raise", "resize")


class Scorer(KeepsFrozen):
    """Images in, one raw score per image out, in the direction in which the metric was published.

    A subclass states the facts below and writes `score`, which sees float32 images mapped to [0, 1], outside autocast.
    Scorers stay in eval mode and in their own precision whatever a parent module does. They put nothing into the
    parent's checkpoint: register constants as buffers with `persistent=False`, and write `self.network =
    self.keep(network)` for a network.

    Attributes:
        name: the tag in TensorBoard and the key in tables. Famous names only for canonical values.
        higher_is_better: the published direction of `forward`.
        score_range: (worst possible, best possible) in numeric order, or None when unbounded.
        inputs: which of "reference" and "prompt" it needs besides the images.
        differentiable: whether a usable gradient reaches the images.
        value_range: what the numbers of incoming images mean; not saved.
        calibration: the map to [0, 1], if one has been fitted; saved with the scorer.
        fitted_size: (height, width) of the images that it was fitted on; saved. Set only if all images had one size and
            scores depend on size.
        other_sizes: what happens to images of another size, whose scores could not be compared: "warn" scores them and
            says so once, "raise" refuses them, "resize" brings them to `fitted_size`.

    Example:
        >>> class Brightness(Scorer):
        ...     name, higher_is_better, score_range = "brightness", True, (0.0, 1.0)
        ...     def score(self, images):
        ...         return images.mean((1, 2, 3))
        >>> Brightness(value_range=(-1, 1))(torch.zeros(2, 3, 8, 8))
        tensor([0.5000, 0.5000])
    """

    name: str = "score"
    higher_is_better: bool = True
    score_range: Range | None = None
    inputs: frozenset[str] = frozenset()
    differentiable: bool = True
    keeps_float64: bool = False  # `score` also accepts float64; set for our own metrics
    takes_extractor: bool = False  # it is fitted in features of an extractor that the user names
    fitted_size: tuple[int, int] | None = None
    other_sizes: str = "warn"

    def __init__(self, *, value_range: Range = (0.0, 1.0)) -> None:
        super().__init__()
        self.value_range = check_range(value_range)
        self.calibration: Calibration | None = None
        self._said_size = False
        self._guard = RangeGuard(self.value_range)

    def score(self, images: Tensor, **inputs: Any) -> Tensor:
        """What a subclass writes: `(N, C, H, W)` float32 in [0, 1] -> `(N,)`."""
        raise NotImplementedError(f"{type(self).__name__} must define score(images, **inputs)")

    def forward(self, images: Any, reference: Any = None, *, prompt: Any = None) -> Tensor:
        """Raw scores.

        Args:
            images: `(N, C, H, W)` in `value_range`; uint8 tensors, uint8 arrays and PIL images are taken as [0, 255].
            reference: the ground truth, like `images`; for scorers whose `inputs` name it. `psnr(sr, hr)` will do.
            prompt: a list of N strings; for scorers whose `inputs` name it.

        Returns:
            `(N,)` float32.

        Raises:
            TypeError, ValueError: images that are no images, a missing or needless input, sizes that differ.
        """
        given = {"reference": reference, "prompt": prompt}
        self._check_inputs(given)
        images = check_images("images", as_tensor(images), floating=False)
        inputs = {name: value for name, value in given.items() if name in self.inputs}
        checked = {}
        if "reference" in inputs:
            checked["reference"] = check_images("reference", as_tensor(reference), floating=False)
            check_pair("images", images, "reference", checked["reference"])
            inputs["reference"] = self._to_unit(checked["reference"])
        self._guard(data=checked, predictions={"images": images})
        if "prompt" in inputs and (isinstance(prompt, str) or len(prompt) != images.shape[0]):
            raise ValueError(f"prompt must be a list of {images.shape[0]} strings, one for each image")
        version = None if images.is_inference() else images._version
        with torch.autocast(images.device.type, enabled=False):
            scores = self.score(self._to_unit(images), **inputs)
        if version is not None and images._version != version:
            raise ValueError(
                f"{self.name} has changed the images that it was given, in place: write it so that it makes new ones "
                "(x * 2 for x.mul_(2)), or let it begin with images = images.clone()"
            )
        if scores.numel() != images.shape[0]:
            raise ValueError(
                f"{self.name} must give one score per image: {images.shape[0]} images, {tuple(scores.shape)}"
            )
        return scores.reshape(-1).float()

    def goodness(self, images: Any, *reference: Any, **inputs: Any) -> Tensor:
        """`(N,)`: the raw score or its negative, so that higher is always better; arguments as in `forward`."""
        scores: Tensor = self(images, *reference, **inputs)
        return scores if self.higher_is_better else -scores

    @property
    def size_asked_for(self) -> tuple[int, int] | None:
        """What images are brought to before features are taken; None where they stay as they are."""
        return self.fitted_size if self.other_sizes == "resize" else None

    def fit_calibration(self, goodness: Tensor, *, method: str = "ecdf") -> Scorer:
        """Fit the map to [0, 1] once, on the goodness of held-out real images; it is saved with the scorer.

        Args:
            goodness: `(n,)`, from `goodness(...)` on images that the scorer was not fitted on.
            method: "ecdf" (a real image scores 0.5 on average), "minmax" or "sigmoid".
        """
        self.calibration = Calibration.fit(goodness, method=method)
        return self

    @property
    def device(self) -> torch.device | None:
        """Where its tensors and its networks are, and so where images have to be; None when it has neither."""
        for module in (self, *self._frozen):
            if module is not self and isinstance(module, Scorer):
                return module.device
            for tensor in chain(module.buffers(), module.parameters()):
                return tensor.device
        return None

    def calibrated(self) -> Scorer:
        """This scorer mapped to [0, 1], higher better, by the calibration fitted and saved with it.

        Below the worst and above the best held-out image "ecdf" and "minmax" are flat, so there is no gradient: for a
        `ScoreLoss` on images that may be far off, take the raw scorer.
        """
        if self.calibration is None:
            raise ValueError(
                f"{self.name} has no calibration; fit it on held-out real images: "
                "scorer.fit_calibration(scorer.goodness(real_images))"
            )
        return CalibratedScorer(self, self.calibration)

    def extra_repr(self) -> str:
        return f"{self.name}, value_range={self.value_range}"

    def options(self) -> dict[str, Any]:
        """The constructor's options as JSON can hold them, without `value_range`; for `save`."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """What `save` writes besides the options: the buffers, by name."""
        return {name: buffer.detach().cpu().contiguous() for name, buffer in self.named_buffers()}

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of all that `save` would write; Python functions count only by name."""
        facts = [type(self).__name__, self.name, self.options()]
        parts: list[str | Tensor] = [part for pair in sorted(self.tensors().items()) for part in pair]
        if self.calibration is not None:
            parts += [self.calibration.method, self.calibration.points]
        return fingerprint(json.dumps(facts, sort_keys=True, default=str), *parts)

    def save(self, path: str | Path) -> None:
        """Write options, calibration and tensors as safetensors with a JSON header; nothing is pickled."""
        from qa_hooks.scorers.saving import save_scorer

        save_scorer(self, path)

    @classmethod
    def from_saved(cls, options: dict[str, Any], tensors: dict[str, Tensor], value_range: Range) -> Scorer:
        """Rebuild from what `save` wrote; a subclass overrides it when its tensors decide how it is built."""
        scorer = cls(**options, value_range=value_range)
        own = dict(scorer.named_buffers())
        if set(own) != set(tensors):
            raise ValueError(f"tensors {sorted(tensors)}, expected {sorted(own)}")
        for name, buffer in own.items():
            buffer.copy_(tensors[name])
        return scorer

    def train(self, mode: bool = True) -> Scorer:
        """Scorers are always in eval mode: a parent's `.train()` does not flip them."""
        super().train(False)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Scorer:
        super()._apply(moves_only(fn), recurse)
        return self

    def _to_unit(self, images: Tensor) -> Tensor:
        as_it_is = images.dtype == torch.uint8 or (images.dtype == torch.float64 and self.keeps_float64)
        return to_unit(images if as_it_is else images.float(), self.value_range)

    def _at_fitted_size(self, images: Tensor) -> Tensor:
        odd = self._other_size((images.shape[2], images.shape[3]))
        if not odd:
            return images
        if self.other_sizes == "resize" and self.fitted_size is not None:
            return F.interpolate(images, self.fitted_size, mode="bilinear", antialias=True)
        if self.other_sizes == "raise":
            raise ValueError(odd)
        if not self._said_size:
            self._said_size = True
            warn(odd)
        return images

    def _other_size(self, size: tuple[int, int] | None) -> str:
        """What to say of images of this size; nothing where it is the fitted one, or either is unknown."""
        if size is None or self.fitted_size is None or size == self.fitted_size:
            return ""
        own, other = (f"{height} x {width}" for height, width in (self.fitted_size, size))
        return (
            f"{self.name} was fitted on images of the size {own}: scores of {other} cannot be compared with theirs; "
            'other_sizes="resize" (of the scorer, or of load_scorer) resizes images first'
        )

    def _check_inputs(self, given: dict[str, Any]) -> None:
        for name, value in given.items():
            if name in self.inputs and value is None:
                raise ValueError(f"{self.name} needs {name}=")
            if name not in self.inputs and value is not None:
                raise ValueError(
                    f"{self.name} takes no {name}; its inputs are {sorted(self.inputs) or 'the images alone'}"
                )


def check_is_scorer(value: Any, name: str = "scorer") -> Scorer:
    """The value itself; `TypeError` unless it is a `Scorer`."""
    if not isinstance(value, Scorer):
        made = f"write create_scorer({str(value)!r})"
        raise TypeError(
            f"{name} must be a qa_hooks Scorer, got {type(value).__name__}; "
            f"{made if isinstance(value, (str, Path)) else 'take one of create_scorer(name)'}, or wrap a function as "
            "FunctionScorer(fn, name=..., higher_is_better=...)"
        )
    return value


def common_range(scorers: Iterable[Scorer], value_range: Range | None = None) -> Range:
    """The one range that all these scorers and `value_range` declare; (0, 1) if there are none.

    Raises:
        ValueError: they declare several ranges.
    """
    ranges = {scorer.value_range for scorer in scorers} | ({check_range(value_range)} if value_range else set())
    if len(ranges) > 1:
        raise ValueError(f"the scorers and value_range= declare different ranges, {sorted(ranges)}: make them agree")
    return ranges.pop() if ranges else (0.0, 1.0)


def uncalibrated(scorer: Any) -> Any:
    """The scorer inside, of one that `Scorer.calibrated()` made; any other as it is."""
    return scorer.scorer if isinstance(scorer, CalibratedScorer) else scorer


class CalibratedScorer(Scorer):
    """A scorer followed by its calibration: [0, 1], higher is better. Made by `Scorer.calibrated()`."""

    score_range = (0.0, 1.0)
    higher_is_better = True
    calibration: Calibration

    def __init__(self, scorer: Scorer, calibration: Calibration) -> None:
        super().__init__(value_range=scorer.value_range)
        self.scorer, self.calibration = self.keep(scorer), calibration
        self.name, self.inputs, self.differentiable = f"{scorer.name}_calibrated", scorer.inputs, scorer.differentiable

    def forward(self, images: Any, reference: Any = None, *, prompt: Any = None) -> Tensor:
        """Calibrated scores `(N,)`; arguments as in `Scorer.forward`."""
        return self.calibration(self.scorer.goodness(images, reference=reference, prompt=prompt))

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the inner scorer, marked as calibrated."""
        return fingerprint("calibrated", self.scorer.fingerprint)

    def calibrated(self) -> Scorer:
        """Itself."""
        return self

    def save(self, path: str | Path) -> None:
        """Write the scorer inside, with its calibration."""
        self.scorer.save(path)

"""Quality as a dial: a frozen diffusion model takes target scores, and a user turns quality up when sampling.

    adapter = QualityAdapter(unet, QualityTable.load("niqe.csv"))     # any UNet of Diffusers, DiT, SD3, Flux
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-4, weight_decay=1e-2)
    q = adapter.of_images(table, files)                               # (N, 1), in standard deviations, more is better
    for batch in loader:
        adapter.condition(q[batch["index"]])                          # for the next call of the denoiser
        loss = ...                                                    # the loop's own
    adapter.save("dial.safetensors")

    with adapter.quality(+1.5):
        images = pipe(prompts).images

The method is that of the IQA-Adapter (Abud et al., 2024): tokens of the scores, and a second cross-attention to them
beside the text's. Ours by default: a gate in each layer that starts at 0, so that an untrained adapter changes nothing,
and a learned embedding for "no score given", which is not the same as "average".
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qa_hooks._base.adapters import unwrapped
from qa_hooks._base.checks import check_count, warn
from qa_hooks._base.frozen import KeepsFrozen
from qa_hooks._base.random import OwnRandom
from qa_hooks.data import QualityTable
from qa_hooks.integrations.diffusers.quality.calls import Calls
from qa_hooks.integrations.diffusers.quality.dial import Dial, Setting, check_drop, check_setting, draw_drops
from qa_hooks.integrations.diffusers.quality.files import check_fits, check_scores, read_adapter, write_adapter
from qa_hooks.integrations.diffusers.quality.parsing import Quality
from qa_hooks.integrations.diffusers.quality.places import Places, find_places
from qa_hooks.integrations.diffusers.quality.projector import QualityProjector
from qa_hooks.integrations.diffusers.quality.resuming import pack_state, resumed_draws
from qa_hooks.integrations.diffusers.quality.sampling import QualitySample
from qa_hooks.integrations.diffusers.quality.scores import QualityScores
from qa_hooks.integrations.diffusers.quality.sources import Measures, measure_images, resolve_scores
from qa_hooks.integrations.training_checks import check_sharded
from qa_hooks.sources.batches import Source
from qa_hooks.sources.samples import Sample

PUBLISHED_DROPS = (0.01, 0.05, 0.01)


class QualityAdapter(KeepsFrozen):
    """Conditions a denoiser on quality scores. Its parameters are the adapter's alone; the denoiser is not changed.

    Outside `condition` and `quality` the denoiser is the base model, bit for bit. Freeze the base yourself
    (`unet.requires_grad_(False)`), since a LoRA beside it may well be trained, too. Copies of it have the same dial.

    Args:
        denoiser: a Diffusers UNet or transformer; in DDP, `torch.compile` or PEFT the network inside is taken.
        scores: a `QualityTable`, or one for each score; scorers, or a feature extractor for the variant with
            reference images (both with `images=`); or `QualityScores`.
        images: the training images, which scorers or an extractor measure once, for the units of the dial.
        form: "attention", tokens beside the text in every cross-attention; "embedding", added to the embedding of the
            time; None takes attention where there is some.
        init: "gated", each layer times a gate that starts at 0; "published", without: then an untrained adapter
            already changes the images.
        tokens: how many.
        encoding: frequencies of the sine and cosine encoding, 10 in the paper; None for none.
        hidden: a hidden layer of 128 with GELU in the projector.
        drop: probabilities in training of dropping quality alone, the text alone, and both.
        seed: of the new weights and of what is dropped; the global random state is not touched.

    Attributes:
        scores: names, directions, fingerprints, means and deviations (`QualityScores`).
        denoiser: the network; not part of the adapter's parameters or state.

    Raises:
        TypeError, ValueError: a network without any place to attach, one with IP-Adapter or another quality adapter,
            scores that are constant, arguments that do not fit.

    Example:
        >>> from diffusers import UNet2DModel
        >>> unet = UNet2DModel(8, 1, 1, block_out_channels=(8,), down_block_types=("DownBlock2D",),
        ...                    up_block_types=("UpBlock2D",), norm_num_groups=4, layers_per_block=1)
        >>> table = QualityTable(["a.png", "b.png"], torch.tensor([[3.0], [5.0]]), "niqe", False)
        >>> adapter = QualityAdapter(unet, table)
        >>> adapter.of_images(table, ["b.png"]).round(decimals=2)
        tensor([[-0.7100]])
        >>> x = torch.zeros(1, 1, 8, 8)
        >>> with torch.no_grad(), adapter.quality(0.5):
        ...     untrained = unet(x, 10).sample
        >>> bool((untrained == unet(x, 10).sample).all())
        True
    """

    scores: QualityScores
    denoiser: nn.Module

    def __init__(
        self,
        denoiser: nn.Module,
        scores: QualityTable | Sequence[QualityTable] | QualityScores | Measures,
        *,
        images: Source | None = None,
        form: str | None = None,
        init: str = "gated",
        tokens: int = 2,
        encoding: int | None = None,
        hidden: bool = False,
        drop: tuple[float, float, float] = PUBLISHED_DROPS,
        seed: int = 0,
    ) -> None:
        super().__init__()
        inner = unwrapped(denoiser)
        check_sharded(inner)
        object.__setattr__(self, "denoiser", inner)  # and so not a part of this module
        self.scores, measures = resolve_scores(scores, images)
        self.measures = [self.keep(part) for part in measures]
        self.tokens, self.hidden = check_count("tokens", tokens), bool(hidden)
        self.encoding = 0 if encoding is None else check_count("encoding", encoding)
        if self.encoding and self.scores.reference:
            raise ValueError("encoding= is for scores; the features of a reference image are taken as they are")
        self.drop, self.seed = check_drop(drop), check_count("seed", seed, least=0)
        self.random = OwnRandom(self.seed)
        self.dial, self._said_outside, self._conditioned = Dial(), False, False
        self.places: Places = find_places(inner, form, init, self.tokens, self.dial)
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.manual_seed(self.seed)
            self.projector = QualityProjector(
                self.scores.widths, self.tokens, self.places.dim, frequencies=self.encoding, hidden=self.hidden
            )
            self.branches = nn.ModuleList(self.places.branches())
        self.to(next(inner.parameters()).device)
        self.calls = Calls(inner, self.dial, self.places, self)

    # -- the dial ----------------------------------------------------------------------------------------------------

    def condition(self, q: Quality) -> Tensor:
        """Set the quality of the next call of the denoiser, in a training loop; that call uses it up.

        While the adapter is in training mode some rows are dropped (`drop`), from random numbers of its own.

        Args:
            q: `(N, D)` in the units of `of_images`, a row for each image, NaN where a score is missing; `(N,)` of one.

        Returns:
            `(N,)` bool on the CPU: the rows whose text is to be dropped as well. The loop does that, with the embedding
            of its empty prompt; a loop with its own way of dropping texts leaves this alone.

        Raises:
            TypeError, ValueError: not such a tensor. From the denoiser's next call: another number of rows.
        """
        self.calls.check_attached()
        rows = self.scores.as_rows(q)
        if not self._conditioned:
            self._conditioned = True
            self.scores.warn_of_raw(rows)
        text = torch.zeros(len(rows), dtype=torch.bool, device="cpu")
        if self.training:
            gone, text = draw_drops(len(rows), self.drop, self.random.generator())
            rows = torch.where(gone[:, None].to(rows.device), torch.nan, rows)
        self.dial.next = Setting(rows, guidance=False, once=True)
        return text

    @contextlib.contextmanager
    def quality(
        self, q: Quality, *, scale: float = 1.0, negative: float | None = None, guidance: bool | None = None
    ) -> Iterator[QualityAdapter]:
        """Inside this block the denoiser makes images of this quality; blocks may be nested.

        With classifier-free guidance the unconditional rows get no quality, so that guidance is over quality, too.

        Args:
            q: standard deviations of the training images, more is better: a number for all scores, numbers by name
                (the others are left open), or `(N, D)` with a row for each image; None leaves all open.
            scale: multiplies the branch; 0 is the base model, bit for bit and at its cost.
            negative: s, about 0.5: the unconditional rows get -s q instead of no quality.
            guidance: for a loop of your own: whether the first half of the rows is unconditional. In a pipeline of
                Diffusers it is known.

        Raises:
            TypeError, ValueError: unknown names, a q that is not finite, `negative` with a scale of 0.
        """
        self.calls.check_attached()
        setting = check_setting(Setting(self.scores.as_rows(q), scale, negative, guidance))
        if (odd := self.scores.outside(setting.q)) and not self._said_outside:
            self._said_outside = True
            warn(odd)
        before, self.dial.now, self.dial.next = self.dial.now, setting, None  # and no condition() that was left over
        try:
            yield self
        finally:
            self.dial.now = before

    def levels(self, count: int = 9, reach: float = 2.0) -> list[float]:
        """Settings from low to high, evenly spaced, of which none lies outside the training images.

        Args:
            count: how many, at least 2.
            reach: at most so many standard deviations either way.
        """
        return self.scores.levels(check_count("count", count, least=2), reach)

    def at(self, q: Quality, sample: Sample, **options: Any) -> QualitySample:
        """A `sample(n, generator)` at this setting, for any monitor, comparison or table.

        Example: `ScoreMonitor(scorer, sample=adapter.at(+1.5, sample), name="turned up")`.
        """
        return QualitySample(self, q, sample, options)

    # -- units -------------------------------------------------------------------------------------------------------

    def of_images(self, tables: QualityTable | Sequence[QualityTable], keys: Sequence[str] | None = None) -> Tensor:
        """q `(N, D)` of training images from tables, once before training; NaN where a score is missing.

        Args:
            tables: of the scorers that the adapter is conditioned on.
            keys: of the images, in the order of the data set, once or more; None for all of the first table.

        Raises:
            ValueError: other scorers, another direction of a score, or images that a table lacks.
        """
        return self.scores.of_images(tables, keys)

    def measure(self, images: Tensor) -> Tensor:
        """q `(N, D)` of images, by the scorers or the extractor that the adapter was made with."""
        return self.scores.standardise(measure_images(self.measures, images))

    def encode(self, q: Tensor) -> Tensor:
        """Tokens `(B, T, d)` of q `(B, D)`: the one way from a quality to the network, in training and in sampling."""
        parameter = next(self.projector.parameters())
        tokens: Tensor = self.projector(q.to(parameter.device, parameter.dtype))
        return tokens

    # -- files -------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write weights, scorers, means and deviations as safetensors with a JSON header; nothing is pickled."""
        write_adapter(path, dict(self.named_parameters()), self._facts())

    @classmethod
    def load(
        cls,
        path: str | Path,
        denoiser: nn.Module,
        *,
        scores: QualityTable | Sequence[QualityTable] | QualityScores | Measures | None = None,
    ) -> QualityAdapter:
        """Read what `save` wrote and attach it to a denoiser, in eval mode.

        Args:
            path: the file.
            denoiser: of the same shape as the one that it was trained on.
            scores: to go on training with: compared with the scorers in the file.

        Raises:
            ValueError: another file, a denoiser that it does not fit, other scorers or another direction of one.
        """
        unwrapped(denoiser)  # what is no network is not the fault of the file
        tensors, facts, known = read_adapter(path)
        measures: list[Any] = []
        if scores is not None:
            given, measures = resolve_scores(scores, None, units=known)
            check_scores(known, given)
        try:
            adapter = cls(denoiser, known, **facts["options"])
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} (form={facts['options']['form']!r}) cannot be attached: {error}") from error
        adapter.measures = [adapter.keep(part) for part in measures]
        own = dict(adapter.named_parameters())
        try:
            check_fits(path, facts, tensors, own, adapter.places.names)
        except ValueError:
            adapter.detach()
            raise
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(tensors[name])
        return adapter.eval()

    def detach(self) -> None:
        """Take the adapter off: the denoiser has its own processors again, and no hook of ours."""
        self.calls.remove()

    def get_extra_state(self) -> Tensor:
        """For `state_dict`, and so for `accelerator.register_for_checkpointing(adapter)`: scorers, units and draws."""
        return pack_state(self._facts(), self.random.draws)

    def set_extra_state(self, state: Tensor) -> None:
        """The inverse; `ValueError` if the run that is resumed had other scorers, units or options."""
        self.random.draws = resumed_draws(state, self.scores, self._facts()["options"])

    def _facts(self) -> dict[str, Any]:
        options = {"form": self.places.form, "init": self.places.init, "tokens": self.tokens, "hidden": self.hidden}
        options |= {"encoding": self.encoding or None, "drop": list(self.drop), "seed": self.seed}
        return {"scores": self.scores.facts(), "options": options, "places": list(self.places.names)}

    def extra_repr(self) -> str:
        return f"{', '.join(self.scores.names)}, {self.places.form} at {len(self.places.names)} places"

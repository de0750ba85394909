"""Samples of the same seeds with their scores: which are good, and which got worse.

The mean of a score can rise while some samples lose theirs. So it is kept what each seed looked like on the last panel
and on the best one, and the samples that fell most since then are drawn before and after.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qa_hooks._base.checks import check_count, warn
from qa_hooks._base.processes import shared
from qa_hooks._base.text import plural
from qa_hooks.callbacks.callback import Context
from qa_hooks.callbacks.pictures import axis_label, check_scorer, meaning_of, picture_folder, scorer_spec
from qa_hooks.callbacks.sampling import SamplingMonitor, check_reference
from qa_hooks.drawing.contact_sheet import CARD_COLUMNS, card_sheet
from qa_hooks.drawing.thumbnails import most_detailed, on_one_ground, square_at, thumbnails
from qa_hooks.images import save_image, to_uint8
from qa_hooks.scorers.score_source import first_refusal, score_each
from qa_hooks.scorers.scorer import Scorer
from qa_hooks.sources.samples import Sample
from qa_hooks.writers import make_tag


class ScorePanel(SamplingMonitor):
    """Samples from best to worst with their scores, and the samples whose score fell most, before and after.

    Writes `qa_images/{name}/ranked`, each with its name or number; from the second panel on also
    `qa_images/{name}/regressions` (and, where that is another one, `/since_best`) and
    `qa_eval/{name}/fell`, the share of samples that are worse than on the last panel. Each sample keeps its noise. The
    best panel is the one of the best mean. With several processes the first one samples, scores and draws.

    Under an image that is larger than what is drawn of it stands its part with the most detail, pixel by pixel: blur,
    noise and blocks are not seen in a thumbnail. On a sheet of regressions it is the same part before and after.

    The state holds scores, thumbnails and these parts of two panels: with the defaults at most 2 x 64 x 55 KB = 7 MB in
    colour.

    Args:
        sample: `sample(n, generator) -> (n, C, H, W)` in the scorer's `value_range`, as in `SampleGrid`; a list where
            sizes differ. For restoration, `lambda n, generator: [model(image[None])[0] for image in inputs]`.
        scorer: any `Scorer`.
        every: steps between two panels.
        n: samples; 64, or as many as `reference`, by default.
        seed: of the generator.
        reference: the ground truths, for scorers that need them: `(n, C, H, W)`, or a list of images of several sizes.
            `sample` is then asked for all n at once.
        show: at most so many samples on the ranked sheet (of more the best and the worst half of `show`), and half as
            many, before and after, on a sheet of regressions. A dozen is read on TensorBoard's cards.
        names: of the samples, such as the files of a validation set; "#0", "#1" and so on by default.
        name: in the tags; the scorer's name by default.
        folder: also write `ranked_{step:08d}.png` and `regressions_{step:08d}.png` there.
        thumbnail: larger images are shrunk to this for the state, and the part beside them has this side; the ranked
            sheet shows both at up to 120 pixels.

    Attributes:
        last: `{"step", "mean", "worst", "best", "n"}` of the last panel and, from the second on, "fell"; scores as the
            scorer gives them, without scores that are not finite.

    Example:
        >>> from qa_hooks.scorers import FunctionScorer
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.Unflatten(1, (1, 8, 8)), torch.nn.Sigmoid())
        >>> contrast = FunctionScorer(lambda x: x.std((1, 2, 3)), name="contrast", higher_is_better=True)
        >>> panel = ScorePanel(lambda n, generator: net(torch.randn(n, 8, generator=generator)), contrast, every=500)
    """

    shared_out = False
    measures = ("mean", "worst", "best")

    def __init__(
        self,
        sample: Sample,
        scorer: Scorer,
        *,
        every: int = 1000,
        n: int | None = None,
        seed: int = 0,
        reference: Any = None,
        show: int = 2 * CARD_COLUMNS,
        names: Sequence[str] | None = None,
        name: str | None = None,
        folder: str | Path | None = None,
        thumbnail: int = 96,
    ) -> None:
        check_scorer(scorer)
        check_reference(scorer, reference, "the ground truths of the samples")
        n = 64 if n is None and reference is None else n
        options: dict[str, Any] = {"n": n, "seed": seed, "value_range": scorer.value_range, "truths": reference}
        super().__init__(sample, name or scorer.name, every=every, least=2, **options)
        self.scorer, self.show = scorer, check_count("show", show, least=4)
        self.names = [f"#{index}" for index in range(self.n)] if names is None else list(map(str, names))
        if len(self.names) != self.n:
            raise ValueError(f"names has {len(self.names)} for {plural(self.n, 'sample')}")
        self.thumbnail = check_count("thumbnail", thumbnail, least=8)
        self.folder = picture_folder(folder)
        self.last: dict[str, float] = {}
        self._panels: dict[str, dict[str, Any]] = {}  # "last" and "best": step, goodness (n,) and thumbnails

    def higher_is_better(self, key: str) -> bool | None:
        return False if key == "fell" else self.scorer.higher_is_better

    @cached_property
    def spec(self) -> str:
        """Which measure `.last` is of."""
        return scorer_spec(self.scorer, self.known_truths)

    def local(self, ctx: Context) -> dict[str, Any] | None:
        pictures: list[Tensor] = []
        scores, refusal = list[Tensor](), ""
        for _, images, beside in self.pairs(ctx):
            pictures += to_uint8(images, self.value_range).cpu()
            own, refused = score_each(self.scorer, images, **beside)
            scores.append(own)
            refusal = refusal or first_refusal(refused)
        if not pictures:
            return None
        now: dict[str, Any] = {"step": ctx.step, "pictures": pictures}
        now["scores"] = torch.cat(scores)
        self.finite(now["scores"], refusal, "score")
        now["goodness"] = now["scores"] if self.scorer.higher_is_better else -now["scores"]
        now["sheets"] = {"ranked": self._ranked(now)}
        if self._panels:
            last, best = self._panels["last"], self._panels["best"]
            is_best = best["step"] == last["step"]
            name = "the last and best panel" if is_best else "the last panel"
            now["sheets"]["regressions"] = self._regressions(now, last, name)
            if not is_best:
                now["sheets"]["since_best"] = self._regressions(now, best, "the best panel")
        for what, sheet in now["sheets"].items():
            if self.folder is not None:
                save_image(sheet, self.folder / f"{what}_{ctx.step:08d}.png")
        return now

    def reduce(self, ctx: Context, part: dict[str, Any] | None) -> None:
        values: dict[str, float] = {}
        if part is not None:
            values = self._numbers(part)
            self._keep(part)
        self.last = {"step": ctx.step, **shared(values)}
        if part is not None:
            for what, sheet in part["sheets"].items():
                ctx.writer.image(make_tag("images", self.name, what), sheet, ctx.step)
        if "fell" in self.last:
            tag = make_tag("eval", self.name, "fell")
            what = "share of images whose score fell since the last panel"
            self.describe(ctx, tag, meaning_of(self.scorer, self.spec, what, change=True), "fell")
            ctx.writer.scalar(tag, self.last["fell"], ctx.step)

    def state_dict(self) -> dict[str, Any]:
        panels = {name: dict(panel) for name, panel in self._panels.items()}
        return {"last": dict(self.last), "n": self.n, "seed": self.seed, "panels": panels}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.last, self._panels = dict(state["last"]), {}
        if (state["n"], state["seed"]) == (self.n, self.seed):
            self._panels = {name: dict(panel) for name, panel in state["panels"].items()}
        else:
            warn(
                f"{self.state_key} was saved with n={state['n']}, seed={state['seed']} and has n={self.n}, "
                f"seed={self.seed} now: these are other samples, so the next panel has none before it"
            )

    def _numbers(self, now: dict[str, Any]) -> dict[str, float]:
        finite = now["goodness"][torch.isfinite(now["goodness"])]
        sign = 1 if self.scorer.higher_is_better else -1
        numbers = {name: sign * float(value) for name, value in
                   (("mean", finite.mean()), ("worst", finite.min()), ("best", finite.max()))}  # fmt: skip
        numbers["n"] = finite.numel()
        if self._panels:
            numbers["fell"] = float((_change(self._panels["last"], now) < 0).double().mean())
        return numbers

    def _keep(self, now: dict[str, Any]) -> None:
        kept = {
            "step": now["step"],
            "goodness": now["goodness"],
            "thumbnails": thumbnails(now["pictures"], self.thumbnail),
        }
        places = {
            index: most_detailed(picture, self.thumbnail)
            for index, picture in enumerate(now["pictures"])
            if max(picture.shape[1:]) > self.thumbnail
        }
        if places:
            squares = [square_at(now["pictures"][index], place, self.thumbnail) for index, place in places.items()]
            kept["squares"] = on_one_ground(squares)
            rows = [[index, *place] for index, place in places.items()]
            kept["places"] = torch.tensor(rows, dtype=torch.int64, device="cpu")
        self._panels["last"] = kept
        if "best" not in self._panels or _better(kept["goodness"], self._panels["best"]["goodness"]):
            self._panels["best"] = kept

    def _ranked(self, now: dict[str, Any]) -> Tensor:
        order = torch.where(torch.isnan(now["goodness"]), -math.inf, now["goodness"]).argsort(descending=True).tolist()
        title = f"step {now['step']}: {axis_label(self.scorer)}"
        if self.n <= self.show:
            parts = [(title, order)]
        else:
            half = self.show // 2
            parts = [(f"{title}, the best {half} of {self.n}", order[:half]), (f"the worst {half}", order[-half:])]
        pictures: list[Tensor | None] = []
        labels = []
        for heading, chosen in parts:
            pictures += [None, *(now["pictures"][index] for index in chosen)]
            labels += [heading, *(f"{self.names[index]}\n{_text(now['scores'][index])}" for index in chosen)]
        return card_sheet(pictures, labels)

    def _regressions(self, now: dict[str, Any], before: dict[str, Any], name: str) -> Tensor:
        sign = 1 if self.scorer.higher_is_better else -1
        names, change, after = self.names, _change(before, now), thumbnails(now["pictures"], self.thumbnail)
        fell = int((change < 0).sum())
        chosen = change.argsort()[: min(fell or CARD_COLUMNS, max(1, self.show // 2))].tolist()
        order = "most first" if fell else "least risen first"
        parts = self._parts(now, before)
        pictures: list[Tensor | None] = []
        squares: list[Tensor | None] = []
        labels: list[str] = []
        for start in range(0, len(chosen), CARD_COLUMNS):
            row = chosen[start : start + CARD_COLUMNS]
            pictures += [None, *(before["thumbnails"][index] for index in row)]
            for time in (0, 1):
                squares += [None, *(parts[index][time] if index in parts else None for index in row)]
            labels += [
                "" if start else f"{fell or 'none'} of {self.n} fell since {name}, step {before['step']}; {order}"
            ]
            labels += [f"{names[index]}\n{_text(sign * before['goodness'][index])}" for index in row]
            pictures += [None, *(after[index] for index in row)]
            labels += [
                f"step {now['step']}, now{', and the same parts' * bool(parts)}",
                *(f"{self.names[index]}\n{_text(now['scores'][index])}" for index in row),
            ]
        return card_sheet(pictures, labels, squares)

    def _parts(self, now: dict[str, Any], before: dict[str, Any]) -> dict[int, tuple[Tensor, Tensor]]:
        """One part of a large image before and after, in its own pixels, by the image's number."""
        places = before["places"].tolist() if "places" in before else []
        return {
            index: (square, square_at(now["pictures"][index], place, self.thumbnail))
            for (index, *place), square in zip(places, before.get("squares", ()), strict=True)
        }


def _change(before: dict[str, Any], now: dict[str, Any]) -> Tensor:
    """How each sample's goodness moved; from finite to not finite is a fall without limit, the reverse a rise."""
    old, new = (torch.where(torch.isnan(panel["goodness"]), -math.inf, panel["goodness"]) for panel in (before, now))
    return torch.where(old == new, 0.0, new - old)


def _better(goodness: Tensor, best: Tensor) -> bool:
    """Whether a panel is better than the best one; it must have scores where that one has."""
    now, then = torch.isfinite(goodness), torch.isfinite(best)
    if bool((then & ~now).any()):
        return False
    return bool((now & ~then).any()) or float(goodness[then].mean()) > float(best[then].mean())


def _text(score: Any) -> str:
    return f"{float(score):#.3g}".removesuffix(".")

"""The alarm on reward hacking: images that go where a model goes that raises its score without better images.

What is measured, and when it is an alarm, is in `qa_hooks.rewards.measures` and `qa_hooks.rewards.alarm_rule`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from qa_hooks._base.checks import check_call, check_count
from qa_hooks._base.processes import shared, together
from qa_hooks.callbacks.callback import Context, Monitor, TrainingStopped
from qa_hooks.callbacks.pictures import picture_folder, write_picture
from qa_hooks.callbacks.reward_guard.images import GuardImages
from qa_hooks.callbacks.reward_guard.rows import gathered_rows, in_order, joined_rows
from qa_hooks.callbacks.reward_guard.sheet import alarm_sheet
from qa_hooks.callbacks.reward_guard.wording import ScorePath, alarm_words, quiet_words
from qa_hooks.features import FeatureExtractor
from qa_hooks.images import Range
from qa_hooks.rewards.alarm_rule import AlarmRule, Finding, look_severity
from qa_hooks.rewards.broken import WORDS, broken_message
from qa_hooks.rewards.levels import Levels, look_values
from qa_hooks.rewards.measures import CHANGE, Rows
from qa_hooks.scorers.scorer import Scorer
from qa_hooks.sources.batches import Source
from qa_hooks.sources.samples import Sample, SampleSet
from qa_hooks.writers import make_tag

LOG = logging.getLogger("qa_hooks")

ACTIONS = ("warn", "stop", "scale")


class RewardGuard(Monitor):
    """Watches a run that is optimised for a score: rings when its images move away as they do by an exploited score.

    It needs only images, and sees more with each of these:

    - `real`: what is normal? Without real images the first look is the reference.
    - `base`: where did the run begin? With `real` and `base`, brightness, contrast, colours, details and the distance
      between samples may go from what the base makes to what is real, and not far beyond either. This finds most: give
      both. With `base="start"` it is the run's own first look.
    - `scorer`: is the score above the score of real images? `heldout`: do scores that are not optimised follow?

    Whatever looks odd at the first look is taken as normal for this model: start from a sound one.

    **When it rings**: each measurement has a limit, and a severity that is 1 at the limit and 2 one width beyond it. An
    alarm is two families of measurements at 1 (docs/guards.md), or one at 2, on `patience` looks in a row. `drift`,
    `change_peak` and the gain over held-out scores never ring alone: honest training moves images, too. A look's
    "severity" follows the rule: 1 is suspicious. A score is called exploited only near or above what real images score.

    Measured on runs that its limits were not chosen on (docs/guards.md): given `real` and `base` it found 81 of 88
    hacks before SSIM or recall had fallen by a fifth, given `real` alone 49; no alarm in 105 honest runs (Wilson's
    95 % interval 0 to 4 %). Without `real`, honest training that is far from its end looks like an exploit.

    - "warn": each kind of alarm once, with its numbers.
    - "stop": warns and raises `TrainingStopped` out of `optimizer.step()` where attached, else sets
      `hooks.should_stop`; again at each look, so a resumed run stops, too.
    - "scale": warns and calls `scale(step)` on every process, at an alarm and again every `patience` looks while it
      lasts. With LoRA it is a function that keeps a factor and calls `integrations.peft.scale_lora(model, factor)`.

    Samples that are black, of one colour or not finite are named in a warning at the first look that sees them. Writes
    `qa_eval/{name}/{kind}` for what is measured, `/severity` of the look, `/alarms`, how many there have been, and at
    an alarm the sheet `qa_images/{name}/alarm` of the worst samples.

    Args:
        scorer: the score that is optimised. The guard reads its goodness, so a lower-is-better scorer works as well.
        heldout: scores that are not optimised. Give two or more: a single one has risen while fidelity was lost.
        base: the model before fine-tuning: a function like `sample`; a network with LoRA (its adapter is switched off
            while `sample` runs); with `images=`, the name of the base images; or "start", the run's first look, after
            the first optimizer step: where one step changes much, give another. It is asked once; at most 128 x 128
            pixels of each image are kept, also in the state. None: a run from random weights, which must change.
        real_level: the score of real images, in the scorer's own direction; by default the mean score of `real`.
        action: "warn", "stop" or "scale".
        sample: `sample(n, generator) -> (n, C, H, W)`, as in `SampleGrid`; or
        images: the name under which the loop hands images over; from its due step on a look collects `n` of them, from
            all processes together.
        real: a tensor, folder, dataset or loader of real images of the samples' size, at least 8; up to 512 are used.
        scale: called as `scale(step)` when `action="scale"`.
        every: steps between two looks.
        n: images of a look, at least 8.
        batch_size, seed: batch size and seed of the samples; every look makes the same samples.
        patience: looks in a row that must be suspicious, as above.
        extractor: makes the features for diversity and drift.
        value_range: value range of the images; by default the scorers' range.
        name: the name in the tags.
        folder: also write the sheet there.

    Attributes:
        last: what the last look measured: "step", each value, "severity" and "alarms"; scores under "score",
            "heldout/{name}"; under "change/{kind}" how far a value is from the base's.
        found: measurements beyond their limit at the last look, worst first, alarm or not, each with its own severity.
        alarms: looks that ended in an alarm.
        looks: what looks at the images; it has the sampler, the base and the scorers.

    Raises:
        TypeError, ValueError: arguments that do not fit.

    Example:
        >>> import torch
        >>> net = torch.nn.Conv2d(3, 3, 3, padding=1)
        >>> inputs, real = torch.rand(2, 32, 3, 32, 32)
        >>> guard = RewardGuard(sample=lambda n, generator: net(inputs[:n]), real=real, n=32, every=50)
    """

    def __init__(
        self,
        scorer: Scorer | None = None,
        heldout: Sequence[Scorer] = (),
        base: Sample | nn.Module | str | None = None,
        real_level: float | None = None,
        action: str = "warn",
        *,
        sample: Sample | None = None,
        images: str | None = None,
        real: Source | None = None,
        scale: Callable[[int], Any] | None = None,
        every: int = 50,
        n: int = 64,
        batch_size: int = 32,
        seed: int = 0,
        patience: int = 2,
        extractor: FeatureExtractor | nn.Module | str | dict[str, Any] = "random",
        value_range: Range | None = None,
        name: str = "reward_guard",
        folder: str | Path | None = None,
    ) -> None:
        super().__init__(every=every)
        self.looks = GuardImages(
            scorer, heldout, base, sample=sample, images=images, real=real, n=n, batch_size=batch_size, seed=seed,
            extractor=extractor, value_range=value_range,
        )  # fmt: skip
        if action not in ACTIONS:
            raise ValueError(f"action must be one of {ACTIONS}, got {action!r}")
        if (action == "scale") != callable(scale):
            raise ValueError('action="scale" and scale=, a callable scale(step), go together')
        if scale is not None:
            check_call("scale", scale, "scale(step)", 1)
        if real_level is not None and (scorer is None or not math.isfinite(real_level)):
            raise ValueError(f"real_level is the finite score of real images by scorer=, got {real_level!r}")
        if scorer is not None and real_level is not None and not scorer.higher_is_better:
            real_level = -real_level
        self.real_level, self.action, self.scale = real_level, action, scale
        self.acts = action != "warn"
        self.patience, self.name, self.folder = check_count("patience", patience), name, picture_folder(folder)
        self.last: dict[str, float] = {}
        self.found: list[Finding] = []
        self.alarms = 0
        self._told: list[str] = []
        self._quiet = 0  # looks in a row with measurements beyond their limits that made no alarm
        self._real: Rows = {}
        self._rule: AlarmRule | None = None
        self._waiting: Rows = {}  # what is there of a look by `images=`, of all processes
        self._loaded: dict[str, Any] = {}

    def due(self, step: int) -> bool:
        """Also due while a look is still collecting images, and on the step that completes it."""
        return super().due(step) or bool(self._waiting) or step == self.last.get("step")

    def asks(self, ctx: Context) -> list[SampleSet]:
        return self.looks.asks(ctx)

    def functions(self) -> list[Callable[..., Any]]:
        return self.looks.functions()

    def on_train_start(self, ctx: Context) -> None:
        """Measure the real images now, so that this time is not counted in the looks."""
        if ctx.rank != 0:
            return
        try:
            self._real = self.looks.measure_real(ctx)
        except Exception as error:
            if ctx.world_size == 1:
                raise
            self._failure = error  # the other processes wait in the first look, and are told there

    def on_step_end(self, ctx: Context) -> None:
        before = self.alarms
        super().on_step_end(ctx)
        if self.alarms == before:
            return
        if self.action == "stop":
            raise TrainingStopped(f"{self.state_key}: {self._words()}")
        if self.scale is not None:
            if ctx.samples is not None:
                ctx.samples.forget()  # monitors after this one see what has been scaled
            with together():
                self.scale(ctx.step)

    def local(self, ctx: Context) -> Rows:
        if self._waiting and self.looks.name not in ctx.images:
            return {}  # steps without images pass
        return self.looks.rows(ctx, comparing=self._rule is None)

    def reduce(self, ctx: Context, part: Rows) -> None:
        rows = in_order(gathered_rows(part))
        if self.looks.sample is None:
            rows, self._waiting = joined_rows(self._waiting, rows), {}
            if len(rows["features"]) < self.looks.n:
                self._waiting = rows
                return
        pictures: Rows = {key: rows.pop(key) for key in ("pictures", "bases") if key in rows}
        if "kept" in rows:
            self.looks.first = rows.pop("kept")
        rule = self._rule if self._rule is not None else self._begin(ctx, rows)
        values: dict[str, float] = {}
        with together():
            if ctx.rank == 0:
                values = look_values(rows, rule.levels)
        values = shared(values)
        self._tell_broken(ctx, values, len(rows["features"]))
        alarm = rule.look(values if self.looks.base is not None else _of_now(values))
        self.found = rule.found
        self.alarms += bool(alarm)
        self.last = {"step": ctx.step, **values, "severity": look_severity(rule.found), "alarms": self.alarms}
        for key, value in _of_now(self.last).items():
            if key != "step" and math.isfinite(value):
                ctx.writer.scalar(make_tag("eval", self.name, key), value, ctx.step)
        if alarm:
            if ctx.rank == 0:
                sheet = alarm_sheet(self.found, rows, pictures["pictures"], pictures.get("bases"))
                write_picture(ctx, self.folder, self.name, "alarm", sheet)
            if self._new([finding.kind for finding in self.found]) and ctx.rank == 0:
                self.raise_alarm(ctx, self._words())
            if self.action == "scale":
                rule.waited = 0  # what was scaled gets its time
        self._quiet = self._quiet + 1 if self.found and self.last["severity"] < 1 else 0
        if self._quiet >= self.patience and self._new(["quiet"]) and ctx.rank == 0:
            LOG.warning("%s, step %d: %s", self.state_key, ctx.step, quiet_words(self.found, self.patience))

    def _begin(self, ctx: Context, rows: Rows) -> AlarmRule:
        """Compute the reference levels at the first look. All ranks hold the numbers, only rank 0 the features."""
        levels, loaded = Levels({}, {}, {}), self._loaded.get("levels")
        with together():
            if ctx.rank == 0:
                source = "real" if self._real else "start"
                own = loaded or vars(Levels.of(self._real or rows, len(rows["features"]), source=source))
                levels = Levels(**own)
        numbers = shared({key: getattr(levels, key) for key in ("level", "width", "deviation", "source", "error")})
        levels = Levels(**numbers, features=levels.features)
        unjudged = () if self.looks.base is not None else ("drift", "change_peak")
        self._rule = AlarmRule(levels, real_level=self.real_level, patience=self.patience, unjudged=unjudged)
        if self._loaded.get("rule"):
            self._rule.load_state_dict(self._loaded["rule"])
        self._loaded = {}
        return self._rule

    def _tell_broken(self, ctx: Context, values: dict[str, float], n: int) -> None:
        """Name images that show nothing, each kind once; no reward is needed to see them, and no second look."""
        new = self._new([f"broken {key}" for key in WORDS if values.get(key)])
        message = broken_message({key: values[key] for key in WORDS if f"broken {key}" in new}, n)
        if message and ctx.rank == 0:
            self.raise_alarm(ctx, message)

    def _new(self, what: list[str]) -> list[str]:
        """What of this has not been told yet; from here on it has."""
        new = [name for name in what if name not in self._told]
        self._told += new
        return new

    def _words(self) -> str:
        path, rule, looks = ScorePath(), self._rule, self.looks
        if rule is not None:
            deviation = rule.levels.deviation.get("score", 0.0) if rule.levels.source == "real" else 0.0
            before, now = rule.start.get("score", math.nan), self.last.get("score", math.nan)
            path = ScorePath(before, now, rule.real_level, deviation)
        return alarm_words(self.found, looks.scorers.get("score"), path, base=looks.base, patience=self.patience)

    def state_dict(self) -> dict[str, Any]:
        rule, levels = self._loaded.get("rule", {}), self._loaded.get("levels", {})
        if self._rule is not None:
            rule, levels = self._rule.state_dict(), {}
            if self._rule.levels.source == "start":  # real images are measured again
                levels = dict(vars(self._rule.levels))
        state = {"rule": rule, "levels": levels, "first": self.looks.first, "last": dict(self.last)}
        state["waiting"] = dict(self._waiting)
        return {**state, "alarms": self.alarms, "told": list(self._told), "n": self.looks.n, "seed": self.looks.seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        looks = self.looks
        if looks.sample is not None and (state["n"], state["seed"]) != (looks.n, looks.seed):
            raise ValueError(
                f"{self.state_key} was saved with n={state['n']}, seed={state['seed']} and has n={looks.n}, "
                f"seed={looks.seed} now: these are other samples and cannot be compared; give it another name="
            )
        self._rule, self._loaded = None, {"rule": state["rule"], "levels": state["levels"]}
        looks.first, looks.first_rows, self.last = state["first"], {}, dict(state["last"])
        self._waiting = dict(state["waiting"])
        self.alarms, self._told = int(state["alarms"]), list(state["told"])


def _of_now(values: dict[str, float]) -> dict[str, float]:
    """Without what has changed against the base."""
    return {key: value for key, value in values.items() if not key.startswith(CHANGE)}

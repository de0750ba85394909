"""Every pipeline that can be built here against finite differences: is its gradient right, or refused with a reason?

    python -m benchmarks pipelines [--only NAME ...] [--out runs/pipelines.jsonl] [--table docs/pipelines.md]

For each pipeline the gradient of a function of its images by `grad_last_steps`, at k = 1, 2 and all steps, is compared
with the slope of the same function along two directions. The truth uses nothing of ours: it calls the pipeline as it
is, for NumPy images, with the outputs of the first steps replayed from a recording, while the weights move. All is
float64.
Results are appended to a file, and rows that it has are not measured again, so that the program can be stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import inspect
import json
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.tiny_pipelines import kandinsky, others, transformers, unets
from benchmarks.tiny_pipelines.family import Family, build
from qa_hooks.integrations.diffusers import grad_last_steps

MODULES = (unets, kandinsky, transformers, others)
FAMILIES: dict[str, Family] = {name: family for module in MODULES for name, family in module.FAMILIES.items()}
TOLERANCE = 5e-3  # some schedulers and networks compute in float32
WIDTHS = (1e-2, 2e-3, 4e-4, 1e-1)  # of the differences: wide ones meet clamped pixels, narrow ones rounding
TWICE = ("HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler")
NAMES = ("unet", "transformer", "decoder")


class Row(NamedTuple):
    """One line of the table; `outcome` is "equal", "refused", "not built" or "WRONG"."""

    family: str
    pipeline: str
    scheduler: str
    outcome: str
    note: str


def schedulers() -> dict[str, Any]:
    """Those that Stable Diffusion is tried with besides its own."""
    import diffusers as d

    spaced = {"timestep_spacing": "trailing", "steps_offset": 1}
    return {
        "DDIM, leading": d.DDIMScheduler(clip_sample=False, steps_offset=1),
        "DDPM": d.DDPMScheduler(clip_sample=False, **spaced),
        "PNDM": d.PNDMScheduler(skip_prk_steps=True, steps_offset=1),
        "LMS": d.LMSDiscreteScheduler(steps_offset=1),
        "Euler": d.EulerDiscreteScheduler(steps_offset=1),
        "Euler, Karras": d.EulerDiscreteScheduler(steps_offset=1, use_karras_sigmas=True),
        "Euler ancestral": d.EulerAncestralDiscreteScheduler(steps_offset=1),
        "Heun": d.HeunDiscreteScheduler(steps_offset=1),
        "KDPM2": d.KDPM2DiscreteScheduler(steps_offset=1),
        "KDPM2 ancestral": d.KDPM2AncestralDiscreteScheduler(steps_offset=1),
        "DPM++ 2M": d.DPMSolverMultistepScheduler(steps_offset=1),
        "DPM++ 2M SDE": d.DPMSolverMultistepScheduler(steps_offset=1, algorithm_type="sde-dpmsolver++"),
        "DPM single step": d.DPMSolverSinglestepScheduler(),
        "DEIS": d.DEISMultistepScheduler(steps_offset=1),
        "UniPC": d.UniPCMultistepScheduler(steps_offset=1),
        "SASolver": d.SASolverScheduler(steps_offset=1),
        "LCM": d.LCMScheduler(steps_offset=1),
        "TCD": d.TCDScheduler(steps_offset=1),
        "PNDM, last step without the network": d.PNDMScheduler(skip_prk_steps=True),
    }


def planned() -> Iterator[tuple[str, str, str, Any]]:
    """Family, pipeline, name of the scheduler, scheduler (None: the family's)."""
    for family, members in FAMILIES.items():
        for name in members.members:
            yield family, name, "", None
    for label, scheduler in schedulers().items():
        yield "Stable Diffusion", "StableDiffusionPipeline", label, scheduler


def value_of(images: Any) -> Any:
    """A smooth function of images in [0, 1], different in each pixel; `(N, C, H, W)`, or arrays `(N, H, W, C)`."""
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(images).movedim(-1, 1)
    images = images.double()
    grid = torch.linspace(-1, 1, images[0].numel(), dtype=torch.float64).view_as(images[0])
    return (images * grid).flatten(1).sum(1).sin().mean() + images.square().mean()


class Replay:
    """The pipeline as it is, with the outputs of its first steps taken from a recording of an earlier call."""

    def __init__(self, pipe: Any, call: dict[str, Any]) -> None:
        self.pipe, self.call = pipe, call
        self.networks = {name: getattr(pipe, name) for name in NAMES if getattr(pipe, name, None) is not None}
        self.recorded: list[Any] = []
        self.steps: list[int] = []  # calls of scheduler.step before each call of a denoiser
        self.frozen = 0  # calls of scheduler.step during which the recording is used
        with self._watched(record=True):
            self.sample()

    def sample(self) -> float:
        torch.manual_seed(0)
        output = (
            {"output_type": "np"} if "output_type" in inspect.signature(type(self.pipe).__call__).parameters else {}
        )
        return float(value_of(self.pipe(**arguments(self.call), **output).images))

    def value(self, frozen: int) -> float:
        """The function of the images with all calls before scheduler step `frozen` replayed."""
        self.frozen = frozen
        with self._watched(record=False):
            return self.sample()

    @contextlib.contextmanager
    def _watched(self, *, record: bool) -> Iterator[None]:
        step, self.made, calls = self.pipe.scheduler.step, 0, iter(range(10**6))

        def counted(*args: Any, **kwargs: Any) -> Any:
            result = step(*args, **kwargs)
            self.made += 1
            return result

        def replacing(own: Any) -> Any:
            def forward(*args: Any, **kwargs: Any) -> Any:
                index = next(calls)
                if not record and self.made < self.frozen:
                    return copy.deepcopy(self.recorded[index])
                output = own(*args, **kwargs)
                if record:
                    self.recorded.append(copy.deepcopy(output))
                    self.steps.append(self.made)
                return output

            forward.__signature__ = inspect.signature(own)  # type: ignore[attr-defined]
            return forward

        counted.__signature__ = inspect.signature(step)  # type: ignore[attr-defined]
        self.pipe.scheduler.step = counted
        for network in self.networks.values():
            network.forward = replacing(network.forward)
        try:
            yield
        finally:
            del self.pipe.scheduler.step
            for network in self.networks.values():
                del network.forward

    def sizes(self) -> list[int]:
        """How many calls of scheduler.step each step has, by what is known of the scheduler."""
        kind = type(self.pipe.scheduler).__name__
        if kind in TWICE:
            return [2] * (self.made // 2) + [1] * (self.made % 2)
        if kind == "PNDMScheduler" and self.made > 1:
            return [2] + [1] * (self.made - 2)
        return [1] * self.made


def arguments(call: dict[str, Any]) -> dict[str, Any]:
    """Of one call: pipelines change what they are given."""
    return {**copy.deepcopy(call), "generator": torch.Generator().manual_seed(3)}


def errors(pipe: Any, call: dict[str, Any]) -> dict[str, float]:
    """For k = 1, 2 and all steps: how far the gradient is from the slope, relative to its length, at worst."""
    truth = Replay(pipe, call)
    sizes = truth.sizes()
    parameters = [p for network in truth.networks.values() for p in network.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in parameters]
    random = torch.Generator().manual_seed(4)
    found = {}
    for k in dict.fromkeys((1, min(2, len(sizes)), len(sizes))):
        for p in parameters:
            p.grad = None
        torch.manual_seed(0)
        with grad_last_steps(pipe, k):
            value_of(pipe(**arguments(call), output_type="pt").images).backward()
        gradient = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        length = norm(gradient)
        other = [torch.randn(p.shape, generator=random, dtype=p.dtype) for p in parameters]
        scale = length / norm(other)
        worst, frozen = 0.0, sum(sizes[: len(sizes) - k])
        for direction in (gradient, [g + scale * r for g, r in zip(gradient, other, strict=True)]):
            unit = [part / norm(direction) for part in direction]
            expected = sum(float((a * b).sum()) for a, b in zip(gradient, unit, strict=True))
            off = float("inf")
            for width in WIDTHS:
                if off > TOLERANCE / 2:
                    w = width / max(1, length)
                    slopes = [slope(truth, parameters, start, unit, frozen, part) for part in (2 * w, w)]
                    off = min(off, abs(expected - (4 * slopes[1] - slopes[0]) / 3) / length)
            worst = max(worst, off)
        found[f"k={k}"] = worst
    return found


def slope(
    truth: Replay, parameters: list[Any], start: list[Tensor], unit: list[Tensor], frozen: int, w: float
) -> float:
    values = []
    for sign in (1, -1, 0):
        with torch.no_grad():
            for p, origin, step in zip(parameters, start, unit, strict=True):
                p.copy_(origin + sign * w * step)
        values.append(truth.value(frozen) if sign else 0.0)
    return (values[0] - values[1]) / (2 * w)


def norm(parts: list[Tensor]) -> float:
    return float(torch.cat([part.flatten() for part in parts]).norm())


def measure(family: str, name: str, label: str, scheduler: Any) -> Row:
    """One row: whatever happens is its outcome."""
    try:
        pipe, call = build(FAMILIES[family], name, scheduler)
        Replay(pipe, call)
    except Exception as error:
        return Row(family, name, label, "not built", short(error))
    label = label or type(pipe.scheduler).__name__
    try:
        found = errors(pipe, call)
    except Exception as error:
        ours = "integrations" in traceback.extract_tb(error.__traceback__)[-1].filename
        return Row(family, name, label, "refused" if ours else "WRONG", short(error))
    right = all(error < TOLERANCE for error in found.values())
    note = ", ".join(f"{k} {error:.0e}" for k, error in found.items())
    return Row(family, name, label, "equal" if right else "WRONG", note)


def short(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160] if str(error).strip() else ''}"


def all_pipelines() -> list[str]:
    """All pipelines of the installed Diffusers."""
    import diffusers
    from diffusers import DiffusionPipeline

    kinds = {name: getattr(diffusers, name) for name in dir(diffusers) if name.endswith("Pipeline")}
    return [name for name, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, DiffusionPipeline)]


def write_table(rows: list[Row], path: Path) -> None:
    import diffusers

    counts = {kind: sum(row.outcome == kind for row in rows) for kind in ("equal", "refused", "not built", "WRONG")}
    right = len({row.pipeline for row in rows if row.outcome == "equal"})
    rest = sorted(set(all_pipelines()) - {row.pipeline for row in rows})
    lines = [
        "# Gradients through pipelines, against finite differences",
        "",
        f"Made by `python -m benchmarks pipelines` with Diffusers {diffusers.__version__}: tiny random networks in "
        "float64, a function of the images, its gradient by `grad_last_steps` at k = 1, 2 and all steps, compared with "
        "its slope along the gradient and along a direction that is half random. The number is the error relative to "
        "the gradient's length; some schedulers and networks compute in float32.",
        "",
        f"{right} pipelines are right; {', '.join(f'{count} rows {kind}' for kind, count in counts.items())}.",
        "",
        "| family | pipeline | scheduler | outcome | error, or what is said |",
        "|---|---|---|---|---|",
    ]
    lines += [f"| {' | '.join(part.replace('|', '/') for part in row)} |" for row in rows]
    lines += ["", f"Not tried (videos, sound, no tiny configuration here, or deprecated): {', '.join(rest)}.", ""]
    path.write_text("\n".join(lines), encoding="utf-8")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], help="pipelines or families with one of these words")
    parser.add_argument("--again", nargs="+", default=[], help="outcomes to measure anew, such as WRONG")
    parser.add_argument("--out", type=Path, default=Path("runs/pipelines.jsonl"))
    parser.add_argument("--table", type=Path, help="write the table of all rows in --out to this file")
    options = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    lines = options.out.read_text(encoding="utf-8").splitlines() if options.out.exists() else []
    rows = {(row.pipeline, row.scheduler): row for row in (Row(*json.loads(line)) for line in lines)}
    built = {row.pipeline for row in rows.values() if row.scheduler}
    rows = {key: row for key, row in rows.items() if row.scheduler or row.pipeline not in built}  # built since
    done = {key for key, row in rows.items() if row.outcome not in options.again}
    for family, name, label, scheduler in planned():
        wanted = not options.only or any(word.lower() in f"{family} {name}".lower() for word in options.only)
        if not wanted or any(key[0] == name and (key[1] == label or not label) for key in done):
            continue
        row = measure(family, name, label, scheduler)
        rows[row.pipeline, row.scheduler] = row
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{row.outcome:10} {row.pipeline} {row.scheduler}: {row.note}", flush=True)
    if options.table:
        write_table(list(rows.values()), options.table)

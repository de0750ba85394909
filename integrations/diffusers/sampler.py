"""Diffusers: a `sample(n, generator)` from any pipeline, for monitors, comparisons and tables.

sample = PipelineSampler(pipeline, prompts, batch_size=8, num_inference_steps=25)
hooks = Hooks([SampleGrid(sample, every=500), ScoreMonitor(scorer, sample=sample)], log_dir="runs/a")
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qa_hooks._base.checks import check_count
from qa_hooks._base.isolation import isolated
from qa_hooks._base.random import mixed_key
from qa_hooks.images import as_tensor, to_unit

CONDITIONS = ("prompt", "class_labels")  # under which names pipelines take one condition for each image
OURS = ("generator", "output_type", "return_dict", "num_images_per_prompt", "latents", "callback_on_step_end")
SLACK = 1e-3


class PipelineSampler:
    """Images of a pipeline as a function `sample(n, generator)`, the same for the same generator.

    Each image has a generator of its own, so it does not depend on `batch_size`. Per call a shallow copy of the
    pipeline is used, with a fresh copy of the scheduler (which pipelines alter), no progress bar and no safety checker
    (which blackens what it flags, and would be measured instead of the model); yours stays as it is, and so does the
    state of random number generators, training flags and grad mode.

    Prompts are cycled. A call for a whole number of cycles begins with the first prompt, any other with one drawn from
    the generator, so that all have their turn when a monitor asks for blocks.

    Args:
        pipeline: a Diffusers pipeline, unconditional (DDPM, DDIM, ...), of text, of class labels (DiT), or of tensors.
        prompts: texts, or whole numbers for class labels; None for an unconditional pipeline, and where the conditions
            are tensors with a row for each, given as options (`image_embeds=`, `prompt_embeds=`): these are cycled, as
            are tensors with a row for each prompt (`image=`, `control_image=`).
        seed: of calls without a generator; with one it is mixed in.
        batch_size: images at a time.
        autocast: a dtype to run the pipeline under autocast in, for parts of several precisions (float32 is none); an
            autocast outside does not reach in.
        call_options: of the pipeline's call, for example `num_inference_steps=25, guidance_scale=7.5`; a text, such as
            `negative_prompt`, is repeated for each image.

    Raises:
        TypeError: no pipeline.
        ValueError: missing or needless prompts, options that the pipeline does not have or that are set here.

    Example:
        >>> from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
        >>> unet = UNet2DModel(8, 1, 1, block_out_channels=(8,), down_block_types=("DownBlock2D",),
        ...                    up_block_types=("UpBlock2D",), norm_num_groups=4, layers_per_block=1)
        >>> sample = PipelineSampler(DDIMPipeline(unet, DDIMScheduler()), num_inference_steps=2)
        >>> sample(3, torch.Generator().manual_seed(0)).shape
        torch.Size([3, 1, 8, 8])
    """

    def __init__(
        self,
        pipeline: Any,
        prompts: Sequence[str] | Sequence[int] | None = None,
        *,
        seed: int = 0,
        batch_size: int = 8,
        autocast: torch.dtype | None = None,
        **call_options: Any,
    ) -> None:
        if not (callable(pipeline) and hasattr(pipeline, "components")):
            raise TypeError(f"pipeline must be a Diffusers pipeline, got {type(pipeline).__name__}")
        parameters = inspect.signature(type(pipeline).__call__).parameters
        self.condition = next((name for name in CONDITIONS if name in parameters), None)
        if isinstance(prompts, str) or (prompts is not None and not len(prompts)):
            raise ValueError(f"prompts must be a list with at least one prompt, got {prompts!r}")
        if prompts is not None and self.condition is None:
            raise ValueError(f"{type(pipeline).__name__} takes no prompts")
        if prompts is not None:
            self.rows = _beside(call_options, len(prompts))
        else:
            self.rows = {} if "batch_size" in parameters else _rows(call_options)
        if prompts is None and self.condition is not None and not self.rows:
            raise ValueError(f"{type(pipeline).__name__} needs prompts=, for its argument {self.condition!r}")
        wrong = sorted(name for name in call_options if name in OURS or name not in parameters)
        if wrong:
            raise ValueError(
                f"{type(pipeline).__name__} has no {wrong[0]!r} that could be set here; generators, batches and the "
                f"output's type are the sampler's own, its options are {sorted(set(parameters) - {*OURS, 'self'})}"
            )
        if prompts is None and "batch_size" not in parameters and not self.rows:
            raise ValueError(
                f"{type(pipeline).__name__} takes neither prompts nor a batch_size: give its conditions as tensors "
                "with a row for each, such as image_embeds="
            )
        self.pipeline, self.prompts = pipeline, None if prompts is None else list(prompts)
        self.seed, self.batch_size = int(seed), check_count("batch_size", batch_size)
        self.autocast = None if autocast == torch.float32 else autocast  # which autocast does not know
        self.call_options = call_options
        self._seedable = "generator" in parameters
        if not self._seedable:
            raise ValueError(f"{type(pipeline).__name__} takes no generator, so its images cannot be repeated")

    def __call__(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """`(n, C, H, W)` float32 in [0, 1], on the pipeline's device.

        Args:
            n: how many.
            generator: on the CPU; the images are a function of it. None: always the images of `seed`.
        """
        return self.with_prompts(n, generator)[0]

    def with_prompts(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, list[Any]]:
        """The images of `sample(n, generator)` and the prompt of each (None for an unconditional pipeline)."""
        n = check_count("n", n)
        if generator is None:
            generator = torch.Generator().manual_seed(mixed_key(self.seed, n))
        # Drawn before the offset, so that an image's noise does not depend on the number of prompts.
        draws = torch.randint(2**62, (n,), generator=generator, device="cpu").tolist()
        seeds = [mixed_key(self.seed, draw) for draw in draws]
        numbers = [0] * n
        if count := len(self.prompts or next(iter(self.rows.values()), ())):
            start = 0 if n % count == 0 else int(torch.randint(count, (), generator=generator, device="cpu"))
            numbers = [(start + index) % count for index in range(n)]
        parts = [
            self._images(seeds[first : first + self.batch_size], numbers[first : first + self.batch_size])
            for first in range(0, n, self.batch_size)
        ]
        return torch.cat(parts), [self.prompts[number] if self.prompts else None for number in numbers]

    def _images(self, seeds: list[int], numbers: list[int]) -> Tensor:
        """The images of these seeds, for the conditions of these numbers."""
        pipe = _own_copy(self.pipeline)
        options = {
            name: [value] * len(seeds) if isinstance(value, str) and "prompt" in name else value
            for name, value in self.call_options.items()
        }
        options |= {name: value[numbers] for name, value in self.rows.items()}
        if self.prompts is not None:
            options[str(self.condition)] = [self.prompts[number] for number in numbers]
        elif not self.rows:
            options["batch_size"] = len(seeds)
        options["generator"] = [torch.Generator().manual_seed(seed) for seed in seeds]
        modules = [part for part in self.pipeline.components.values() if isinstance(part, nn.Module)]
        device = torch.device(self.pipeline._execution_device)  # also where parts are offloaded to the CPU meanwhile
        with isolated(*modules), torch.autocast(device.type, self.autocast, enabled=self.autocast is not None):
            output = pipe(**options, output_type="np")  # "pt" is not in [0, 1] everywhere
        if not hasattr(output, "images"):
            raise TypeError(f"{type(pipe).__name__} makes no images: its output has {sorted(vars(output))}")
        images = to_unit(as_tensor(output.images), (0.0, 1.0)).float().to(device)
        if images.shape[0] != len(seeds):
            raise ValueError(f"the pipeline gave {images.shape[0]} images for {len(seeds)} seeds")
        low, high = float(images.min()), float(images.max())
        if low < -SLACK or high > 1 + SLACK:
            raise ValueError(f"{type(pipe).__name__} gives images in [{low:.3g}, {high:.3g}], which must be in [0, 1]")
        return images


def _rows(options: dict[str, Any]) -> dict[str, Tensor]:
    """The options that are tensors with a row for each condition."""
    rows = {name: value for name, value in options.items() if isinstance(value, Tensor) and value.ndim > 1}
    sizes = {name: len(value) for name, value in rows.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"the conditions must have one number of rows, got {sizes}")
    return rows


def _beside(options: dict[str, Any], prompts: int) -> dict[str, Tensor]:
    """The options that are tensors with a row for each prompt, such as the images that it begins from."""
    rows = {}
    for name, value in options.items():
        single = 3 if "image" in name and "embed" not in name else 1  # dimensions of one picture, or of one row
        if not isinstance(value, Tensor) or value.ndim <= single or len(value) == 1:
            continue
        rows[name] = value
        if len(value) != prompts:
            raise ValueError(f"{name} must have one row, or one for each of the {prompts} prompts, got {len(value)}")
    return rows


def _own_copy(pipeline: Any) -> Any:
    """A pipeline with the same networks whose other parts may be changed.

    Setting a part to None on the user's own would drop it from the configuration that `save_pretrained` writes, also
    when it is put back.
    """
    pipe = copy.copy(pipeline)
    if getattr(pipe, "scheduler", None) is not None:
        pipe.scheduler = copy.deepcopy(pipe.scheduler)
    if getattr(pipe, "safety_checker", None) is not None:
        pipe.safety_checker = None
    pipe.set_progress_bar_config(disable=True)
    return pipe

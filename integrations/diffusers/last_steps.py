"""The gradient of a reward through a Diffusers pipeline that stays as it is: truncated back-propagation.

    with grad_last_steps(pipe, k=1):
        images = pipe(prompts, output_type="pt").images
    loss = -scorer(images).mean()
    loss.backward()

A sampler is x_{i+1} = s_i(x_i, f(x_i; theta)), i = 0..n-1, and the image is V(x_n). Let R be the reward. Only the
gradient through the last k steps is kept; x_{n-k} is treated as constant: DRaFT-K (Clark et al., 2024), AlignProp
(Prabhudesai et al., 2023). A step may call the denoiser f several times: once for each guidance branch, or twice as in
Heun's method.

The pipeline's `__call__` is written for inference, under `no_grad`. Here autograd is on while it prepares (so that text
encoders and embeddings can be trained), off during the first n - k steps, and on from there to the images. A step ends
with a call of `scheduler.step`. Each denoiser call with a gradient is checkpointed as a whole (Chen et al., 2016), so
only k latents stay in memory.

Inside the block, forward functions of the denoisers, the decoder and the scheduler, and the class of the pipeline
object, are replaced on these objects alone. They are restored on exit, also after an error.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from qa_hooks._base.checks import check_count
from qa_hooks.integrations.diffusers.decode_gradient import DecodeGradient
from qa_hooks.integrations.diffusers.gradient_checks import check_pipeline
from qa_hooks.integrations.diffusers.live_calls import OwnLoop
from qa_hooks.integrations.diffusers.pipeline_parts import decoder_name, denoisers, networks
from qa_hooks.integrations.diffusers.pipeline_run import PipelineRun
from qa_hooks.integrations.diffusers.recompute import check_recomputable
from qa_hooks.integrations.training_checks import check_model, check_plain_training, inside_ddp


@contextlib.contextmanager
def grad_last_steps(
    pipe_or_denoiser: Any,
    k: int = 1,
    *,
    num_calls: int | None = None,
    checkpoint: bool = True,
    decode: str = "full",
    tiny: nn.Module | None = None,
    seed: int = 0,
    accelerator: Any = None,
) -> Iterator[None]:
    """Inside this block, the pipeline's images keep the gradient of the last k sampling steps and of the decoder.

    Call the pipeline as often as you like, with `output_type="pt"` (images in [0, 1], also where the pipeline itself
    would give [-1, 1]) or "latent"; call `backward` before the optimizer step, inside or after the block. Calls of the
    denoiser between pipeline calls are left alone. On several processes reduce the gradients with
    `qa_hooks.integrations.peft.sync`: DDP does not see them.

    What is trained beside the denoiser (a text encoder, `prompt_embeds` that require a gradient, a control network)
    gets the gradient of the same steps; a warning names what gets none.

    Begin with k = 1, few steps and `timestep_spacing="trailing"`. With `timestep_spacing="leading"` the last step
    changes the image very little. With large k gradients grow. The pipeline clamps its images, which stops the gradient
    of the pixels that are clamped.

    Args:
        pipe_or_denoiser: a Diffusers pipeline; or the denoiser alone, for a loop of your own, with `num_calls`.
        k: the number of last steps with a gradient; a step may make several denoiser calls. With a denoiser alone, k
            counts its calls, and a k that would cut a step in two raises. 0 leaves everything as it is.
        num_calls: how many denoiser calls one sampling makes. Needed for a denoiser alone; for a pipeline it is only
            checked.
        checkpoint: run the denoiser's calls again in the backward pass instead of holding their activations, with the
            attention processors, adapter weights and caches that they had; the gradient is the same to the bit. The
            decoder is checkpointed block by block.
        decode: "full"; "crop:512": the image is the same, its gradient is the gradient of a random crop of 512 pixels,
            decoded alone; "tiny": images and gradient come from `tiny`.
        tiny: a small decoder for the same latents, such as Diffusers' `AutoencoderTiny`.
        seed: seed of the crops, which come from a generator of their own.
        accelerator: an `accelerate.Accelerator`, checked for what cannot work.

    Raises:
        TypeError: neither a pipeline nor a denoiser; a pipeline that cannot return tensors.
        ValueError: options that do not fit; k or `num_calls` other than what the pipeline does; weights, wrappers,
            latents or a safety checker with which no gradient arrives; the last step does not use
            the denoiser's output.
        RuntimeError: within another `grad_last_steps`, within `torch.inference_mode`, or where the graph is cut.

    Example:
        >>> denoiser, x = nn.Linear(2, 2), torch.ones(1, 2)
        >>> with grad_last_steps(denoiser, k=2, num_calls=4):
        ...     for _ in range(4):
        ...         x = x - 0.1 * denoiser(x)
        >>> x.sum().backward()
        >>> denoiser.weight.grad is not None
        True
    """
    if check_count("k", k, least=0) == 0:
        yield
        return
    if torch.is_inference_mode_enabled():
        raise RuntimeError("torch.inference_mode makes tensors that never take part in a graph: leave it out here")
    num_calls = None if num_calls is None else check_count("num_calls", num_calls)
    alone = isinstance(pipe_or_denoiser, nn.Module)
    if alone and (num_calls is None or decode != "full"):
        raise ValueError("a denoiser alone needs num_calls=, its number of calls in one sampling, and no decode=")
    pipe = None if alone else pipe_or_denoiser
    parts = {"": inside_ddp(pipe_or_denoiser)} if alone else denoisers(pipe_or_denoiser)
    check_plain_training(accelerator)
    for part in parts.values():
        check_model(part)
        if checkpoint:
            check_recomputable(part)
        if getattr(part.forward, "_of_grad_last_steps", False):
            raise RuntimeError("grad_last_steps is already at work on this denoiser: leave that context first")

    before = torch.is_grad_enabled()
    with contextlib.ExitStack() as exchanged:
        exchanged.callback(torch.set_grad_enabled, before)
        sampling: OwnLoop | PipelineRun
        if pipe is None:
            sampling = OwnLoop(k, int(num_calls or 1), checkpoint)
        else:
            name = decoder_name(pipe)
            decoder: Any = networks(pipe).get(name or "")
            check_pipeline(pipe, decoder, decode)
            sampling = PipelineRun(pipe, parts, k, num_calls, checkpoint)
            if decoder is not None:
                own = DecodeGradient(decoder, decode, tiny=tiny, seed=seed, checkpoint=checkpoint)
                exchanged.enter_context(_exchange(decoder, "decode", sampling.decoded(own)))
            for method, followed in sampling.followed():
                exchanged.enter_context(_exchange(pipe.scheduler, method, followed))
            exchanged.callback(setattr, pipe, "__class__", type(pipe))
            pipe.__class__ = sampling.watched()
        for name, part in parts.items():
            if pipe is not None and vars(pipe)[name] is not part:  # wrapped in DDP, which lacks the model's attributes
                exchanged.enter_context(_exchange(pipe, name, part))
            exchanged.enter_context(_exchange(part, "forward", sampling.counted(name, part)))
        yield
        sampling.finish()


@contextlib.contextmanager
def _exchange(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute of this one object, past any `__setattr__`, and put back what was there."""
    own = vars(owner)
    missing = name not in own
    before = own.get(name)
    own[name] = value
    try:
        yield
    finally:
        if missing:
            del own[name]
        else:
            own[name] = before

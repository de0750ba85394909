"""The gradient of a latent decoder within bounded memory: at 1024 pixels it needs more than any denoiser call.

full        x = V(z), recomputed block by block in the backward pass
crop:512    x = V(z) in value; on a random window w the gradient is that of V(z_w), elsewhere 0:
            x_w = sg(V(z)_w) + V(z_w) - sg(V(z_w))
tiny        x = T(z), T a small decoder trained for the same latents
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from qa_hooks._base.checks import warn
from qa_hooks._base.processes import rank
from qa_hooks._base.random import mixed_key
from qa_hooks.integrations.diffusers.recompute import recomputed

SATURATED = 0.99  # of the pixels: then the clamp to the image range leaves no gradient
CHECKED = 3  # calls; after that nothing is read back


class DecodeGradient:
    """Stands in for `vae.decode`.

    Args:
        vae: with `decode(latents, return_dict=...)`.
        mode: "full", "crop:PIXELS" or "tiny".
        tiny: the decoder of "tiny".
        seed: of the crops.
        checkpoint: recompute in the backward pass.

    Raises:
        ValueError: an unknown mode, or "tiny" without a decoder or the other way round.
    """

    def __init__(self, vae: Any, mode: str, *, tiny: nn.Module | None, seed: int, checkpoint: bool) -> None:
        pixels = mode.removeprefix("crop:") if mode.startswith("crop:") else None
        if mode not in ("full", "tiny") and not (pixels is not None and pixels.isdecimal() and int(pixels) > 0):
            raise ValueError(f'decode must be "full", "crop:512" (or another size) or "tiny", got {mode!r}')
        if (mode == "tiny") != (tiny is not None):
            raise ValueError(
                f'decode="tiny" and tiny= (an AutoencoderTiny for these latents) go together, got {mode!r}'
            )
        self.vae, self.mode, self.tiny, self.checkpoint = vae, mode, tiny, checkpoint
        self.decode = vae.decode
        self.pixels = int(pixels) if pixels else 0
        self.generator = torch.Generator().manual_seed(mixed_key(seed, rank()))
        self.calls = 0
        if mode != "tiny" and any(p.requires_grad for p in vae.parameters()):
            warn("the VAE's parameters require a gradient, which costs memory: pipe.vae.requires_grad_(False)")

    def __call__(self, latents: Tensor, *args: Any, **kwargs: Any) -> Any:
        """What `vae.decode` returns, with a gradient."""
        if self.tiny is not None:
            output = self._tiny(self.tiny, latents)
        elif self.pixels:
            output = self._crop(latents, *args, **kwargs)
        else:
            output = self._full(latents, *args, **kwargs)
        self.calls += 1
        if self.calls <= CHECKED:
            inside = output.detach().abs() < 1  # false for what is not a number
            useless = 1 - float(inside.float().mean())
            if not torch.isfinite(output).all() or useless >= SATURATED:
                raise ValueError(
                    f"{useless:.0%} of the decoded pixels are outside [-1, 1] or not finite, where the pipeline's "
                    "clamp leaves no gradient: the latents have the wrong scale for this VAE, or its type overflows"
                )
        if not kwargs.get("return_dict", args[0] if args else True):
            return (output,)
        from diffusers.models.autoencoders.vae import DecoderOutput

        return DecoderOutput(sample=output)

    def _full(self, latents: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        decoder = getattr(self.vae, "decoder", None)
        if not self.checkpoint:
            decoded = self.decode(latents, *args, **kwargs)
        elif hasattr(decoder, "gradient_checkpointing"):
            with _blockwise(decoder):
                decoded = self.decode(latents, *args, **kwargs)
        else:
            decoded = recomputed(self.vae, self.decode, latents, *args, **kwargs)
        image: Tensor = decoded[0]
        return image

    def _crop(self, latents: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if latents.ndim != 4:
            raise ValueError(f'decode="crop" needs latents (N, C, h, w), got {tuple(latents.shape)}: use "full"')
        with torch.no_grad():
            whole: Tensor = self.decode(latents, *args, **kwargs)[0]
        factor = whole.shape[-1] // latents.shape[-1]
        sizes = [min(max(1, self.pixels // factor), side) for side in latents.shape[-2:]]
        starts = [
            int(torch.randint(side - size + 1, (), generator=self.generator, device="cpu"))
            for side, size in zip(latents.shape[-2:], sizes, strict=True)
        ]
        small = [slice(start, start + size) for start, size in zip(starts, sizes, strict=True)]
        large = [slice(part.start * factor, part.stop * factor) for part in small]
        part = self._full(latents[..., small[0], small[1]], *args, **kwargs)
        padding = [large[1].start, whole.shape[-1] - large[1].stop, large[0].start, whole.shape[-2] - large[0].stop]
        return whole + nn.functional.pad(part - part.detach(), padding)

    def _tiny(self, tiny: Any, latents: Tensor) -> Tensor:
        """Tiny autoencoders read the sampler's latents: what the pipeline did for its own VAE is undone."""
        config = self.vae.config
        if getattr(config, "latents_mean", None) is not None:
            shape = (1, -1, *[1] * (latents.ndim - 2))
            mean, std = (latents.new_tensor(values).view(shape) for values in (config.latents_mean, config.latents_std))
            latents = (latents - mean) * config.scaling_factor / std
        else:
            latents = (latents - (getattr(config, "shift_factor", None) or 0)) * config.scaling_factor
        parameter = next(tiny.parameters(), latents)
        decode = getattr(tiny, "decode", tiny)
        decoded = decode(latents.to(parameter.dtype))
        return (decoded if isinstance(decoded, Tensor) else decoded[0]).to(latents.dtype)


@contextlib.contextmanager
def _blockwise(decoder: Any) -> Iterator[None]:
    """Diffusers' own checkpointing of a decoder's blocks, for one call."""
    own = vars(decoder)
    before = {name: own[name] for name in ("gradient_checkpointing", "_gradient_checkpointing_func") if name in own}
    own["gradient_checkpointing"] = True
    own["_gradient_checkpointing_func"] = lambda block, *inputs: recomputed(
        block if isinstance(block, nn.Module) else decoder, block, *inputs
    )
    try:
        yield
    finally:
        del own["_gradient_checkpointing_func"]
        own.update(before)

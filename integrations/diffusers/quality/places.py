"""Where the dial reaches into a network: its cross-attentions, or its embedding of the time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from qa_hooks.integrations.diffusers.quality.attention import (
    OPTIONS,
    TOKENS,
    CrossAttentionBranch,
    QualityProcessor,
    cross_attentions,
    install,
    token_width,
    uninstall,
)
from qa_hooks.integrations.diffusers.quality.dial import Dial
from qa_hooks.integrations.diffusers.quality.embedding import (
    EmbeddingBranch,
    EmbeddingHook,
    embedding_width,
    embeddings,
)

FORMS, INITS = ("attention", "embedding"), ("gated", "published")


class Places:
    """The places of one network, by name.

    Attributes:
        form, init, names, dim: what was found: "attention" or "embedding", the layers, and the width of the tokens.
    """

    def __init__(self, form: str, init: str, layers: dict[str, Any], tokens: int, dial: Dial) -> None:
        self.form, self.init, self.layers, self.tokens, self.dial = form, init, layers, tokens, dial
        self.names = tuple(layers)
        attention = form == "attention"
        self.dim = token_width(layers) if attention else embedding_width(next(iter(layers.values())))
        self.embeddings: dict[str, nn.Module] = {} if attention else layers
        self.hooks: list[EmbeddingHook] = []
        self.installed: Sequence[Any] = ()

    def branches(self) -> Iterator[nn.Module]:
        """What the adapter trains at each place, in their order."""
        for layer in self.layers.values():
            if self.form == "attention":
                yield CrossAttentionBranch(layer, gated=self.init == "gated")
            else:
                yield EmbeddingBranch(self.tokens, self.dim, embedding_width(layer))

    def attach(self, branches: Sequence[Any]) -> list[RemovableHandle]:
        """Put the branches into the network; the handles take hooks away again."""
        self.installed = branches
        if self.form == "attention":
            install(self.layers, branches)
            return []
        self.hooks = [EmbeddingHook(branch, self.dial) for branch in branches]
        layers = self.layers.values()
        return [layer.register_forward_hook(hook) for layer, hook in zip(layers, self.hooks, strict=True)]

    def detach(self) -> None:
        """Give the layers back what they had."""
        if self.form == "attention":
            uninstall(self.layers)

    def put(
        self, tokens: Tensor, scale: float, names: list[str], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Hand the tokens to a call of the network, whose arguments have these names: its arguments, then."""
        if self.form == "attention":
            install(self.layers, self.installed)
            place = names.index(OPTIONS)
            args, kwargs = args[:place], {**dict(zip(names[place:], args[place:], strict=False)), **kwargs}
            return args, {**kwargs, OPTIONS: {**(kwargs.get(OPTIONS) or {}), TOKENS: (tokens, scale)}}
        for hook in self.hooks:
            hook.tokens, hook.scale = tokens, scale
        return args, kwargs

    def clear(self) -> None:
        """After a call."""
        for hook in self.hooks:
            hook.tokens = None


def find_places(denoiser: nn.Module, form: str | None, init: str, tokens: int, dial: Dial) -> Places:
    """The places that this form of the adapter needs.

    Raises:
        ValueError: unknown options, or a network without such places; it names the network and what would do.
    """
    name = type(denoiser).__name__
    if form not in (None, *FORMS) or init not in INITS:
        raise ValueError(f"form must be one of {FORMS} or None, and init one of {INITS}, got {form!r} and {init!r}")
    parts = list(denoiser.modules())
    there = [hook for part in parts for hook in part._forward_hooks.values() if isinstance(hook, EmbeddingHook)]
    if there or any(isinstance(getattr(part, "processor", None), QualityProcessor) for part in parts):
        raise ValueError(f"this {name} has a quality adapter already: adapter.detach() takes it off")
    attentions = {} if form == "embedding" else cross_attentions(denoiser)
    if attentions:
        return Places("attention", init, attentions, tokens, dial)
    found = embeddings(denoiser)
    if form == "attention":
        raise ValueError(
            f"{name} has no cross-attention of its own beside which quality tokens could stand (SD3 and Flux attend to "
            "image and text jointly)" + (': use form="embedding"' if found else "")
        )
    if not found:
        raise ValueError(
            f"{name} has no place for the quality: neither cross-attention with cross_attention_kwargs, nor a module "
            "time_embedding or time_text_embed; it must be a denoiser of Diffusers, such as pipe.unet"
        )
    if init == "published":
        raise ValueError(f'init="published" is of the form with cross-attention, which {name} is not used in')
    return Places("embedding", init, found, tokens, dial)

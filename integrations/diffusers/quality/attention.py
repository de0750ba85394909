"""The branch beside every cross-attention, for any attention processor that is at work there.

    out = W_o (Attn(Q, K_text, V_text) + scale g Attn(Q, K_q, V_q)),        K_q, V_q: new projections of the tokens

The processor itself is not copied: it is handed the attention layer with two of its parts watched. The query that it
computes is kept, and the branch is added to what it gives to the output projection. So every processor serves (plain,
scaled dot product, sliced), and no product is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

OPTIONS = "cross_attention_kwargs"  # of a denoiser's call, which reach its processors
TOKENS = "ip_hidden_states"  # the one name that Diffusers hands to processors without a warning from the others
FOREIGN = ("IPAdapter", "AddedKV", "CustomDiffusion", "Joint")


class CrossAttentionBranch(nn.Module):
    """Keys and values of the quality tokens, and the gate, for one cross-attention layer.

    Args:
        attention: Diffusers' layer, whose projections of the text are where the new ones start.
        gated: times a gate that starts at 0.
    """

    def __init__(self, attention: Any, *, gated: bool) -> None:
        super().__init__()
        self.to_k, self.to_v = _copied(attention.to_k), _copied(attention.to_v)
        self.gate = nn.Parameter(torch.zeros((), dtype=torch.float32, device="cpu")) if gated else None

    def forward(self, attention: Any, query: Tensor, tokens: Tensor, scale: float) -> Tensor:
        """What is added before the output projection, `(B, n, inner)`, in the query's type."""
        if len(query) != len(tokens):
            raise ValueError(
                f"the quality tokens are for {len(tokens)} rows and the attention sees {len(query)}: networks that "
                "fold frames into the batch are not supported"
            )

        def heads(x: Tensor) -> Tensor:
            split: Tensor = x.to(query.dtype).unflatten(-1, (attention.heads, -1))
            return split.transpose(1, 2)

        q, k, v = heads(query), heads(self.to_k(tokens)), heads(self.to_v(tokens))
        q = q if attention.norm_q is None else attention.norm_q(q)
        k = k if attention.norm_k is None else attention.norm_k(k)
        out = F.scaled_dot_product_attention(q, k, v, scale=attention.scale).transpose(1, 2).flatten(2)
        return scale * out if self.gate is None else scale * self.gate.to(out.dtype) * out


def _copied(layer: Any) -> nn.Linear:
    """A projection without bias that starts as the text's, in float32."""
    weight = base_layer(layer).weight.detach().float().cpu()
    copy = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    copy.weight = nn.Parameter(weight.clone())
    return copy


class QualityProcessor:
    """The attention processor of a layer with the branch beside it; without tokens it is the processor itself.

    Diffusers asks processors for their class (`set_default_attn_processor`, `unload_ip_adapter`) and for attributes
    (`set_attention_backend`), and PyTorch asks those that are modules for their parameters. All of them are answered by
    the processor inside, as if the branch were not there; so the network's parameters and state have the same names.

    Args:
        inner: the processor that was there.
        branch: of this layer.
    """

    def __init__(self, inner: Any, branch: CrossAttentionBranch) -> None:
        self.inner, self.branch = inner, branch

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self.inner)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)  # of the protocols of Python, such as copying, which are this object's own
        return getattr(self.inner, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("inner", "branch"):
            object.__setattr__(self, name, value)
        else:
            setattr(self.inner, name, value)

    def __reduce__(self) -> Any:
        return QualityProcessor, (self.inner, self.branch)

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        ip_hidden_states: tuple[Tensor, float] | None = None,  # the tokens and the scale; see `TOKENS`
    ) -> Any:
        named = {"encoder_hidden_states": encoder_hidden_states, "attention_mask": attention_mask, "temb": temb}
        options = {name: value for name, value in named.items() if value is not None}  # some processors know fewer
        if ip_hidden_states is None:
            return self.inner(attn, hidden_states, **options)
        watched = _Watched(attn, self.branch, *ip_hidden_states)
        output = self.inner(watched, hidden_states, **options)
        if not watched.added:
            raise ValueError(
                f"{type(self.inner).__name__} does not call to_q and to_out of its layer, so the quality tokens cannot "
                'be put in: use another attention processor, or QualityAdapter(..., form="embedding")'
            )
        return output


class _Watched:
    """An attention layer as its processor sees it, with the branch added before the output projection."""

    def __init__(self, attention: Any, branch: CrossAttentionBranch, tokens: Tensor, scale: float) -> None:
        self._attention, self._branch, self._tokens, self._scale = attention, branch, tokens, scale
        self._query: Tensor | None = None
        self.added = False
        self.to_q = _Intercepted(attention.to_q, self._keep_query)
        self.to_out = [_Intercepted(attention.to_out[0], self._add_branch), *attention.to_out[1:]]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._attention, name)

    def _keep_query(self, to_q: Any, hidden_states: Tensor, *args: Any) -> Tensor:
        query: Tensor = to_q(hidden_states, *args)
        self._query = query
        return query

    def _add_branch(self, to_out: Any, attended: Tensor, *args: Any) -> Tensor:
        if self._query is not None:
            branch = self._branch(self._attention, self._query, self._tokens, self._scale)
            attended, self.added = attended + branch.to(attended.dtype), True
        projected: Tensor = to_out(attended, *args)
        return projected


class _Intercepted:
    """A layer whose calls go through a function; for whoever reads its weight or its width it is the layer itself."""

    def __init__(self, layer: Any, call: Callable[..., Tensor]) -> None:
        self._layer, self._call = layer, call

    def __call__(self, *args: Any) -> Tensor:
        return self._call(self._layer, *args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)


def base_layer(layer: Any) -> Any:
    """The layer under LoRA."""
    return getattr(layer, "base_layer", layer)


def cross_attentions(denoiser: nn.Module) -> dict[str, Any]:
    """The cross-attention layers by name; {} for a network that has none, or gives its processors no arguments.

    Raises:
        ValueError: layers whose processors cannot have a branch beside them, such as IP-Adapter's; it names them.
    """
    import inspect

    from diffusers.models.attention_processor import Attention

    if OPTIONS not in inspect.signature(denoiser.forward).parameters:
        return {}
    found = {n: m for n, m in denoiser.named_modules() if isinstance(m, Attention) and m.is_cross_attention}
    for name, layer in found.items():
        check_processor(name, layer.processor)
        if layer.added_kv_proj_dim is not None:
            raise ValueError(
                f"{type(denoiser).__name__} adds keys to its self-attention ({name}), which has no text of its own to "
                'stand beside: use QualityAdapter(..., form="embedding")'
            )
    return found


def check_processor(name: str, processor: Any) -> None:
    """Refuse processors that have a branch of their own."""
    kind = type(processor).__name__
    if any(word in kind for word in FOREIGN):
        remedy = "pipe.unload_ip_adapter()" if "IPAdapter" in kind else "unet.set_default_attn_processor()"
        raise ValueError(
            f"{name} has the attention processor {kind}, which has a branch of its own, and the quality tokens would "
            f'be lost in it: take it off first ({remedy}), or use QualityAdapter(..., form="embedding")'
        )


def token_width(layers: dict[str, Any]) -> int:
    """d, the width of what the layers read; `ValueError` where they differ."""
    widths = {base_layer(layer.to_k).in_features for layer in layers.values()}
    if len(widths) > 1:
        raise ValueError(f'the cross-attentions read texts of several widths, {sorted(widths)}: use form="embedding"')
    return int(widths.pop())


def install(layers: dict[str, Any], branches: Iterable[Any]) -> None:
    """Put the branches beside whatever processors are there now; Diffusers may have exchanged them since.

    Raises:
        ValueError: IP-Adapter's have come in the meantime.
    """
    for (name, layer), branch in zip(layers.items(), branches, strict=True):
        if not isinstance(layer.processor, QualityProcessor):
            check_processor(name, layer.processor)
            layer.set_processor(QualityProcessor(layer.processor, branch))


def uninstall(layers: dict[str, Any]) -> None:
    """Give each layer the processor that it had."""
    for layer in layers.values():
        if isinstance(layer.processor, QualityProcessor):
            layer.set_processor(layer.processor.inner)

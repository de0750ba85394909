"""What happens around each call of the denoiser: the dial is read, and its tokens are handed over."""

from __future__ import annotations

import copy
import inspect
import weakref
from typing import Any

from torch import Tensor, nn

from qa_hooks._base.checks import warn
from qa_hooks.integrations.diffusers.quality.attention import OPTIONS, TOKENS
from qa_hooks.integrations.diffusers.quality.dial import Dial, Setting
from qa_hooks.integrations.diffusers.quality.embedding import check_recomputed
from qa_hooks.integrations.diffusers.quality.places import Places
from qa_hooks.integrations.diffusers.quality.rows import quality_rows, running_pipeline


class Calls:
    """The hooks of one denoiser, and of its copies.

    A copy of the network (an average of its weights, say) is turned by the same dial, with the same adapter. A copy of
    the adapter has a network and a dial of its own.

    Args:
        denoiser: the network.
        dial: where it stands.
        places: where the tokens go.
        adapter: the module whose `encode` makes tokens of q, and whose `branches` are trained at the places.
    """

    def __init__(self, denoiser: nn.Module, dial: Dial, places: Places, adapter: Any) -> None:
        self.denoiser, self.dial, self.places, self.adapter = denoiser, dial, places, adapter
        self._said_unguided = False
        self._copies: weakref.WeakSet[Calls] = weakref.WeakSet()
        self._handles = [
            *places.attach(list(adapter.branches)),
            denoiser.register_forward_pre_hook(self._before, with_kwargs=True),
            denoiser.register_forward_hook(self._after, always_call=True),
        ]

    def remove(self) -> None:
        """Take the hooks off; the layers have again what they had."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.places.detach()
        while self._copies:
            self._copies.pop().remove()

    def check_attached(self) -> None:
        """`ValueError` after `remove`."""
        if not self._handles:
            raise ValueError("this adapter has been detached from its network: make another one, or load its file")

    def __deepcopy__(self, memo: dict[int, Any]) -> Calls:
        alone = id(self.adapter) not in memo
        if alone:  # the network is copied, and not the adapter
            memo.update({id(part): part for part in (self.adapter, self.dial, *self.adapter.branches)})
        copied = Calls.__new__(Calls)
        memo[id(self)] = copied
        copied.__setstate__({name: copy.deepcopy(value, memo) for name, value in self.__getstate__().items()})
        if alone:
            self._copies.add(copied)
        return copied

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_copies"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _copies=weakref.WeakSet())

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if TOKENS in (kwargs.get(OPTIONS) or {}):
            return None  # a recorded call is made again
        setting = self.dial.take()
        if setting is None:
            return None
        if setting.once and (running := running_pipeline()) is not None:
            raise ValueError(
                f"condition() sets one call of the denoiser, and {type(running[0]).__name__} makes many: write "
                "with adapter.quality(q): around the pipeline"
            )
        names = list(inspect.signature(type(module).forward).parameters)[1:]
        call = dict(zip(names, args, strict=False)) | kwargs
        rows = self._rows(setting, call)
        device = call["sample" if "sample" in call else "hidden_states"].device
        if next(self.adapter.parameters()).device != device:
            self.adapter.to(device)  # the pipeline was moved after the adapter was attached
        tokens = self.adapter.encode(rows)
        check_recomputed(module, self.places.embeddings)
        return self.places.put(tokens, setting.scale, names, args, kwargs)

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        self.places.clear()

    def _rows(self, setting: Setting, call: dict[str, Any]) -> Tensor:
        """q of each row of a call: `(B, D)`."""
        null = getattr(getattr(self.denoiser, "config", None), "num_embeds_ada_norm", None)
        rows, dropped = quality_rows(setting, call, null)
        if setting.negative is not None and not bool(dropped.any()) and not self._said_unguided:
            self._said_unguided = True
            warn("negative= has no effect here: without guidance there are no unconditional rows (said once)")
        return rows

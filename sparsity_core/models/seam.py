"""The hook into a transformers model: attention goes through a recorder where one is active, else to SDPA.

Registered once as the attention implementation "sparselens". A ContextVar holds the recorder, so threads that run
different methods on one shared model do not see each other, and the model itself is never changed.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from sparsity_core.models.call import AttentionCall
from sparsity_core.models.masks import build_mask, check_mask
from sparsity_core.models.numbers import check_rows

ATTENTION = "sparselens"
_WINDOW = "sparselens_window"  # of an attention block, once its mask has been looked at

_active: ContextVar[Attends | None] = ContextVar("sparselens_recorder", default=None)
_input: ContextVar[BlockInput | None] = ContextVar("sparselens_input", default=None)
_residual: ContextVar[torch.Tensor | None] = ContextVar("sparselens_residual", default=None)


@dataclass(frozen=True, eq=False)
class BlockInput:
    """What a layer's attention block was called with."""

    layer: int
    hidden: torch.Tensor  # [B, Tq, hidden]
    settings: dict[str, Any]


class Attends(Protocol):
    """What the hook calls: it answers with the output [B, H, Tq, Dv]."""

    def attend(self, call: AttentionCall) -> torch.Tensor: ...


@contextlib.contextmanager
def recording(recorder: Attends) -> Iterator[None]:
    """Attention of every forward inside the block goes through `recorder`."""
    active, seen, residual = _active.set(recorder), _input.set(None), _residual.set(None)
    try:
        yield
    finally:
        _active.reset(active)
        _input.reset(seen)
        _residual.reset(residual)


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    recorder = _active.get()
    softcap = kwargs.get("softcap")
    if kwargs.get("s_aux") is not None:
        raise ValueError("its heads have learned attention sinks, which are not implemented")
    if kwargs.get("indices") is not None or kwargs.get("block_indices") is not None:
        raise ValueError("an indexer of its own chooses the keys that each query reads")
    if recorder is None:
        if softcap is None:
            return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
        return _eager(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    window = getattr(module, _WINDOW, kwargs.get("sliding_window"))
    check_mask(attention_mask, query.shape[2], key.shape[2], window, module.layer_idx)
    check_rows(query, key[..., -query.shape[2] :, :], value[..., -query.shape[2] :, :])
    call = AttentionCall(module.layer_idx, query, key, value, scale, softcap, window)
    return recorder.attend(call).transpose(1, 2).contiguous(), None


def attention_input(layer: int) -> torch.Tensor:
    """[B, Tq, hidden]: what a layer's attention block reads, after its norm. To be called by a recorder, while it attends.

    Raises ValueError for a family that does not show it.
    """
    seen = _input.get()
    if seen is None or seen.layer != layer:
        raise ValueError("this model does not show what its attention reads, which a gate needs: choose another model")
    return seen.hidden


@contextlib.contextmanager
def one_row(row: int, n: int) -> Iterator[None]:
    """Inside, a recorder that attends sees of what the model reads the first n tokens of this row of the batch alone."""
    seen, residual = _input.get(), _residual.get()
    own = slice(row, row + 1), slice(n)
    part = None if seen is None else BlockInput(seen.layer, seen.hidden[own], seen.settings)
    tokens = _input.set(part), _residual.set(None if residual is None else residual[own])
    try:
        yield
    finally:
        _input.reset(tokens[0])
        _residual.reset(tokens[1])


def block_input() -> BlockInput | None:
    """What the attention block that runs was called with; None where this family does not show it."""
    return _input.get()


def residual_stream() -> torch.Tensor | None:
    """[B, Tq, hidden]: what the layer that runs was called with; None where this family does not show it."""
    return _residual.get()


def backbone(hf: Any) -> Any:
    """What gives the hidden states: a few families name it otherwise than they say."""
    return hf.model if hf.base_model is hf and hasattr(hf, "model") else hf.base_model


def is_attention(module: Any) -> bool:
    return hasattr(module, "layer_idx") and type(module).__name__.endswith("Attention")


def _keep_input(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if _active.get() is not None:
        settings = dict(kwargs)
        hidden = settings.pop("hidden_states") if "hidden_states" in settings else args[0]
        _input.set(BlockInput(module.layer_idx, hidden, settings))


def _keep_residual(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if _active.get() is not None:
        _residual.set(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])


def watch_inputs(hf: Any) -> None:
    """Lets recorders of this model see what its layers and their attention read. Costs nothing while none is active."""
    for module in hf.modules():
        children = list(module.children())
        for hook, wanted in ((_keep_input, is_attention(module)), (_keep_residual, any(map(is_attention, children)))):
            if wanted and hook not in module._forward_pre_hooks.values():
                module.register_forward_pre_hook(hook, with_kwargs=True)


def layers_with_attention(hf: Any, n_layers: int) -> list[Any]:
    """The decoder's layers, of which there are so many; none where no list of a model's modules is one."""
    for module in backbone(hf).modules():
        listed = isinstance(module, torch.nn.ModuleList) and len(module) == n_layers
        if listed and any(map(is_attention, module.modules())):
            return list(module)
    return []


def set_windows(hf: Any, windows: Sequence[int | None]) -> None:
    """What recorders are told of each layer's window, in place of what the layer says itself."""
    for module in hf.modules():
        if is_attention(module) and module.layer_idx is not None:
            setattr(module, _WINDOW, windows[module.layer_idx])


def _eager(module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **kwargs: Any) -> Any:
    """The model's own eager attention, for what SDPA refuses (Gemma 2's soft-capped logits)."""
    if mask is None:
        n, m = query.shape[2], key.shape[2]
        mask = torch.ones(n, m, dtype=torch.bool, device=query.device).tril(m - n)[None, None]
    additive = torch.zeros(mask.shape, dtype=query.dtype, device=query.device)
    additive.masked_fill_(~mask, torch.finfo(query.dtype).min)
    eager = sys.modules[type(module).__module__].eager_attention_forward
    return eager(module, query, key, value, additive, **kwargs)


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, build_mask)  # without a mask function attention becomes non-causal, silently


class Enough(Exception):
    """Raised by a recorder to end a forward after the one layer that was asked for."""

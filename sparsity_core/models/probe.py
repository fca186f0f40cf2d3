"""What is tried of a model at load: that it can be recorded, and what its layers let a query see and keep in a cache."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from sparselens_kernels import flash_column_score

from sparsity_core.models.caches import look_at_cache, new_cache
from sparsity_core.models.call import AttentionCall
from sparsity_core.models.masks import layer_windows
from sparsity_core.models.model import Model
from sparsity_core.models.seam import Enough, backbone, recording, set_windows

_TOKENS = 6
_FAULTS = (TypeError, ValueError, AttributeError, RuntimeError, LookupError, AssertionError)


class _Probe:
    def __init__(self, only: int | None = None) -> None:
        self.calls: list[AttentionCall] = []
        self._only = only

    @property
    def layers(self) -> list[int]:
        return [call.layer for call in self.calls]

    def attend(self, call: AttentionCall) -> torch.Tensor:
        self.calls.append(call)
        if call.layer == self._only:
            raise Enough
        return flash_column_score(call.q, call.k, call.v, **call.how).out


@torch.inference_mode()
def probe_logits(hf: Any) -> torch.Tensor:
    """A transformers model's own logits of a few tokens, by whatever attention it has."""
    return hf(input_ids=_probe_ids(hf), use_cache=False).logits


def _probe_ids(hf: Any) -> torch.Tensor:
    """Tokens of the vocabulary's middle: its first are often special, after which half precision says nothing."""
    n = hf.get_input_embeddings().weight.shape[0]
    return torch.arange(_TOKENS, device=hf.device)[None] + min(1000, n // 2)


@torch.inference_mode()
def probe(model: Model, plain: torch.Tensor) -> str | None:
    """Why this model cannot be recorded, or None: a few tokens must pass every layer's hook and come out the same."""
    recorder = _Probe()
    try:
        with recording(recorder):
            recorded = model.logits(model.hidden(_probe_ids(model.hf), use_cache=False))
    except _FAULTS as error:
        return f"its forward pass does not take the hook ({error})"
    passed = set(recorder.layers)
    if not passed:
        return "its attention does not go through transformers' attention interface"
    if recorder.layers != list(range(model.arch.n_layers)):
        others = [i for i in range(model.arch.n_layers) if i not in passed]
        if not others:
            return "its layers do not attend once each, in order"
        return (
            f"{len(others)} of its {model.arch.n_layers} layers, the first of them layer {others[0]}, have no attention that "
            "goes through transformers' attention interface"
        )
    return None if _alike(model, recorded, plain) else "the recorded pass gives other logits than the model's own"


def _alike(model: Model, recorded: torch.Tensor, plain: torch.Tensor) -> bool:
    plain, recorded = plain.float(), recorded.to(plain.device).float()
    most = 0.02 if model.dtype.itemsize > 2 else 0.25  # two ways of half precision part by more than ours ever should
    return bool((recorded - plain).norm() <= most * plain.norm())


@torch.inference_mode()
def look_at_layers(model: Model, plain: torch.Tensor, layers: Any, outputs: Mapping[int, Any]) -> Model:
    """The model with what its layers let a query see and keep in a cache.

    Args:
        plain: the logits of `probe_logits`.
        layers, outputs: the decoder layers, and what each put out in that pass.

    Raises ValueError, which completes "cannot be recorded: ", where a layer's mask or cache is of another kind.
    """
    try:
        windows = layer_windows(model.hf, backbone(model.hf), layers, outputs, model.arch.max_positions)
    except _FAULTS as error:
        raise ValueError(
            str(error) if isinstance(error, ValueError) else f"its masks cannot be read ({error})"
        ) from error
    set_windows(model.hf, windows)
    ids, read = _probe_ids(model.hf), _Probe()
    try:
        cache = new_cache(model.hf)
        with recording(read):
            model.hidden(ids[:, :-1], past_key_values=cache, position_ids=_at(ids, 0, -1), use_cache=True)
    except _FAULTS as error:
        raise ValueError(f"its cache is of another kind ({error})") from error
    caches = look_at_cache(model.hf, cache, [call.k for call in read.calls], windows, ids.shape[1] - 1)
    try:
        stepped, first = _step(model, cache, ids)
        alike = _alike(model, stepped, plain[:, -1:])
    except _FAULTS as error:
        return replace(model, caches=caches, no_steps=f"its cache is of another kind ({error})")
    if not alike:
        return replace(model, caches=caches, no_steps="a step from its cache gives other logits than the whole text")
    return replace(model, caches=caches, no_eviction=_no_eviction(model, caches, cache, ids, first))


def _at(ids: torch.Tensor, start: int, end: int) -> torch.Tensor:
    return torch.arange(ids.shape[1], device=ids.device)[None, start : end or None]


def _step(model: Model, cache: Any, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits of the last token over a cache of the others, and the first layer's query of it."""
    read = _Probe()
    with recording(read):
        hidden = model.hidden(ids[:, -1:], past_key_values=cache, position_ids=_at(ids, -1, 0), use_cache=True)
    return model.logits(hidden), read.calls[0].q


def _no_eviction(model: Model, caches: Any, cache: Any, ids: torch.Tensor, first: torch.Tensor) -> str:
    """Why keys cannot leave this model's cache; nothing where they can."""
    if any(layer.latent for layer in caches):
        return "it caches compressed keys, which no head can drop for itself"
    for layer in cache.layers:
        if getattr(layer, "keys", None) is not None:
            layer.keys, layer.values = layer.keys[:, :, 2:], layer.values[:, :, 2:]
    again = _Probe(only=0)
    with recording(again), contextlib.suppress(Enough):
        model.hidden(ids[:, -1:], past_key_values=cache, position_ids=_at(ids, -1, 0), use_cache=True)
    return "" if torch.equal(again.calls[0].q, first) else "it counts positions by what its cache holds"

"""The attention heads of every family: where each one's weights are, and a model without some of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sparsity_core.kinds import WeightMethod
from sparsity_core.models import AttentionNames, Model, ModelError, decoder_layers, wrap
from sparsity_core.weights.compressed import CompressedModel
from sparsity_core.weights.counts import kept_count
from sparsity_core.weights.ffn import feed_forwards, set_weight, shared_copy, weight_of
from sparsity_core.weights.neurons import top
from sparsity_core.work import Progress


@dataclass(frozen=True, eq=False)
class Heads:
    """One layer's value and output weights, views of the model's own: H query heads of D channels, Hkv value heads."""

    layer: int
    value: torch.Tensor  # [Hkv, D, hidden]
    output: torch.Tensor  # [H, hidden, D]


def heads_of(model: Model) -> list[Heads]:
    """Each layer's heads. Raises ModelError for a model without one of the known layouts."""
    arch, names, found = model.arch, _names(model), []
    for index, layer in enumerate(model.layers):
        value = weight_of(layer.get_submodule(names[2]))
        value = value[-arch.n_kv_heads * arch.head_dim :]  # the last part, where one matrix holds query, key and value
        output = weight_of(layer.get_submodule(names[3]))
        found.append(
            Heads(
                index,
                value.unflatten(0, (arch.n_kv_heads, arch.head_dim)),
                output.unflatten(1, (arch.n_heads, arch.head_dim)).transpose(0, 1),
            )
        )
    return found


def output_projections(model: Model) -> list[torch.nn.Module]:
    """The module of each layer that reads the heads' outputs [B, T, H · D]."""
    return [layer.get_submodule(_names(model)[3]) for layer in model.layers]


def shrinks(model: Model) -> bool:
    """Whether the configuration can say that heads are gone; a whole KV group goes at a time then."""
    return model.family.any_heads


def n_units(model: Model) -> int:
    """How many units a layer is cut by: KV groups where heads can go, query heads elsewhere."""
    return model.arch.n_kv_heads if shrinks(model) else model.arch.n_heads


def cut_heads(
    model: Model,
    method: WeightMethod,
    score: Callable[[Model, Progress], Sequence[torch.Tensor]],
    progress: Progress,
    *,
    ratio: float,
    reads_text: bool,
) -> CompressedModel:
    """The model without the heads that `score` puts lowest, the same number in every layer; `method` names the result.

    `score` gives each layer's scores [n_units(model)], and `reads_text` says whether it reads calibration text for them.
    """
    began = time.perf_counter()
    n = n_units(model)
    units = "KV groups" if shrinks(model) else "heads"
    keep = kept_count(n, ratio, what=units)
    kept = [torch.arange(n)] * model.arch.n_layers
    if keep < n:
        kept = [top(scores, keep) for scores in score(model, progress)]
    notes = []
    with torch.no_grad():
        hf, removed = (shared_copy(model.hf), 0) if keep == n else without_heads(model, kept)
    if abs((n - keep) / n - ratio) > 0.005:
        notes.append(f"Each layer has {n} {units}: a share of {ratio:g} was rounded to {n - keep} of them.")
    if keep < n and not shrinks(model):
        notes.append(
            f"The configuration of {model.arch.family} ties the number of heads to the hidden size, so the heads' columns of "
            "the output projection are zeros: exact, but the saved size does not shrink."
        )
    wide = model.arch.n_heads // n
    extra = {
        "nominal_cut_of_ffn": 0.0,
        "nominal_cut_of_heads": ratio,
        "kept_heads_by_layer": [_channels(each, wide).tolist() for each in kept],
        "calibrated": keep < n and reads_text,
    }
    compressed = wrap(hf, model.tokenizer, f"{model.name} {method}")
    neurons = tuple(np.arange(block.n_neurons) for block in feed_forwards(model))
    progress(1.0, "every layer is cut")
    seconds = time.perf_counter() - began
    return CompressedModel(compressed, model, method, neurons, seconds, tuple(notes), extra, removed)


def without_heads(model: Model, kept: Sequence[torch.Tensor]) -> tuple[Any, int]:
    """A transformers model that shares every weight with `model` but its attention, and how many parameters went.

    `kept` names, for each layer, the KV groups that stay where `shrinks(model)`, the same number in every layer; and the
    query heads elsewhere, where the others' columns of the output projection become zeros.
    """
    hf, arch = shared_copy(model.hf), model.arch
    before, zeros = sum(p.numel() for p in hf.parameters()), 0
    for layer, stay in zip(decoder_layers(hf, arch.n_layers), kept, strict=True):
        modules: list[Any] = [layer.get_submodule(name) for name in _names(model)]
        query, key, value, output = modules
        if not shrinks(model):
            gone = torch.ones(arch.n_heads, dtype=torch.bool)
            gone[stay] = False
            weight = weight_of(output).clone()
            weight[:, gone.repeat_interleave(arch.head_dim).to(weight.device)] = 0.0
            set_weight(output, weight, output.bias)
            zeros += int(gone.sum()) * arch.head_dim * len(weight)
            continue
        groups = _channels(stay, arch.head_dim)
        queries = _channels(stay, arch.head_dim * (arch.n_heads // arch.n_kv_heads))
        for module, rows in ((query, queries), (key, groups), (value, groups)):
            rows = rows.to(module.weight.device)
            set_weight(module, weight_of(module)[rows], None if module.bias is None else module.bias[rows])
        set_weight(output, weight_of(output)[:, queries.to(output.weight.device)], output.bias)
    if shrinks(model):
        config = hf.config.get_text_config()
        config.head_dim = arch.head_dim
        config.num_attention_heads = len(kept[0]) * (arch.n_heads // arch.n_kv_heads)
        config.num_key_value_heads = len(kept[0])
        for layer in decoder_layers(hf, arch.n_layers):
            attention: Any = layer.self_attn
            if hasattr(attention, "num_heads"):
                attention.num_heads = config.num_attention_heads
            if hasattr(attention, "num_key_value_heads"):
                attention.num_key_value_heads = config.num_key_value_heads
    return hf, before - sum(p.numel() for p in hf.parameters()) + zeros


def _channels(units: torch.Tensor, width: int) -> torch.Tensor:
    """The channels of units that are `width` channels wide."""
    return (units[:, None] * width + torch.arange(width)).flatten()


def _names(model: Model) -> AttentionNames:
    names = model.family.attention
    if names is None:
        raise ModelError(
            f"{model.name} ({model.arch.family}) has no attention that is known here: it needs query, key, value and output "
            "projections"
        )
    return names

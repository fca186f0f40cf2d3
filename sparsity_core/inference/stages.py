"""A pipeline's stages as the recorder takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sparsity_core.attention import Offloaded, Reading, cuts_once, layer_rules
from sparsity_core.kinds import EvictionMethod, Pipeline, SelectionMethod, ruled
from sparsity_core.models import Model
from sparsity_core.work import Progress, silent

_SNAPSHOT_ELEMENTS = 6_000_000  # of a trace's scores: 24 MB of float32


def snapshot_steps(model: Model, n: int, most: int) -> list[int]:
    """Evenly spaced queries, the last among them, so few that the scores stay below 24 MB."""
    room = _SNAPSHOT_ELEMENTS // max(1, model.arch.n_layers * model.arch.n_kv_heads * n)
    count = min(most, n, max(2, room))
    return sorted(set(np.linspace(n - 1, 0, count).round().astype(int).tolist())) if count else []


def reading_of(
    model: Model, pipeline: Pipeline, n_tokens: int, first: int, progress: Progress, offload: Offloaded | None = None
) -> Reading | None:
    """The pipeline's decode stage over a text; queries from `first` on select."""
    method = pipeline.decode
    if method is None:
        return None
    if not isinstance(method, SelectionMethod):
        raise ValueError(f"{method.name} is no decode method")
    if method.needs_all_keys and (pipeline.gate is not None or pipeline.eviction is not None):
        raise ValueError(method.needs_all_keys)
    make = method.selectors(model, lambda share, doing: progress(0.0, doing))
    return Reading(
        model,
        n_tokens,
        lambda layer: None if layer < method.dense_layers else make(layer),
        method.tokens_of,
        first=first,
        dense_every=method.dense_every,
        mean_value=method.corrects_mean,
        offload=offload,
    )


_pruned: dict[tuple[str, str, str, str], Model] = {}


def pruned(model: Model, pipeline: Pipeline, progress: Progress = silent) -> Model:
    """The model after the pipeline's weights stage. The one pruned last is kept and returned again for the same ask."""
    if pipeline.weights is None:
        return model
    key = (model.fingerprint, model.dtype_name, str(model.device), str(pipeline.weights))
    found = _pruned.get(key)
    if found is None:
        found = pipeline.weights.compress(model, lambda share, doing: progress(0.0, doing)).model
        _pruned.clear()  # one at a time, as with loaded models
        _pruned[key] = found
    return found


def eviction_of(pipeline: Pipeline) -> EvictionMethod | None:
    if pipeline.prefill is not None:
        raise ValueError("the prefill stage cannot be run yet: weights, gate, eviction and decode methods can")
    return pipeline.eviction


def gate_arguments(model: Model, pipeline: Pipeline) -> dict[str, Any]:
    """The recorder's arguments for the gate stage."""
    if pipeline.gate is None:
        return {}
    gate = pipeline.gate.gate(model)
    if gate.hidden_size != pruned(model, pipeline).arch.hidden_size:
        raise ValueError(
            f"{pipeline.weights} changes the residual stream that the gate reads: leave one of the two out"
        )
    return {"gate": gate, "threshold": pipeline.gate.drops_at}


def rules_of(pipeline: Pipeline, texts: Sequence[str], groups: Sequence[int], n: int) -> dict[str, Any]:
    """The recorder's arguments for the user's rules, over a text of n tokens of which some are known."""
    found: dict[str, Any] = {}
    methods = [method for method in (pipeline.gate, pipeline.eviction) if method is not None]
    for name, rules in (("protected", [m.protect for m in methods]), ("dropped", [m.drop for m in methods])):
        named = [ruled(text, texts, groups, n) for text in rules if text]
        if named:
            found[name] = np.logical_or.reduce(named)
    if "protected" in found and "dropped" in found:
        found["dropped"] &= ~found["protected"]
    return found


def default_prefill(model: Model, method: EvictionMethod | None, n: int) -> int:
    """Half the text for methods of one cut, so that the other half shows its cost; all of it for the dense model."""
    return n // 2 if cuts_once(layer_rules(model, method)) else n

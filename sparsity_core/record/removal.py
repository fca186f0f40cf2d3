"""Which stage removed each key from each query: the first of gate, prefill, eviction and decode that did."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from sparsity_core.record.gate import GateRecord
from sparsity_core.record.prefill import PrefillRecord
from sparsity_core.record.reading import ReadingRecord

_ROWS = 256  # queries that are counted at once


class Trace(Protocol):
    """What of a trace tells which stage removed a key."""

    @property
    def gate(self) -> GateRecord | None: ...
    @property
    def prefill(self) -> PrefillRecord | None: ...
    @property
    def reading(self) -> ReadingRecord | None: ...
    @property
    def evicted_at(self) -> np.ndarray: ...
    @property
    def stages(self) -> list[str]: ...
    @property
    def n_layers(self) -> int: ...
    @property
    def n_kv_heads(self) -> int: ...
    @property
    def n_tokens(self) -> int: ...


def removed_rows(trace: Trace, layer: int, start: int, end: int) -> np.ndarray:
    """uint8 [kv_head, end − start, end]: what removed each key from queries start … end − 1; 0: it is read.

    A key is removed from a KV head where none of its query heads reads it. What the model itself hides, such as the keys
    beyond a layer's own window, is charged to no stage. Entries after the query's own key are 0.

    Raises ValueError where a decode stage's choices were not kept.
    """
    found = np.zeros((trace.n_kv_heads, end - start, end), np.uint8)
    query, key = np.arange(start, end)[:, None], np.arange(end)
    for stage, gone in _removals(trace, layer, start, end, query).items():
        found[gone & (found == 0)] = 1 + stage
    found[:, key > query] = 0
    return found


def removed_at(trace: Trace, step: int) -> np.ndarray:
    """uint8 [layer, kv_head, T]: what removed each key from the query at `step`, as `removed_rows` has it."""
    found = np.zeros((trace.n_layers, trace.n_kv_heads, trace.n_tokens), np.uint8)
    for layer in range(trace.n_layers):
        found[layer, :, : step + 1] = removed_rows(trace, layer, step, step + 1)[:, 0]
    return found


def removed_pairs(trace: Trace, layer: int) -> np.ndarray:
    """int64 [1 + stages]: of a layer's causal pairs of a query and a key, over its KV heads, those read, and those that each
    stage of `trace.stages` removed."""
    total = np.zeros(1 + len(trace.stages), np.int64)
    n = trace.n_tokens
    for start in range(0, n, _ROWS):
        rows = removed_rows(trace, layer, start, min(n, start + _ROWS))
        total += np.bincount(rows.ravel(), minlength=len(total))
    total[0] -= trace.n_kv_heads * (_counted(n) - n * (n + 1) // 2)  # the entries above the diagonal
    return total


def _counted(n: int) -> int:
    """Entries of the blocks of rows that `removed_pairs` looks at, of one head."""
    return sum((min(n, start + _ROWS) - start) * min(n, start + _ROWS) for start in range(0, n, _ROWS))


def _removals(trace: Trace, layer: int, start: int, end: int, query: np.ndarray) -> dict[int, np.ndarray]:
    """What each stage hides, by its place in `trace.stages`, in their order: bool, of [kv_head, R, C] or what serves all."""
    places = {text.partition("=")[0]: i for i, text in enumerate(trace.stages)}
    found: dict[int, np.ndarray] = {}
    evicted = query >= trace.evicted_at[layer][:, None, :end]
    if trace.gate is not None:
        gated = (query >= trace.gate.gated_at[layer][:end])[None]
        # Without a method that evicts, what else is gone went by the gate's own rules.
        found[places["gate"]] = gated if "eviction" in places else evicted
    if trace.prefill is not None:
        found[places["prefill"]] = unseen(trace, layer, start, end)
    if "eviction" in places:
        found[places["eviction"]] = evicted
    if trace.reading is not None:
        found[places["decode"]] = trace.reading.unread(layer, start, end)
    return found


def unseen(trace: Trace, layer: int, start: int, end: int) -> np.ndarray:
    """bool [kv_head, R, C]: what the prefill's mask does not show; what comes after the prompt sees all."""
    assert trace.prefill is not None
    mask = trace.prefill.mask(layer)
    unseen = np.zeros((trace.n_kv_heads, end - start, end), bool)
    last = min(end, mask.n_tokens)
    if start < last:
        rows = mask.rows(start, last, np.arange(last))
        rows = np.broadcast_to(rows, (mask.lists, *rows.shape[1:]))
        unseen[:, : last - start, :last] = ~rows.reshape(trace.n_kv_heads, -1, *rows.shape[1:]).any(1)
    return unseen

"""Offloaded decoding: keys and values stay in host memory, and what a layer will read is fetched while the one before computes.

At layer l a query of layer l + 1 is predicted from layer l's own hidden state; its selection over the label cache is
copied into the other half of a double buffer. Layer l + 1 then fetches only what the prediction missed. On a CPU both
sides are the same memory and the code is the same.
"""

from __future__ import annotations

import math
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sparselens_kernels import Side, is_card, sparse_decode
from transformers.cache_utils import DynamicLayer

from sparsity_core.attention.selection import corrected, top_keys
from sparsity_core.kinds import Selector
from sparsity_core.record import OffloadRecord


class HostLayer(DynamicLayer):
    """A layer of a transformers cache whose tensors are in host memory, pinned beside a GPU; it hands out only what is new."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity, self.n = capacity, 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        pin = is_card(key_states.device)
        shape = (*key_states.shape[:2], self.capacity)
        self._keys = torch.empty(*shape, key_states.shape[3], dtype=key_states.dtype, pin_memory=pin)
        self._values = torch.empty(*shape, value_states.shape[3], dtype=value_states.dtype, pin_memory=pin)
        self.value_sum: Any = 0.0  # [1, Hkv, D], on the device
        self.is_initialized = True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.n + key_states.shape[2]
        self._keys[:, :, self.n : end].copy_(key_states)
        self._values[:, :, self.n : end].copy_(value_states)
        self.value_sum = self.value_sum + value_states.float().sum(2)
        self.n, self.keys, self.values = end, self._keys[:, :, :end], self._values[:, :, :end]
        return key_states, value_states

    def get_seq_length(self) -> int:
        return self.n

    def shape(self, like: torch.Tensor) -> torch.Tensor:
        """[1, Hkv, n, 0] on the device of `like`: how many keys there are, for an index that needs no more to score them."""
        return like.new_empty(1, self._keys.shape[1], self.n, 0)

    def rows(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values at index [Hkv, S], as host tensors [Hkv, S, D]."""
        heads = torch.arange(index.shape[0])[:, None]
        return self._keys[0][heads, index], self._values[0][heads, index]


@dataclass
class Moved:
    """What offloaded decoding fetched, over all steps so far."""

    needed: list[int]  # of each layer: rows that its selections named, its own token's aside
    ready: list[int]  # of them, rows that a prediction had fetched
    bytes_ahead: int = 0
    bytes_late: int = 0

    @property
    def hit_rate(self) -> list[float]:
        """Share of each layer's rows that the prediction had ready; nan where nothing was needed."""
        return [r / n if n else math.nan for r, n in zip(self.ready, self.needed, strict=True)]

    def record(self) -> OffloadRecord:
        return OffloadRecord(np.asarray(self.hit_rate, np.float32), self.bytes_ahead, self.bytes_late)


@dataclass(eq=False)
class _Slot:
    """One half of the double buffer: what was fetched for a layer, and when it may be read and written."""

    layer: int = -1
    index: torch.Tensor | None = None  # int64 [Hkv, S], ascending
    rows: Future[tuple[torch.Tensor, torch.Tensor]] | None = None
    written: Any = None  # events
    read: Any = None


class Offloaded:
    """One generation's fetching. `layers` are the cache's, of which the HostLayers are offloaded."""

    def __init__(self, layers: list[Any], device: torch.device) -> None:
        self.layers, self.device = layers, device
        self.moved = Moved([0] * len(layers), [0] * len(layers))
        self._slots = (_Slot(), _Slot())
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._side = Side(device)

    def is_host(self, layer: int) -> bool:
        return layer < len(self.layers) and isinstance(self.layers[layer], HostLayer)

    def close(self) -> None:
        self._worker.shutdown(wait=True)

    def prefetch(self, layer: int, q: torch.Tensor, selector: Selector, share: float, scale: float) -> None:
        """Begins to fetch what the predicted query q [1, H, 1, D] of a layer would select."""
        host, slot = self.layers[layer], self._slots[layer % 2]
        index = top_keys(q, host.shape(q), selector, share=share, scale=scale).columns[0].sort(-1).values
        slot.layer, slot.index = layer, index
        ready = self._side.event()  # the selection, on the stream that computes
        slot.rows = self._worker.submit(self._fetch, host, index, slot, ready)

    def attend(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        index: torch.Tensor,
        scale: float,
        known: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Exact attention [1, H, 1, D] of q over the cached keys at index [1, Hkv, S] and the new key k, v [1, Hkv, 1, D].

        With `known` [1, Hkv], what is not read counts with the mean value, by 1 − known.
        """
        host, slot, wanted = self.layers[layer], self._slots[layer % 2], index[0]
        past = wanted < host.n - 1  # the newest is on the device already
        n_kv, n = wanted.shape
        keys = q.new_empty(n_kv, n, k.shape[3])
        values = v.new_empty(n_kv, n, v.shape[3])
        own = ~past
        keys[own], values[own] = (x[0].expand(n_kv, n, -1)[own] for x in (k, v))
        missing = past.clone()
        if slot.layer == layer and slot.index is not None and slot.rows is not None and slot.index.shape[1]:
            found_keys, found_values = slot.rows.result()
            self._side.wait(slot.written)
            at = torch.searchsorted(slot.index, wanted).clamp_max(slot.index.shape[1] - 1)
            hit = past & (slot.index.gather(1, at) == wanted)
            heads = torch.arange(n_kv, device=wanted.device)[:, None].expand_as(at)
            keys[hit], values[hit] = found_keys[heads[hit], at[hit]], found_values[heads[hit], at[hit]]
            slot.read = self._side.event()
            missing &= ~hit
            self.moved.ready[layer] += int(hit.sum())
        slot.layer = -1
        if bool(missing.any()):
            head, place = missing.nonzero(as_tuple=True)
            rows = host.rows(wanted.cpu())  # one gather for all heads; only what is missing is sent
            keys[head, place] = rows[0][head.cpu(), place.cpu()].to(keys.device)
            values[head, place] = rows[1][head.cpu(), place.cpu()].to(values.device)
        self.moved.needed[layer] += int(past.sum())
        self.moved.bytes_late += int(missing.sum()) * self._row_bytes(host)
        every = torch.arange(n, device=q.device).expand(1, n_kv, n)
        out = sparse_decode(q[:, :, 0], keys[None], values[None], every, scale=scale)[:, :, None]
        return out if known is None else corrected(out, known.view(n_kv, 1, 1), host.value_sum[0][:, None] / host.n)

    def _fetch(
        self, host: HostLayer, index: torch.Tensor, slot: _Slot, ready: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.inference_mode(), self._side.after(ready, slot.read):
            rows = host.rows(index.cpu())
            self.moved.bytes_ahead += index.numel() * self._row_bytes(host)
            if not self._side.exists:
                return rows
            sent = tuple(x.pin_memory().to(self.device, non_blocking=True) for x in rows)
            slot.written = self._side.event()
            return sent[0], sent[1]

    @staticmethod
    def _row_bytes(host: HostLayer) -> int:
        assert host.keys is not None and host.values is not None
        return (host.keys.shape[3] + host.values.shape[3]) * host.keys.element_size()

"""The decode stage of methods that take channels from the cached keys: which ones, and a cache that is smaller for it.

Attention to a key without some channels is attention to the key with noughts there, so the stages around this one work on such
keys as on any others. In one forward over a whole text, the queries after the prompt see them in place of the prompt's own; in a
generation the cache holds the channels that are left, and hands out the noughts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sparselens_kernels import EMPTY
from transformers.cache_utils import DynamicLayer

from sparsity_core.attention.step import LayerKeys, Stage, Step, take
from sparsity_core.kinds import ThinningMethod
from sparsity_core.record import ThinningRecord


class ThinLayer(DynamicLayer):
    """A layer of a transformers cache whose first keys may have lost channels: `thin_keys` [B, Hkv, n, r], before `keys`."""

    keys: Any  # None before the first token, as transformers has it
    values: Any
    thin_keys: torch.Tensor | None = None

    def thin(self, n: int, kept: torch.Tensor) -> None:
        """Leaves the first n of its keys, all of which are whole, only the channels `kept`, bool [B, Hkv, D], r of each head."""
        self._kept, r = kept[:, :, None], int(kept[0, 0].sum())
        first = self._kept.expand(-1, -1, n, -1)
        self.thin_keys = self.keys[:, :, :n].masked_select(first).view(*kept.shape[:2], n, r)
        self.keys = self.keys[:, :, n:].clone()  # a view would keep all of it

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """All keys and values, with noughts for the channels that are gone."""
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        if self.thin_keys is None:
            return keys, values
        first = keys.new_zeros(*self.thin_keys.shape[:3], keys.shape[3])
        first.masked_scatter_(self._kept.expand_as(first), self.thin_keys)
        return torch.cat([first, keys], dim=2), values

    def get_seq_length(self) -> int:
        return int(self.values.shape[2]) if self.is_initialized and self.values.numel() else 0


class ThinningStage(Stage):
    """Takes channels from the keys of one text when its prompt of `n_prefill` tokens has been read.

    With `cache`, of `ThinLayer` where keys lose channels, they leave it; without one, one forward simulates that.
    """

    def __init__(self, method: ThinningMethod, n_prefill: int, cache: Any = None) -> None:
        self._method, self._end, self._cache = method, n_prefill, cache
        self._keys: dict[int, LayerKeys] = {}
        self._kept: dict[int, torch.Tensor] = {}  # bool [B, Hkv, D]
        self._like: dict[int, torch.Tensor] = {}  # a key, [B, Hkv, D], of each layer

    def restrict(self, step: Step) -> torch.Tensor | None:
        layer, call = step.layer, step.call
        if layer not in self._keys:
            self._keys[layer], self._like[layer] = step.keys, call.k[:, :, -1].clone()
        if self._acts_on(layer) and not step.generating:
            step.later = lambda k, positions: self._thinned(step, k, positions)
        return None

    def observe(self, step: Step) -> None:
        """Chooses the channels after the prompt's last query, and takes the others from the cache."""
        call, layer = step.call, step.layer
        if not step.generating or not self._acts_on(layer) or step.start + call.n_queries != self._end:
            return
        held = call.k if step.left is None else take(call.k, step.left)
        self._choose(step, held, step.keys.positions)
        if step.left is None:
            self._store(layer)

    def keep(self, layer: int, columns: torch.Tensor) -> None:
        """Takes the channels again from the cache of a layer that was cut, and put back with noughts."""
        if layer in self._kept:
            self._cache.layers[layer].thin_keys = None
            self._store(layer)

    def nbytes(self, layer: int) -> int:
        """Of which channels each head has: a byte for each."""
        return self._kept[layer].nbytes if layer in self._kept else 0

    def saved_bytes(self) -> int:
        """What the keys that are held would take more with all their channels."""
        total = 0
        for layer, kept in self._kept.items():
            gone = (~kept).sum(2)  # [B, Hkv]
            total += int((gone * self._n_thin(layer)).sum()) * self._like[layer].element_size()
        return total

    def record(self, n: int) -> ThinningRecord:
        layers = sorted(self._keys)
        every = {i: torch.ones_like(self._like[i][0], dtype=torch.bool) for i in layers}
        none = {i: torch.zeros_like(every[i][:, 0], dtype=torch.int32) for i in layers}
        return ThinningRecord(
            channels_kept=_stacked([self._kept[i][0] if i in self._kept else every[i] for i in layers]),
            thinned=_stacked([self._n_thin(i)[0].int() if i in self._kept else none[i] for i in layers]),
        )

    def _acts_on(self, layer: int) -> bool:
        return layer >= self._method.first_layers

    def _thinned(self, step: Step, k: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """The held keys k [B, Hkv, n, D] as queries after the prompt see them."""
        self._choose(step, k, positions)
        gone = ~self._kept[step.layer][:, :, None] & self._old(positions)[..., None]
        return k.masked_fill(gone, 0.0)

    def _choose(self, step: Step, k: torch.Tensor, positions: torch.Tensor) -> None:
        """The channels that stay, by the prompt's last queries and the keys [B, Hkv, n, D] that are held when it ends."""
        end = self._end - step.start
        q = step.call.q[:, :, max(0, end - self._method.n_queries) : end]
        there = positions != EMPTY
        if (until := step.keys.until(positions)) is not None:
            there = there & (until >= self._end)
        found = self._method.importance(q, k.masked_fill(~there[..., None], 0.0))
        best = found.topk(self._method.channels_left(k.shape[3]), dim=-1).indices
        self._kept[step.layer] = torch.zeros_like(found, dtype=torch.bool).scatter_(-1, best, True)

    def _old(self, positions: torch.Tensor) -> torch.Tensor:
        return positions < self._end - self._method.whole

    def _n_thin(self, layer: int) -> torch.Tensor:
        """int64 [B, Hkv]: how many of the keys that are held have lost channels."""
        positions = self._keys[layer].positions
        return (self._old(positions) & (positions != EMPTY)).sum(2)

    def _store(self, layer: int) -> None:
        """Takes the channels from the first columns of a layer's cache, as many as are old in every head.

        A head whose further columns are old too holds noughts there: heads that dropped different keys share one rectangle.
        """
        own, old, kept = self._cache.layers[layer], self._old(self._keys[layer].positions), self._kept[layer]
        gone = old[..., None] & ~kept[:, :, None]
        own.keys = torch.cat(
            [own.keys[:, :, : old.shape[2]].masked_fill(gone, 0.0), own.keys[:, :, old.shape[2] :]], dim=2
        )
        own.thin(int(old.sum(2).min()), kept)


def _stacked(parts: list[torch.Tensor]) -> np.ndarray:
    return torch.stack(parts).cpu().numpy()

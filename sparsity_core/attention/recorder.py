"""What follows a pipeline through a forward: it walks the stages in order, and cuts the cache by what they leave."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sparselens_kernels import EMPTY, NEVER, KeyMask, evict_scan

from sparsity_core.attention.cutting import UNLIMITED
from sparsity_core.attention.eviction import EvictionStage
from sparsity_core.attention.gate import GateStage
from sparsity_core.attention.prefill import PrefillStage
from sparsity_core.attention.reading import ReadingStage
from sparsity_core.attention.rules import parts_heads
from sparsity_core.attention.step import LayerKeys, Stage, Step, reading_through, stacked, take
from sparsity_core.attention.thinning import ThinningStage
from sparsity_core.models import AttentionCall, Enough, Model


@dataclass
class Stages:
    """A pipeline's stages, the eviction stage being dense where no method evicts.

    The gate and eviction follow a batch of equally long texts; prefill and reading, whose masks and selectors are of one
    text, follow one.
    """

    eviction: EvictionStage
    gate: GateStage | None = None
    prefill: PrefillStage | None = None
    reading: ReadingStage | None = None
    thinning: ThinningStage | None = None
    dropped: torch.Tensor | None = None  # bool [1 or B, T]: tokens that the user's rules drop

    @property
    def others(self) -> list[Stage]:
        """The stages around eviction, in their order."""
        return [stage for stage in (self.gate, self.prefill, self.reading, self.thinning) if stage is not None]


class Recorder:
    """Runs a pipeline's stages over its text, or some of equal length, and keeps what they did in O(L · Hkv · T) memory.

    Each call passes the stages in order: `restrict` hides keys, `eviction` attends over what is kept and drops, `observe`
    may put another output in place. The driver sets `start`, the position of the forward's first query. With `cache`, a
    transformers DynamicCache, what is dropped leaves the cache at once; without it one forward over the whole text
    simulates the drops.
    """

    def __init__(
        self,
        model: Model,
        stages: Stages,
        *,
        n_tokens: int,
        cache: Any = None,
        only_layer: int | None = None,
        on_layer: Callable[[int], None] = lambda layer: None,
    ) -> None:
        self.model, self.stages, self.n_tokens, self.cache = model, stages, n_tokens, cache
        self._eviction, self._others = stages.eviction, stages.others
        self._only_layer, self._on_layer = only_layer, on_layer
        self.start = 0
        self.calls = [0] * model.arch.n_layers
        self._sources = {model.cached_in(i) for i in range(len(self.calls))} if model.shares_caches else set()
        self._keys: dict[int, LayerKeys] = {}
        # The positions of the keys that a layer others share with has just read.
        self._read: dict[int, torch.Tensor] = {}

    def attend(self, call: AttentionCall) -> torch.Tensor:
        if call.q.shape[0] > 1 and any(stage is not self.stages.gate for stage in self._others):
            raise ValueError(f"prefill and decode methods follow one text at a time; got a batch of {call.q.shape[0]}")
        layer = call.layer
        self._on_layer(layer)
        self.calls[layer] += 1
        keys, source = self._keys_of(layer, call.k, call.v), self.model.cached_in(layer)
        if source != layer:
            return self._attend_shared(call, source)
        step = Step(call, self.start, keys, keys.positions, self.cache is not None, call.q)
        if layer in self._sources:
            self._read[layer] = step.positions
        for stage in self._others:
            answer = stage.answer(step)
            if answer is not None:
                return answer
        for stage in self._others:
            stay = stage.restrict(step)
            if stay is not None:
                self._cut_before(step, stay)
        step.out = self._eviction.attend(step)
        for stage in self._others:
            stage.observe(step)
        self._cut_after(step)
        if layer == self._only_layer:
            raise Enough
        return step.out

    def _attend_shared(self, call: AttentionCall, source: int) -> torch.Tensor:
        """The output of a layer that reads another's cache: it sees what that layer's queries see."""
        positions, keys, n = self._read[source], self._keys[source], call.n_queries
        past = positions[..., : call.n_keys - n]
        mask = self.masks.get(source) if n == call.n_keys else None
        call = reading_through(mask, call)
        return evict_scan(
            call.q,
            call.k,
            call.v,
            budget=UNLIMITED,
            scored=False,
            until=keys.evicted_at.gather(2, keys.place(positions)),
            mask=mask,
            positions=past,
            score=torch.zeros_like(past, dtype=torch.float32),
            start=self.start,
            **call.how,
        ).out

    def _cut_before(self, step: Step, seen: torch.Tensor) -> None:
        """Leaves only the cached columns that are `seen` [B, past] and the step's own key, before its query looks."""
        layer, call, keys = step.layer, step.call, step.keys
        columns = keys.keep(keys.positions, seen[:, None].expand_as(keys.positions))
        newest = columns.new_full((1, 1, 1), call.n_keys - 1).expand(*columns.shape[:2], -1)
        self._cut_cache(call, torch.cat([columns, newest], dim=2))
        for stage in (self._eviction, *self._others):
            stage.keep(layer, columns)
        step.before = keys.positions
        own = self.cache.layers[layer]
        step.call = call.with_keys(own.keys, own.values)

    def _cut_after(self, step: Step) -> None:
        """Leaves only the columns that the eviction stage kept."""
        if step.left is None or self.cache is None:
            return
        self._cut_cache(step.call, step.left)
        for stage in self._others:
            stage.keep(step.layer, step.left)

    def _cut_cache(self, call: AttentionCall, columns: torch.Tensor) -> None:
        own = self.cache.layers[call.layer]
        own.keys, own.values = take(call.k, columns), take(call.v, columns)

    def _keys_of(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> LayerKeys:
        if layer not in self._keys:
            # On a CPU all at once, before the forward: lying between its large blocks they would split the room these leave.
            for i in range(len(self.calls)) if k.device.type == "cpu" else [layer]:
                source = self.model.cached_in(i)
                if source != i:
                    self._keys[i] = self._keys[source]
                    self._eviction.share(i, source)
                    continue
                alike = not parts_heads(self._eviction.rules[i])
                self._keys[i] = LayerKeys.empty(
                    k.shape[0],
                    k.shape[1],
                    self.n_tokens,
                    k.device,
                    dropped=self.stages.dropped,
                    hides=self.stages.gate is not None,
                    alike=alike,
                )
                self._eviction.begin(i, self._keys[i])
        self._keys[layer].key_bytes = (k.shape[3] + v.shape[3]) * k.element_size()
        return self._keys[layer]

    @property
    def masks(self) -> dict[int, KeyMask]:
        """What the prefill stage showed the prompt's queries, by layer; empty without one."""
        return {} if self.stages.prefill is None else self.stages.prefill.masks

    @property
    def index_bytes(self) -> int:
        """What the stages hold beside the cache; where drops are simulated, of the keys that are left."""
        return sum(stage.nbytes(layer) for stage in (self._eviction, *self._others) for layer in self._keys)

    def cached_bytes(self) -> int:
        """The keys and values of all texts after the last query, without empty slots; of compressed keys, those that any
        head keeps."""
        total = 0
        for layer, keys in self._keys.items():
            own = self.model.caches[layer]
            if own.latent:
                total += own.token_bytes * sum(len(text[text != EMPTY].unique()) for text in keys.positions)
            elif own.source is None:
                total += keys.key_bytes * int(keys.n_held.sum())
        return total - (0 if self.stages.thinning is None else self.stages.thinning.saved_bytes())

    @property
    def drops(self) -> bool:
        """Whether anything has been dropped, be it after the last query."""
        return any(bool((keys.evicted_at[..., :-1] != NEVER).any()) for keys in self._keys.values())

    def evicted_at(self, n: int, text: int = 0) -> np.ndarray:
        """int32 [L, Hkv, n] of one text of the batch; n where never."""
        found = stacked({i: keys.evicted_at[text] for i, keys in self._keys.items()})
        return found[..., :n].clip(max=n).astype(np.int32)

    def check_fired(self, forwards: int) -> None:
        """Raises RuntimeError where a layer's attention did not go through the hook in each of the forwards."""
        missed = [layer for layer, calls in enumerate(self.calls) if calls != forwards]
        if missed:
            raise RuntimeError(f"the recording hook did not fire once per forward in layers {missed}")

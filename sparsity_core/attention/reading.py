"""The decode stage's engine: which keys of its cache each query reads, in every layer."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from sparselens_kernels import EMPTY, NEVER

from sparsity_core.attention.offload import Offloaded
from sparsity_core.attention.prediction import predicted_query
from sparsity_core.attention.selection import Selected, attend_selected, decode_selected, top_keys
from sparsity_core.attention.step import LayerKeys, Stage, Step
from sparsity_core.kinds import Selector
from sparsity_core.models import AttentionCall, Model
from sparsity_core.record import DriftRecord, ReadingRecord

_MOST_BITS = 8 * 2**24  # 16 MiB, of which keys each query reads


class ReadingStage(Stage):
    """Lets each query of one text from `first` on read a share of its cache, and keeps what it read.

    `selectors` makes a layer's selector, None where the layer reads all; `tokens` is the share of the context that each of
    its queries reads, and every `dense_every`-th position reads all. With `offload` the caches lie in host memory.
    """

    def __init__(
        self,
        model: Model,
        n_tokens: int,
        selectors: Callable[[int], Selector | None],
        tokens: Callable[[int], float],
        *,
        first: int = 0,
        dense_every: int = 0,
        mean_value: bool = False,
        offload: Offloaded | None = None,
    ) -> None:
        self._model, self._n_tokens, self._offload = model, n_tokens, offload
        self._make_selector, self._tokens = selectors, tokens
        self._first, self._dense_every, self._mean_value = first, dense_every, mean_value
        self._selectors: dict[int, Selector | None] = {}
        self._selected: dict[int, Selected] = {}
        self._simulated: dict[int, LayerKeys] = {}

    def answer(self, step: Step) -> torch.Tensor | None:
        """A decode step of a layer whose cache is in host memory; the next layer's fetch begins first."""
        call, layer = step.call, step.layer
        if self._offload is None or call.n_queries > 1 or step.start < self._first:
            return None
        if call.softcap is not None or call.window is not None:
            raise ValueError(
                "a layer with soft-capped logits or a sliding window cannot be offloaded: leave offload off"
            )
        following = self._selectors.get(layer + 1)
        if following is not None and self._offload.is_host(layer + 1):
            predicted = predicted_query(self._model, layer)
            if predicted is not None:
                share = self._share(layer + 1, step.start)
                self._offload.prefetch(layer + 1, predicted, following, share, call.scale)
        selector = self._selectors.get(layer)
        if selector is None or not self._offload.is_host(layer):
            return None
        selector.append(call.k)
        host, share = self._offload.layers[layer].shape(call.q), self._share(layer, step.start)
        index, _, known = top_keys(call.q, host, selector, share=share, scale=call.scale, known=self._mean_value)
        self._selected[layer].read(step.start, index)
        return self._offload.attend(layer, call.q, call.k, call.v, index, call.scale, known)

    def observe(self, step: Step) -> None:
        """Replaces the output of the decode queries by attention over what they select."""
        call, layer = step.reads, step.layer
        if layer not in self._selectors:
            self._selectors[layer] = self._make_selector(layer)
            bits = self._model.arch.n_layers * call.n_kv * self._n_tokens**2
            self._selected[layer] = Selected.empty(call.q.shape[1], call.n_kv, self._n_tokens, bits <= _MOST_BITS)
            if not step.generating:
                self._simulated[layer] = step.keys
        selector = self._selectors[layer]
        if selector is None:
            return
        dense = min(call.n_queries, max(0, self._first - step.start))
        if step.generating and call.n_queries == 1 and not dense:
            step.out = self._step(step, selector)
        else:
            step.out = self._block(step, selector, dense, call, step.keys.evicted_at[0])

    def _step(self, step: Step, selector: Selector) -> torch.Tensor:
        """One query's attention over its selection of the cache."""
        call, layer = step.call, step.layer
        unseen = _unseen(step)
        if call.softcap is not None:  # the cache's columns are not the text's
            until = None if unseen is None else torch.where(unseen, 0, NEVER)
            own = AttentionCall(layer, call.q, call.k, call.v, call.scale, call.softcap)
            return self._block(step, selector, 0, own, until)
        selector.append(call.k[:, :, call.n_keys - 1 :])
        out, chosen = decode_selected(
            call.q,
            call.k,
            call.v,
            selector,
            share=self._share(layer, step.start),
            scale=call.scale,
            visible=None if unseen is None else ~unseen,
            mean_value=self._mean_value,
        )
        group = chosen.columns.shape[1] // call.n_kv
        read = step.positions.repeat_interleave(group, 1).gather(2, chosen.columns)
        self._selected[layer].read(step.start, read, chosen.n_selected)
        self._follow_channels(selector, call.q, call.k, step.start + 1)
        return out

    def _block(
        self, step: Step, selector: Selector, dense: int, call: AttentionCall, until: torch.Tensor | None
    ) -> torch.Tensor:
        """A block of queries, the first `dense` of which keep their output; `until` [Hkv, Tk] hides keys from queries on."""
        n, past, start = call.n_queries, call.n_keys - call.n_queries, step.start
        parts = []
        for begin, end in self._stretches(selector, start, dense, n):
            own = call.rows(begin, end)
            selector.append(call.k[:, :, past + begin : past + end])
            if begin < dense:
                parts.append(step.out[:, :, begin:end])
            else:
                selected = attend_selected(
                    own,
                    selector,
                    share=self._tokens(step.layer),
                    start=start + begin,
                    record=self._selected[step.layer],
                    positions=step.positions[0],
                    until=None if until is None else until[:, : past + end],
                    dense_every=self._dense_every,
                    mean_value=self._mean_value,
                    mask=step.mask,
                )
                parts.append(selected)
            self._follow_channels(selector, own.q, own.k, start + end)
        return torch.cat(parts, dim=2)

    def keep(self, layer: int, columns: torch.Tensor) -> None:
        """Leaves only these keys [1, Hkv, held] of a layer, as what was dropped left its cache."""
        selector = self._selectors.get(layer)
        if selector is not None:
            selector.keep(columns)

    def record(self, n: int) -> ReadingRecord:
        layers = [self._selected[i] for i in sorted(self._selected)]
        chosen = np.stack([each.chosen[:, :n, : -(-n // 8)] for each in layers])
        return ReadingRecord(
            selected=torch.stack([each.count[:, :n] for each in layers]).numpy(),
            selected_mass=torch.stack([each.mass[:, :n] for each in layers]).numpy(),
            selected_recall=torch.stack([each.recall[:, :n] for each in layers]).numpy(),
            chosen=chosen,
        )

    def drift(self) -> DriftRecord | None:
        """The share of the calibrated channels still chosen at each new ranking; None where they are never ranked again."""
        found = [[] if s is None else s.drift for _, s in sorted(self._selectors.items())]
        steps = next(([read for read, _ in each] for each in found if each), [])
        if not steps:
            return None
        rows = [[share for _, share in each] if each else [math.nan] * len(steps) for each in found]
        return DriftRecord(np.asarray(steps, np.int32), np.asarray(rows, np.float32))

    def nbytes(self, layer: int) -> int:
        """What a layer's selector holds beside the cache; where drops are simulated, of the keys that are left."""
        selector, keys = self._selectors.get(layer), self._simulated.get(layer)
        own = 0 if selector is None else selector.nbytes
        if keys is None:
            return own
        return own * int(keys.n_held.sum()) // (keys.positions.shape[1] * self._n_tokens)

    def _share(self, layer: int, position: int) -> float:
        """Of the context, that the query at `position` reads."""
        every = self._dense_every
        return 1.0 if every and position % every == 0 else self._tokens(layer)

    def _stretches(self, selector: Selector, start: int, dense: int, n: int) -> list[tuple[int, int]]:
        """The forward's queries cut where reading densely ends, and where a selector ranks its channels again."""
        every = selector.rerank
        edges = {0, dense, n}
        if every:
            edges |= {p - start for p in range(start + 1, start + n) if p % every == 0}
        return list(pairwise(sorted(edges)))

    def _follow_channels(self, selector: Selector, q: torch.Tensor, k: torch.Tensor, read: int) -> None:
        """Lets a selector that ranks its channels while running count the queries q, whose keys are the last of k."""
        if selector.rerank:
            selector.follow(q, k[:, :, k.shape[2] - q.shape[2] :])
            if read % selector.rerank == 0:
                selector.rank_again(k, read)


def _unseen(step: Step) -> torch.Tensor | None:
    """bool [Hkv, Tk]: what the step's one query may not look at though it has a slot of the cache; None: it sees all."""
    keys, positions, window = step.keys, step.positions, step.call.window
    waits = keys.hides and not keys.alike  # a hidden key's slot waits for the eviction method to use it again
    if window is None and not waits and not bool((step.before[..., :1] == EMPTY).any()):
        return None
    unseen = (keys.hidden(positions) <= step.start)[0]
    return unseen if window is None else unseen | (positions[0] <= step.start - window)

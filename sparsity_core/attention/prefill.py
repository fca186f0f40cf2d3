"""The prefill stage's engine: each layer's mask is made once, when the prompt passes, and hides keys from its queries."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from sparselens_kernels import KeyMask, Window

from sparsity_core.attention.step import Stage, Step
from sparsity_core.kinds import PromptView
from sparsity_core.record import PrefillRecord, packed

_ROWS = 128  # queries whose masks are counted at once
_MOST_BLOCKS = 128  # on a side of the picture that a trace keeps


class PrefillStage(Stage):
    """Shows the prompt's queries what `masks` makes of each layer; layers before `dense_layers` see everything."""

    def __init__(
        self,
        masks: Callable[[PromptView], KeyMask],
        texts: Sequence[str],
        *,
        n_prompt: int,
        dense_layers: int,
        looks_ahead: bool,
    ) -> None:
        self._make, self._texts, self._n = masks, tuple(texts), n_prompt
        self._dense_layers, self._looks_ahead = dense_layers, looks_ahead
        self.masks: dict[int, KeyMask] = {}
        self._pairs: dict[int, int] = {}
        self._n_heads = 0

    def restrict(self, step: Step) -> None:
        call = step.call
        if step.start or call.n_queries != self._n:
            return
        self._n_heads = call.q.shape[1]
        view = PromptView(step.layer, call.q[0], call.k[0], call.v[0], call.scale, self._texts)
        dense = step.layer < self._dense_layers
        self.masks[step.layer] = everything(call.n_kv, self._n) if dense else self._make(view)
        if not dense:
            step.mask = self.masks[step.layer]

    def observe(self, step: Step) -> None:
        """Counts what the prompt's queries computed, and adds what stands in for the keys that they did not see."""
        if step.mask is not None and step.mask.correct is not None:
            step.out = step.mask.correct(step.out[0])[None]
        if step.layer in self.masks and step.layer not in self._pairs:
            dense = self._n_heads * self._n * (self._n + 1) // 2
            self._pairs[step.layer] = dense if step.pairs is None else step.pairs

    def record(self, n: int) -> PrefillRecord:
        layers = sorted(self.masks)
        block = max(16, -(-self._n // _MOST_BLOCKS))
        lists = max(self.masks[i].lists for i in layers)
        masks = [self.masks[i].cpu() for i in layers]
        counted = [_counted(mask, self._n, block) for mask in masks]
        shown = np.zeros((len(layers), lists, n), np.int32)
        for row, (seen, _) in zip(shown, counted, strict=True):
            row[:, : self._n] = np.repeat(seen, lists // len(seen), 0)
            row[:, self._n :] = np.arange(self._n, n) + 1  # what comes after the prompt sees all of it
        patterns, layouts = packed(masks)
        pictures = np.stack([np.repeat(each, lists // len(each), 0) for _, each in counted])
        return PrefillRecord(
            shown=shown,
            blocks=pictures,
            block=block,
            coverage=np.full((len(layers), self._n_heads, n), np.nan, np.float32),
            pairs=np.asarray([self._pairs[i] for i in layers], np.int64),
            scoring_flops=np.asarray([self.masks[i].scoring_flops for i in layers], np.int64),
            looks_ahead=self._looks_ahead,
            patterns=patterns,
            layouts=layouts,
        )


def everything(lists: int, n_tokens: int) -> KeyMask:
    """The mask under which every query sees all its earlier keys."""
    return KeyMask([Window(n_tokens)], lists, n_tokens)


def _counted(mask: KeyMask, n: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """(int32 [lists, n] keys that each query sees, float32 [lists, blocks, blocks] share of each block's causal pairs)."""
    seen = np.zeros((mask.lists, n), np.int32)
    side = -(-n // block)
    pairs = np.zeros((mask.lists, side, side), np.float64)
    causal = np.zeros((side, side), np.float64)
    edges, key = np.arange(0, n, block), torch.arange(n)
    for start in range(0, n, block):
        end = min(n, start + block)
        rows = mask.rows(start, end, key).numpy().view(np.uint8)  # of one list where all see the same
        seen[:, start:end] = rows.sum(2, dtype=np.int32)
        own = edges[edges < end]
        pairs[:, start // block, : len(own)] = np.add.reduceat(rows.sum(1, dtype=np.int32), own, axis=1)
        later = end - np.maximum(start, np.arange(end))  # queries of the block at or after each key
        causal[start // block, : len(own)] = np.add.reduceat(later, own)
    return seen, (pairs / np.maximum(causal, 1)).astype(np.float32)

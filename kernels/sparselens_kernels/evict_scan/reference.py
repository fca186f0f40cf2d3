"""The eviction recurrence, vectorised over heads: a dense product per block of queries, then a light pass over its rows.

A block's columns are the keys still kept when it starts plus its own keys, so the cost is O(T · (budget + block)) and
not O(T²). Heads that keep fewer keys than others begin with empty columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from sparselens_kernels.dispatch import NEVER
from sparselens_kernels.evict_scan.memory import BlockMemory, Memory
from sparselens_kernels.masks import KeyMask
from sparselens_kernels.rows import accumulator_dtype, attend, decayed_sums, logits
from sparselens_kernels.slots import staying

_ROWS = 128  # of a block: the fastest of 64 to 256 at budgets of 256 and 512

Values = float | torch.Tensor
# Of a block: int64 [B, Hkv, C] the row that drops each column, P [B, Hkv, G, R, C], what each of the rows copied chose among
# [rows copied, B, Hkv, C], and each row's lowest [B, Hkv, R]; see `walk_cpu.walk`.
Walked = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
Walk = Callable[["Block", int, int, bool, Sequence[int]], Walked]


def evict_scan(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    budget: Sequence[int],
    decay: Values,
    n_sink: int,
    recent: int,
    scored: bool,
    weight: torch.Tensor | None,
    initial: Values,
    reduction: str,
    scale: float,
    softcap: float | None,
    window: int | None,
    sink_q: torch.Tensor | None,
    mask: KeyMask | None,
    positions: torch.Tensor,
    score: torch.Tensor,
    start: int,
    snapshot_steps: Sequence[int],
    walk: Walk,
    until: torch.Tensor | None = None,
    protected: torch.Tensor | None = None,
    shared: bool = False,
    memory: Memory | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, Memory | None]:
    """`walk` takes a block's rows one after the other."""
    batch, n_heads, n_queries, _ = q.shape
    n_kv, n_keys = k.shape[1], k.shape[2]
    n_past = n_keys - n_queries
    dtype, device = accumulator_dtype(q.dtype), q.device
    new = torch.arange(start, start + n_queries, device=device).expand(batch, n_kv, n_queries)
    positions = torch.cat([positions.expand(batch, n_kv, n_past), new], dim=2)

    out = q.new_empty(batch, n_heads, n_queries, v.shape[3])
    evicted_at = torch.full((batch, n_kv, n_keys), NEVER, dtype=torch.int32, device=device)
    final = torch.zeros(batch, n_kv, n_keys, dtype=dtype, device=device)
    threshold = torch.full((batch, n_kv, n_queries), float("nan"), dtype=dtype, device=device)
    snapshots = torch.full((batch, n_kv, len(snapshot_steps), n_keys), float("nan"), dtype=dtype, device=device)

    def spread(values: Any, columns: torch.Tensor) -> Any:
        """The values of these columns; numbers and one-value tensors serve every column."""
        if not isinstance(values, torch.Tensor) or values.shape[-1] == 1:
            return values
        return values.expand(batch, n_kv, n_keys).gather(2, columns)

    budgets, n_held = np.array([budget]), np.full((batch, n_kv), n_past)  # n_held: keys of each head
    forced = budgets <= (n_sink + recent if until is None and protected is None else 0)  # heads that have no choice
    if bool((positions[..., 0] < 0).any()):
        evicted_at.masked_fill_(positions < 0, 0)
        n_held -= (positions < 0).sum(2).cpu().numpy()
    kept = torch.arange(n_past, device=device).expand(batch, n_kv, n_past)
    kept_score, complete = score.to(dtype).expand(batch, n_kv, n_past), True
    for begin, end in _blocks(n_queries, free=int((budgets - n_held).min())):
        rows, n_kept = end - begin, kept.shape[2]
        own = torch.arange(n_past + begin, n_past + end, device=device).expand(batch, n_kv, rows)
        columns = torch.cat([kept, own], dim=2)  # [B, Hkv, C]
        # While nothing has been dropped, the columns are a plain slice.
        k_block = k[:, :, : n_past + end] if complete else _gather(k, columns)
        v_block = v[:, :, : n_past + end] if complete else _gather(v, columns)
        own_score = spread(initial, own)
        if not isinstance(own_score, torch.Tensor):
            own_score = torch.full((batch, n_kv, rows), own_score, dtype=dtype, device=device)
        block = Block(
            logits=logits(q[:, :, begin:end], k_block, scale, softcap),
            score=torch.cat([kept_score, own_score.to(dtype).expand(batch, n_kv, rows)], dim=2),
            decay=spread(decay, columns),
            weight=spread(weight, columns),
            reduction=reduction,
            n_kept=n_kept,
            n_empty=n_kept - n_held,
            n_free=np.minimum(budgets - n_held, rows),
            positions=positions.gather(2, columns),
            until=spread(until, columns),
            protected=spread(protected, columns),
            shared=shared,
        )
        if memory is not None:
            block.remember(memory, q[:, :, begin:end], k_block, scale, softcap)
        if sink_q is not None:
            first = min(n_kept + rows, int(block.n_empty.max()) + n_sink)
            block.see_sinks(logits(sink_q[:, :, begin:end], k_block[:, :, :first], scale, softcap), n_sink)
        block.hide(window)
        if mask is not None:
            block.hide_masked(mask)
        steps = {s - begin: slot for slot, s in enumerate(snapshot_steps) if begin <= s < end}
        keeps_all = block.n_free == rows
        if (forced | keeps_all).all():
            # No choice to make: nothing is dropped, or the oldest key outside the sinks is, row after row.
            dropped_in = block.in_turn(n_sink)
            p = block.attention(dropped_in)
            block.accumulate(p if scored else None, dropped_in, steps, columns, snapshots)
        else:
            dropped_in, p, choices, lowest = walk(block, n_sink, recent, scored, list(steps))
            if memory is not None:
                p = block.attention(dropped_in)
            threshold[:, :, begin:end] = lowest
            if forced.any():
                threshold[:, forced.nonzero()[1], begin:end] = float("nan")
            for choice, (row, slot) in zip(choices, steps.items(), strict=True):
                current = choice.masked_fill(dropped_in <= row, float("nan"))
                snapshots[:, :, slot].scatter_(2, columns[..., : n_kept + row + 1], current[..., : n_kept + row + 1])
        out[:, :, begin:end] = attend(p, v_block)
        if block.memory is not None:
            out[:, :, begin:end] = block.memory.add_to(out[:, :, begin:end], v_block, dropped_in)
            memory = block.memory.after(k_block, v_block, dropped_in)

        alive = dropped_in == rows
        # The least of both: an empty column may be that of a key which an earlier block dropped.
        at = torch.where(alive, NEVER, start + begin + dropped_in + 1).int()
        evicted_at.scatter_reduce_(2, columns, at, "amin")
        final.scatter_(2, columns, block.score.masked_fill(~alive, float("nan")))
        if end < n_queries:
            n_held, complete = np.minimum(n_held + rows, budgets), complete and bool(keeps_all.all())
            stay = staying(alive, int(n_held.max()))
            kept, kept_score = columns.gather(2, stay), block.score.gather(2, stay)
    return out, evicted_at, final, threshold, snapshots, memory


def _blocks(n_queries: int, free: int) -> list[tuple[int, int]]:
    """Blocks of rows, cut where the first head is full: no row before that has anything to drop."""
    edges = set(range(0, n_queries, _ROWS)) | {n_queries}
    if 0 < free < n_queries:
        edges = {e for e in edges if e <= free} | {free} | set(range(free, n_queries, _ROWS)) | {n_queries}
    ordered = sorted(edges)
    return list(pairwise(ordered))


def _gather(x: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    return x.gather(2, columns.unsqueeze(-1).expand(*columns.shape, x.shape[-1]))


class Block:
    """One block of query rows against its columns: kept keys in order of position, then the block's own keys.

    A head's first `n_empty` columns are empty, and its first `n_free` rows drop nothing.
    """

    def __init__(
        self,
        *,
        logits: torch.Tensor,
        score: torch.Tensor,
        decay: Values,
        weight: torch.Tensor | None,
        reduction: str,
        n_kept: int,
        n_empty: np.ndarray,
        n_free: np.ndarray,
        positions: torch.Tensor,
        until: torch.Tensor | None,
        protected: torch.Tensor | None,
        shared: bool,
    ) -> None:
        self.shared = shared
        self.logits = logits  # [B, Hkv, G, R, C]
        self.n_empty, self.n_free = n_empty, n_free  # [B, Hkv]
        self.has_empty = bool(n_empty.any())
        self.decay, self.weight, self.reduction, self.n_kept = decay, weight, reduction, n_kept
        self.positions, self.until, self.protected = positions, until, protected  # [B, Hkv, C]
        self.score = score.masked_fill(self.place < 0, 0.0) if self.has_empty else score  # [B, Hkv, C]
        self.rows = logits.shape[3]
        self.memory: BlockMemory | None = None

    @cached_property
    def place(self) -> torch.Tensor:
        """int64 [B, Hkv, C]: each column's place among its head's keys; below 0 where it is empty."""
        device = self.positions.device
        column = torch.arange(self.positions.shape[2], device=device)
        return column - torch.from_numpy(self.n_empty).to(device)[..., None]

    def remember(self, memory: Memory, q: torch.Tensor, k: torch.Tensor, scale: float, softcap: float | None) -> None:
        """Lets the block's queries q [B, H, R, D] see a memory, and takes into it those of the keys k that they drop."""
        raw = self.logits.clone() if softcap is None else logits(q, k, scale, None)
        query = self.positions[:, :, self.n_kept :]
        self.memory = BlockMemory(memory, q=q, raw=raw, scale=scale, softcap=softcap, query=query, until=self.until)

    def see_sinks(self, found: torch.Tensor, n_sink: int) -> None:
        """Takes `found` [B, Hkv, G, R, n], logits against the first n columns, for the first `n_sink` keys of each head."""
        place, own = self.place[:, :, None, None, : found.shape[-1]], self.logits[..., : found.shape[-1]]
        own.copy_(torch.where((place >= 0) & (place < n_sink), found, own))

    def hide(self, window: int | None) -> None:
        """Hides empty columns, those out of the window, and those that a gate or a rule hid."""
        query = self.positions[:, :, self.n_kept :]  # [B, Hkv, R]: the block's queries are its own keys
        if self.has_empty:
            self.logits.masked_fill_((self.place < 0)[:, :, None, None], float("-inf"))
        if window is not None:
            far = self.positions[:, :, None, :] <= query[..., None] - window
            self.logits.masked_fill_(far[:, :, None], float("-inf"))
        if self.until is not None:
            gone = query[..., None] >= self.until[:, :, None, :]
            self.logits.masked_fill_(gone[:, :, None], float("-inf"))

    def hide_masked(self, mask: KeyMask) -> None:
        """Hides what the mask does not show; one text, whose queries are the same for all heads."""
        n_kv = self.positions.shape[1]
        query = self.positions[0, 0, self.n_kept :]
        key = self.positions[0].clamp_min(0).repeat_interleave(mask.lists // n_kv, 0)
        shown = mask.grouped(mask.sees(query, key), n_kv)  # [Hkv, 1 or G, R, C]
        self.logits.masked_fill_(~shown[None], float("-inf"))

    def in_turn(self, n_sink: int) -> torch.Tensor:
        """int64 [B, Hkv, C]: the row that drops each column where the oldest after the sinks goes.

        R where none does, −1 for an empty column.
        """
        row = torch.from_numpy(self.n_free).to(self.place.device)[..., None] + self.place - n_sink
        dropped_in = row.clamp_max(self.rows).masked_fill(self.place < n_sink, self.rows)
        return dropped_in.masked_fill(self.place < 0, -1)

    def attention(self, dropped_in: torch.Tensor | None = None) -> torch.Tensor:
        """P [B, Hkv, G, R, C]: a row sees what no earlier row has dropped; all that is not hidden, where None.

        Of a row that sees a memory too, P leaves the memory its share.
        """
        if self.rows > 1:  # the own keys that are still to come
            own = self.logits[..., self.n_kept :]
            future = torch.ones(self.rows, self.rows, dtype=torch.bool, device=own.device).triu(1)
            own.masked_fill_(future, float("-inf"))
        if dropped_in is None:
            return torch.softmax(self.logits, dim=-1)
        row = torch.arange(self.rows, device=dropped_in.device)[:, None]
        gone = row > dropped_in[:, :, None, :]
        left = self.logits.masked_fill(gone[:, :, None], float("-inf"))
        return torch.softmax(left, dim=-1) if self.memory is None else self.memory.attention(left, dropped_in)

    def accumulate(
        self,
        p: torch.Tensor | None,
        dropped_in: torch.Tensor,
        steps: dict[int, int],
        columns: torch.Tensor,
        snapshots: torch.Tensor,
    ) -> None:
        """The score recurrence over all rows at once, with the snapshots in between; no P, no change of score."""
        stops = sorted({row + 1 for row in steps} | {self.rows})
        scores: Sequence[torch.Tensor] = [self.score] * len(stops)
        if p is not None:
            scores = decayed_sums(
                self.score, p[:, :, None], stops, decay=self.decay, reduction=self.reduction, weight=self.weight
            ).unbind(2)
            if self.shared:  # all heads began alike, and the sums are linear
                scores = [score.mean(1, keepdim=True).expand_as(score) for score in scores]
        self.score = scores[-1]
        for stop, score in zip(stops, scores, strict=True):
            if stop - 1 in steps:
                n = self.n_kept + stop
                current = score[..., :n].masked_fill(dropped_in[..., :n] < stop, float("nan"))
                snapshots[:, :, steps[stop - 1]].scatter_(2, columns[..., :n], current)

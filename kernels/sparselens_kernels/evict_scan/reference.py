"""The eviction recurrence, vectorised over heads: a dense product per block of queries, then a light pass over its rows.

A block's columns are the keys still kept when it starts plus its own keys, so the cost is O(T · (budget + block)) and
not O(T²).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from sparselens_kernels.dispatch import LATE, NEVER
from sparselens_kernels.masks import KeyMask
from sparselens_kernels.rows import accumulator_dtype, attend, decayed_sums, logits

_ROWS = 128  # of a block: 64 to 256 run within 5 % of each other at a budget of 256

Values = float | torch.Tensor


def evict_scan(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    budget: int,
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
    until: torch.Tensor | None,
    protected: torch.Tensor | None,
    mask: KeyMask | None,
    positions: torch.Tensor,
    score: torch.Tensor,
    start: int,
    snapshot_steps: Sequence[int],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
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

    kept = torch.arange(n_past, device=device).expand(batch, n_kv, n_past)
    kept_score = score.to(dtype)
    for begin, end in _blocks(n_queries, free=budget - n_past):
        rows, n_kept = end - begin, kept.shape[2]
        own = torch.arange(n_past + begin, n_past + end, device=device).expand(batch, n_kv, rows)
        columns = torch.cat([kept, own], dim=2)  # [B, Hkv, C]
        complete = n_kept == n_past + begin  # nothing has been dropped: the columns are a plain slice
        k_block = k[:, :, : n_past + end] if complete else _gather(k, columns)
        v_block = v[:, :, : n_past + end] if complete else _gather(v, columns)
        own_score = spread(initial, own)
        if not isinstance(own_score, torch.Tensor):
            own_score = torch.full((batch, n_kv, rows), own_score, dtype=dtype, device=device)
        block = _Block(
            logits=logits(q[:, :, begin:end], k_block, scale, softcap),
            score=torch.cat([kept_score, own_score.to(dtype).expand(batch, n_kv, rows)], dim=2),
            decay=spread(decay, columns),
            weight=spread(weight, columns),
            reduction=reduction,
            n_kept=n_kept,
            positions=positions.gather(2, columns),
            until=spread(until, columns),
            protected=spread(protected, columns),
        )
        if sink_q is not None:
            sinks = min(n_sink, n_past + end)
            block.logits[..., :sinks] = logits(sink_q[:, :, begin:end], k[:, :, :sinks], scale, softcap)
        block.hide_future(window)
        if mask is not None:
            block.hide_masked(mask)
        steps = {s - begin: slot for slot, s in enumerate(snapshot_steps) if begin <= s < end}
        n_free = max(0, min(rows, budget - n_kept))  # rows before the cache is full
        if n_free == rows or (n_sink + recent >= budget and until is None and protected is None):
            # No choice to make: nothing is dropped, or the oldest key outside the sinks is, row after row.
            dropped_in = block.in_turn(n_sink, n_free)
            p = block.attention(dropped_in)
            block.accumulate(p if scored else None, dropped_in, steps, columns, snapshots)
        else:
            dropped_in, p, choices, threshold[:, :, begin:end] = block.by_score(n_sink, recent, scored)
            for row, slot in steps.items():
                current = choices[row].masked_fill(dropped_in <= row, float("nan"))
                snapshots[:, :, slot].scatter_(2, columns[..., : n_kept + row + 1], current[..., : n_kept + row + 1])
        out[:, :, begin:end] = attend(p, v_block)

        alive = dropped_in == rows
        evicted_at.scatter_(2, columns, torch.where(alive, NEVER, start + begin + dropped_in + 1).int())
        final.scatter_(2, columns, block.score.masked_fill(~alive, float("nan")))
        n_alive = n_kept + n_free if n_free == rows else budget
        kept = columns[alive].view(batch, n_kv, n_alive)
        kept_score = block.score[alive].view(batch, n_kv, n_alive)
    return out, evicted_at, final, threshold, snapshots


def _blocks(n_queries: int, free: int) -> list[tuple[int, int]]:
    """Blocks of rows, cut where the cache becomes full so that no block mixes the two regimes."""
    edges = set(range(0, n_queries, _ROWS)) | {n_queries}
    if 0 < free < n_queries:
        edges = {e for e in edges if e <= free} | {free} | set(range(free, n_queries, _ROWS)) | {n_queries}
    ordered = sorted(edges)
    return list(pairwise(ordered))


def _gather(x: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    return x.gather(2, columns.unsqueeze(-1).expand(*columns.shape, x.shape[-1]))


class _Block:
    """One block of query rows against its columns: kept keys in order of position, then the block's own keys."""

    def __init__(
        self,
        *,
        logits: torch.Tensor,
        score: torch.Tensor,
        decay: Values,
        weight: torch.Tensor | None,
        reduction: str,
        n_kept: int,
        positions: torch.Tensor,
        until: torch.Tensor | None,
        protected: torch.Tensor | None,
    ) -> None:
        self.logits = logits  # [B, Hkv, G, R, C]
        self.score = score  # [B, Hkv, C]
        self.decay, self.weight, self.reduction, self.n_kept = decay, weight, reduction, n_kept
        self.positions, self.until, self.protected = positions, until, protected  # [B, Hkv, C]
        self.rows = logits.shape[3]

    def hide_future(self, window: int | None) -> None:
        query = self.positions[:, :, self.n_kept :]  # [B, Hkv, R]: the block's queries are its own keys
        own = self.logits[..., self.n_kept :]
        future = torch.ones(self.rows, self.rows, dtype=torch.bool, device=own.device).triu(1)
        own.masked_fill_(future, float("-inf"))
        if window is not None:
            far = self.positions[:, :, None, :] <= query[..., None] - window
            self.logits.masked_fill_(far[:, :, None], float("-inf"))
        if self.until is not None:
            gone = query[..., None] >= self.until[:, :, None, :]
            self.logits.masked_fill_(gone[:, :, None], float("-inf"))

    def hide_masked(self, mask: KeyMask) -> None:
        """Hides what the mask does not show; one text, whose queries are the same for all heads."""
        n_kv = self.positions.shape[1]
        query, key = self.positions[0, 0, self.n_kept :], self.positions[0].repeat_interleave(mask.lists // n_kv, 0)
        shown = mask.grouped(mask.sees(query, key), n_kv)  # [Hkv, 1 or G, R, C]
        self.logits.masked_fill_(~shown[None], float("-inf"))

    def in_turn(self, n_sink: int, n_free: int) -> torch.Tensor:
        """[B, Hkv, C]: the row that drops each column where the oldest after the sinks goes; R where none does."""
        dropped_in = torch.full(self.score.shape, self.rows, dtype=torch.int64, device=self.score.device)
        row = torch.arange(n_free, self.rows, device=self.score.device)
        dropped_in[..., n_sink : n_sink + len(row)] = row
        return dropped_in

    def by_score(
        self, n_sink: int, recent: int, scored: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """As `in_turn`, where each row drops the lowest score outside the first `n_sink` and the last `recent`.

        Returns also P [B, Hkv, G, R, C], what each row chose among, [R, B, Hkv, C]: the scores after it, +inf where
        already dropped, and each row's lowest, [B, Hkv, R]. The rows depend on each other, and each is little work: it
        is done in NumPy, whose calls cost a tenth of torch's.
        """
        p, logits = self.attention().cpu().numpy(), self.logits.cpu().numpy()
        decay, weight = (x.cpu().numpy() if isinstance(x, torch.Tensor) else x for x in (self.decay, self.weight))
        score = self.score.cpu().numpy()
        heads = np.indices(score.shape[:2])
        alive, gone = np.ones_like(score), np.zeros_like(score)  # 1 and 0; 0 and +inf once dropped
        choices = np.empty((self.rows, *score.shape), score.dtype)
        victims = np.empty((self.rows, *score.shape[:2]), np.int64)
        order = None if self.until is None and self.protected is None else self._order(n_sink)
        for row, choice in enumerate(choices):
            own = p[:, :, :, row]
            own *= alive[:, :, None]
            total = own.sum(-1, keepdims=True)
            if total.min() < 1e-20:  # what was dropped held nearly all: softmax again, over what is left
                with np.errstate(divide="ignore"):
                    left = logits[:, :, :, row] + np.log(alive)[:, :, None]
                np.exp(left - left.max(-1, keepdims=True), out=own)
                total = own.sum(-1, keepdims=True)
            own /= total
            if scored:
                added = own.max(2) if self.reduction == "max" else own.sum(2)
                if self.reduction == "mean":
                    added /= own.shape[2]
                score *= decay
                score += added if weight is None else added * weight
            np.add(score, gone, out=choice)
            seen = self.n_kept + row + 1
            if order is None:
                victim = choice[..., n_sink : seen - recent].argmin(-1)
                victim += n_sink
            else:
                victim = order(choice[..., :seen], recent).argmin(-1)
            victims[row] = victim
            alive[*heads, victim] = 0
            gone[*heads, victim] = np.inf
        device = self.score.device

        def back(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(array).to(device)

        self.score = back(score)
        dropped_in = np.full(score.shape, self.rows)
        np.put_along_axis(dropped_in, victims.transpose(1, 2, 0), np.arange(self.rows), axis=2)
        lowest = np.take_along_axis(choices, victims[..., None], axis=3)[..., 0].transpose(1, 2, 0)
        return back(dropped_in), back(p), back(choices), back(lowest)

    def _order(self, n_sink: int) -> Callable[[np.ndarray, int], np.ndarray]:
        """What a row drops first where some keys are hidden or protected: hidden keys, then by score, then recent ones."""
        positions = self.positions.cpu().numpy()
        until = np.full_like(positions, NEVER) if self.until is None else self.until.cpu().numpy()
        stays = positions < n_sink if self.protected is None else (positions < n_sink) | self.protected.cpu().numpy()

        def order(choice: np.ndarray, recent: int) -> np.ndarray:
            n = choice.shape[-1]
            own, query = positions[..., :n], positions[..., n - 1 : n]
            ranked = np.where(own > query - recent, LATE * (1.0 + own / NEVER), choice)
            ranked[stays[..., :n]] = np.inf
            ranked[until[..., :n] <= query] = -np.inf
            ranked[choice == np.inf] = np.inf  # gone before
            return ranked

        return order

    def attention(self, dropped_in: torch.Tensor | None = None) -> torch.Tensor:
        """P [B, Hkv, G, R, C]: a row sees what no earlier row has dropped; all that is not hidden, where None."""
        if dropped_in is None:
            return torch.softmax(self.logits, dim=-1)
        row = torch.arange(self.rows, device=dropped_in.device)[:, None]
        gone = row > dropped_in[:, :, None, :]
        return torch.softmax(self.logits.masked_fill(gone[:, :, None], float("-inf")), dim=-1)

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
        self.score = scores[-1]
        for stop, score in zip(stops, scores, strict=True):
            if stop - 1 in steps:
                n = self.n_kept + stop
                current = score[..., :n].masked_fill(dropped_in[..., :n] < stop, float("nan"))
                snapshots[:, :, steps[stop - 1]].scatter_(2, columns[..., :n], current)

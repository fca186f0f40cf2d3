"""The rows of a block of queries one after the other, on the CPU: each depends on the one before it, and is little work.

numba compiles them. What it compiled is kept beside this file or in the user's own cache, and read again by the next process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import exp, inf, log, tanh
from typing import TYPE_CHECKING, Any

import numba
import numpy as np
import torch

from sparselens_kernels.dispatch import LATE, NEVER, REDUCTIONS

if TYPE_CHECKING:
    from sparselens_kernels.evict_scan.reference import Block, Walked

Array = Any  # a NumPy array, of what is compiled
_MAX, _MEAN = REDUCTIONS.index("max"), REDUCTIONS.index("mean")


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # Sums in any order; an infinity and a nan stay what they are.
    how: dict[str, Any] = {"nogil": True, "fastmath": {"reassoc", "contract", "nsz"}}
    try:
        return numba.njit(function, cache=True, **how)
    except RuntimeError:  # no folder in which what was compiled could be kept
        return numba.njit(function, **how)


@_compiled
def _normalise(p: Array, logits: Array, alive: Array) -> None:
    """Makes of one row's p [C] = exp(logits) its probabilities over the columns that are `alive`, 1 or 0."""
    total = p.dtype.type(0)
    for c in range(len(p)):
        total += p[c] * alive[c]
    if not 1e-20 < total < 1e30:  # out of the exponential's range
        _softmax(p, logits, alive, -inf)
        return
    norm = p.dtype.type(1) / total
    for c in range(len(p)):
        p[c] = p[c] * alive[c] * norm


@_compiled
def _softmax(p: Array, logits: Array, alive: Array, beside: float) -> None:
    """p [C] = softmax of the logits that are `alive`, and of one more."""
    most = beside
    for c in range(len(p)):
        if alive[c] and logits[c] > most:
            most = logits[c]
    total = exp(beside - most)
    for c in range(len(p)):
        p[c] = exp(logits[c] - most) if alive[c] else 0.0
        total += p[c]
    for c in range(len(p)):
        p[c] /= total


@_compiled
def _of_memory(raw: Array, past: float, n_past: float, inside: Array, softcap: float) -> float:
    """The logit of the mean of the `n_past` keys evicted before the block and of those `inside` it, 1 or 0, as so many keys.

    `past` is the query's product with the sum of the former, `raw` [C] are its logits before softcap and masks.
    """
    total, count = past, n_past
    for c in range(len(raw)):
        total += raw[c] * inside[c]
        count += inside[c]
    if count == 0:
        return -inf
    mean = total / count
    return (mean if softcap == inf else tanh(mean / softcap) * softcap) + log(count)


@_compiled
def _receive(received: Array, p: Array, first: bool, reduction: int) -> None:
    """received [C] with one more query head's p [C] in it."""
    for c in range(len(p)):
        if first:
            received[c] = p[c]
        elif reduction == _MAX:
            received[c] = max(received[c], p[c])
        else:
            received[c] += p[c]


@_compiled
def _decay(score: Array, decay: Array) -> None:
    for c in range(len(score)):
        score[c] *= decay[c]


@_compiled
def _add(score: Array, received: Array, weight: Array, share: float) -> None:
    """score [C] += share · weight · received."""
    part = score.dtype.type(share)
    for c in range(len(score)):
        score[c] += part * weight[c] * received[c]


@_compiled
def _rank(
    rank: Array, score: Array, alive: Array, stays: Array, until: Array, positions: Array, recent: int, by_place: bool
) -> None:
    """rank [C]: the key of the lowest goes, the oldest where ranks tie; the query's own is the last.

    Hidden keys go first, then a nan, since some key has to go, then the lowest score; the last `recent`, by column where
    `by_place` and else by position, only where no other may. Without branches, which here are guessed wrong half the time.
    """
    columns, query, inf_, late_ = len(rank), positions[len(rank) - 1], rank.dtype.type(inf), rank.dtype.type(LATE)
    for c in range(columns):
        late = c >= columns - recent if by_place else positions[c] > query - recent
        value = score[c] if score[c] == score[c] else -late_
        value = late_ if late or value > late_ else value
        value = inf_ if stays[c] else value
        value = -inf_ if until[c] <= query else value
        rank[c] = value if alive[c] > 0 else inf_


@_compiled
def _lowest(rank: Array) -> int:
    """The first column of the lowest rank."""
    least = rank[0]
    for c in range(len(rank)):
        least = min(least, rank[c])
    for c in range(len(rank)):
        if rank[c] == least:
            return c
    return -1


@_compiled
def walk_rows(
    p: Array, logits: Array, score: Array, alive: Array, dropped_in: Array, choices: Array, lowest: Array,
    decay: Array, weight: Array, stays: Array, until: Array, positions: Array, n_free: Array, slot: Array,
    raw: Array, past: Array, n_past: Array, softcap: float,
    n_kept: int, recent: int, by_place: bool, scored: bool, reduction: int, shared: bool,
) -> None:  # fmt: skip
    """For each row i in turn, of every text b and head h:

    P[g]  = p[g, i] = exp(logits[g, i]) over the columns that no earlier row has dropped, over their sum
    score = decay · score + weight · R_g P[g]
    from row `n_free` on: drop the lowest score that may go
    """
    batch, n_kv, group, rows, columns = p.shape
    share = (1.0 / group if reduction == _MEAN else 1.0) / (n_kv if shared else 1)
    received, rank = np.empty((n_kv, columns), p.dtype), np.empty(columns, p.dtype)
    inside = np.zeros((batch, n_kv, raw.shape[4]), p.dtype)  # 1: dropped into the memory by an earlier row
    for b in range(batch):
        for i in range(rows):
            n = n_kept + i + 1
            for h in range(n_kv):
                for g in range(group):
                    row, own, left = p[b, h, g, i][:n], logits[b, h, g, i][:n], alive[b, h][:n]
                    if raw.shape[4]:
                        mean = _of_memory(raw[b, h, g, i][:n], past[b, h, g, i], n_past[b, h], inside[b, h], softcap)
                        _softmax(row, own, left, mean)
                    else:
                        _normalise(row, own, left)
                    p[b, h, g, i, n:] = 0.0
                    _receive(received[h], row, g == 0, reduction)
            for h in range(n_kv if scored else 0):
                own = score[b, h][:n]
                _decay(own, decay[b, h])
                for other in range(0 if shared else h, n_kv if shared else h + 1):
                    _add(own, received[other], weight[b, other], share)
            for h in range(n_kv):
                if slot[i] >= 0:
                    for c in range(columns):
                        choices[slot[i], b, h, c] = score[b, h, c] if alive[b, h, c] else inf
                if i < n_free[b, h]:
                    continue
                _rank(rank[:n], score[b, h], alive[b, h], stays[b, h], until[b, h], positions[b, h], recent, by_place)
                c = _lowest(rank[:n])
                lowest[b, h, i], dropped_in[b, h, c], alive[b, h, c] = score[b, h, c], i, 0.0
                if raw.shape[4] and until[b, h, c] > positions[b, h, n - 1]:
                    inside[b, h, c] = 1.0


def walk(block: Block, n_sink: int, recent: int, scored: bool, copied: Sequence[int]) -> Walked:
    """As `Block.in_turn`, where each row drops the lowest score outside the first `n_sink` and the last `recent`.

    Returns also P [B, Hkv, G, R, C], what each of the rows `copied` chose among, [rows copied, B, Hkv, C]: the scores after
    it, +inf where already dropped, and each row's lowest, [B, Hkv, R], nan where it drops nothing.
    """
    batch, n_kv, _, rows, columns = block.logits.shape
    shape, device = (batch, n_kv, columns), block.logits.device
    p, logits, score = (_array(x) for x in (block.logits.exp(), block.logits, block.score))
    score, place, dtype = score.copy(), _array(block.place), score.dtype
    positions = _array(block.positions)
    by_place = block.until is None and block.protected is None
    stays = (place if by_place else positions) < n_sink
    if block.protected is not None:
        stays = stays | _array(block.protected)
    alive = (place >= 0).astype(dtype)
    dropped_in = np.where(place < 0, -1, rows)
    choices, slot = np.empty((len(copied), *shape), dtype), np.full(rows, -1)
    slot[list(copied)] = np.arange(len(copied))
    lowest = np.full((batch, n_kv, rows), np.nan, dtype)
    walk_rows(
        p, logits, score, alive, dropped_in, choices, lowest,
        per_key(block.decay, shape, dtype), per_key(1.0 if block.weight is None else block.weight, shape, dtype),
        per_key(stays, shape, bool), per_key(NEVER if block.until is None else block.until, shape, np.int64),
        per_key(positions, shape, np.int64), np.broadcast_to(block.n_free, shape[:2]).astype(np.int64), slot,
        *(nothing(p) if block.memory is None else block.memory.numbers()),
        block.n_kept, recent, by_place, scored, REDUCTIONS.index(block.reduction), block.shared,
    )  # fmt: skip
    block.score = torch.from_numpy(score).to(device)
    return tuple(torch.from_numpy(x).to(device) for x in (dropped_in, p, choices, lowest))  # type: ignore[return-value]


def per_key(values: Any, shape: tuple[int, ...], dtype: Any) -> Array:
    """A copy of a number, or of what broadcasts to `shape`: as it is compiled for, one layout and never read-only."""
    values = _array(values) if isinstance(values, torch.Tensor) else values
    full = np.empty(shape, dtype)
    full[...] = values
    return full


def nothing(p: Array) -> tuple[Array, Array, Array, float]:
    """As `BlockMemory.numbers`, of no memory."""
    return np.empty((*p.shape[:4], 0), p.dtype), np.empty(p.shape[:4], p.dtype), np.empty(p.shape[:2], p.dtype), inf


def _array(x: torch.Tensor) -> Array:
    return x.contiguous().cpu().numpy()

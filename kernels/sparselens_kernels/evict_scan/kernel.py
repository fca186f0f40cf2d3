"""A few queries in one launch: a program per (batch, KV head) walks them over a buffer of its budget + 1 slots.

A prompt's many queries go through `walk`, where whole blocks are multiplied at once: reading the keys again for each query
takes 43 µs a query on an H200.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl

from sparselens_kernels.device import guard
from sparselens_kernels.dispatch import NEVER
from sparselens_kernels.evict_scan import reference
from sparselens_kernels.evict_scan.walk import walk
from sparselens_kernels.masks import KeyMask

_TILE_ELEMENTS = 16_384  # of a [group, slot, channel] product: 64 registers of each of 256 threads
_WARPS = 8
_FEW_QUERIES = 16  # whose scan takes less than the launches of a block


@triton.jit
def _copy_scores(p_to, p_column, p_score, n_used, free, BLOCK_S: tl.constexpr):
    """to[column[s]] = score[s] for the slots in use, but for the free one."""
    for i_tile in range(0, n_used, BLOCK_S):
        o_s = i_tile + tl.arange(0, BLOCK_S)
        m_s = (o_s < n_used) & (o_s != free)
        tl.store(p_to + tl.load(p_column + o_s, mask=m_s, other=0), tl.load(p_score + o_s, mask=m_s), mask=m_s)


# The lengths change from call to call; a compilation for each that is 1 or a multiple of 16 would gain nothing.
@triton.jit(do_not_specialize=["start", "n_past", "n_queries", "n_keys", "n_slots", "n_sink", "recent", "n_snapshots"])
def _scan(
    q, k, v, decay, weight, initial, budgets, held, snapshot_of,  # read
    column, score, logit,  # scratch, by slot
    out, evicted_at, final, threshold, snapshots,  # written
    q_batch, q_head, q_token, q_channel,  # strides
    k_batch, k_head, k_token, k_channel,
    v_batch, v_head, v_token, v_channel,
    scale, start, n_past, n_queries, n_keys, n_slots, n_sink, recent, n_snapshots, n_kv,
    DIM: tl.constexpr, DIM_V: tl.constexpr, GROUP: tl.constexpr,
    SCORED: tl.constexpr, REDUCTION: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """For each query i in turn, over the slots s that hold a key:

        x[g, s]  = scale · q[g, i] · k[column[s]]
        P[g, s]  = exp(x[g, s] − max_s x[g]) / Σ_s …
        out[g]   = Σ_s P[g, s] · v[column[s]]
        score[s] = decay · score[s] + weight · R_g P[g, s]
        if budget + 1 slots hold a key: free the argmin of (score, column) over first ≤ column ≤ n_past + i − recent

    where `first` is the head's column after its empty ones and its sinks.

    The next query's key takes the freed slot. The scratch is global memory that one thread writes and another reads:
    hence the barriers, and num_stages=1 at the launch so that no load is moved before one.
    """
    i_row = tl.program_id(0).to(tl.int64)  # batch · n_kv + KV head
    i_batch, i_kv = i_row // n_kv, i_row % n_kv
    n_held, own_budget = tl.load(held + i_row), tl.load(budgets + i_kv)
    first = n_past - n_held + n_sink
    budget = tl.minimum(own_budget, n_keys)  # an unlimited one is the end of int32
    n_own = tl.minimum(budget + 1, n_keys)
    o_g, o_d, o_v = tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
    m_g, m_d, m_v = o_g < GROUP, o_d < DIM, o_v < DIM_V

    p_q = q + i_batch * q_batch + (i_kv * GROUP + o_g[:, None]) * q_head + o_d[None, :] * q_channel
    p_k = k + i_batch * k_batch + i_kv * k_head + o_d[None, :] * k_channel
    p_v = v + i_batch * v_batch + i_kv * v_head + o_v[None, :] * v_channel
    p_out = out + (i_row * GROUP + o_g[:, None]) * n_queries * DIM_V + o_v[None, :]
    p_decay, p_weight, p_initial = decay + i_row * n_keys, weight + i_row * n_keys, initial + i_row * n_keys
    p_column, p_score = column + i_row * n_slots, score + i_row * n_slots
    p_logit = logit + (i_row * GROUP + o_g[:, None]) * n_slots
    p_evicted_at, p_final = evicted_at + i_row * n_keys, final + i_row * n_keys
    p_threshold, p_snapshots = threshold + i_row * n_queries, snapshots + i_row * n_snapshots * n_keys

    free = n_held
    for i in range(n_queries):
        newest = n_past + i
        n_used = tl.minimum(n_held + i + 1, n_own)
        tl.store(p_column + free, newest)
        tl.store(p_score + free, tl.load(p_initial + newest))
        tl.debug_barrier()

        b_q = tl.load(p_q, mask=m_g[:, None] & m_d[None, :], other=0.0).to(tl.float32) * scale
        b_max = tl.full([BLOCK_G], float("-inf"), tl.float32)
        b_sum = tl.full([BLOCK_G], 0.0, tl.float32)
        for i_tile in range(0, n_used, BLOCK_S):
            o_s = i_tile + tl.arange(0, BLOCK_S)
            m_s = o_s < n_used
            b_column = tl.load(p_column + o_s, mask=m_s, other=0).to(tl.int64)
            b_k = tl.load(p_k + b_column[:, None] * k_token, mask=m_s[:, None] & m_d[None, :], other=0.0).to(tl.float32)
            # Multiply and sum: tl.dot wants 16 rows where a group has 1 to 8, and its TF32 would change who is dropped.
            b_logit = tl.sum(b_q[:, None, :] * b_k[None, :, :], axis=2)
            tl.store(p_logit + o_s[None, :], b_logit, mask=m_g[:, None] & m_s[None, :])
            b_logit = tl.where(m_s[None, :], b_logit, float("-inf"))
            b_new_max = tl.maximum(b_max, tl.max(b_logit, axis=1))
            b_sum = b_sum * tl.exp(b_max - b_new_max) + tl.sum(tl.exp(b_logit - b_new_max[:, None]), axis=1)
            b_max = b_new_max
        tl.debug_barrier()

        b_out = tl.full([BLOCK_G, BLOCK_V], 0.0, tl.float32)
        b_lowest = tl.full([BLOCK_S], float("inf"), tl.float32)  # of the tiles so far, lane by lane
        b_oldest = tl.full([BLOCK_S], 0, tl.int32) + n_keys
        b_victim = tl.full([BLOCK_S], 0, tl.int32)
        for i_tile in range(0, n_used, BLOCK_S):
            o_s = i_tile + tl.arange(0, BLOCK_S)
            m_s = o_s < n_used
            m_gs = m_g[:, None] & m_s[None, :]
            b_column = tl.load(p_column + o_s, mask=m_s, other=0)
            b_logit = tl.load(p_logit + o_s[None, :], mask=m_gs, other=0.0)
            b_p = tl.where(m_gs, tl.exp(b_logit - b_max[:, None]) / b_sum[:, None], 0.0)
            p_tile = p_v + b_column.to(tl.int64)[:, None] * v_token
            b_v = tl.load(p_tile, mask=m_s[:, None] & m_v[None, :], other=0.0).to(tl.float32)
            b_out += tl.sum(b_p[:, :, None] * b_v[None, :, :], axis=1)

            b_score = tl.load(p_score + o_s, mask=m_s, other=0.0)
            if SCORED:
                if REDUCTION == "max":
                    b_row = tl.max(b_p, axis=0)
                elif REDUCTION == "mean":
                    b_row = tl.sum(b_p, axis=0) / GROUP
                else:
                    b_row = tl.sum(b_p, axis=0)
                b_decay = tl.load(p_decay + b_column, mask=m_s, other=0.0)
                b_score = b_decay * b_score + tl.load(p_weight + b_column, mask=m_s, other=0.0) * b_row
                tl.store(p_score + o_s, b_score, mask=m_s)

            b_score = tl.where(b_score == b_score, b_score, float("-inf"))  # nan goes first: some key has to go
            m_open = m_s & (b_column >= first) & (b_column <= newest - recent)
            m_tied = (b_score == b_lowest) & (b_column < b_oldest)
            m_lower = m_open & ((b_score < b_lowest) | m_tied)
            b_lowest = tl.where(m_lower, b_score, b_lowest)
            b_oldest = tl.where(m_lower, b_column, b_oldest)
            b_victim = tl.where(m_lower, o_s, b_victim)
        tl.store(p_out, b_out, mask=m_g[:, None] & m_v[None, :])

        free = n_held + i + 1
        if n_held + i >= budget:
            lowest = tl.min(b_lowest, axis=0)
            oldest = tl.min(tl.where(b_lowest == lowest, b_oldest, n_keys), axis=0)
            free = tl.min(tl.where(b_oldest == oldest, b_victim, n_slots), axis=0)
            tl.store(p_evicted_at + oldest, start + i + 1)
            if n_sink + recent < own_budget:  # else there was no choice
                tl.store(p_threshold + i, lowest)
        p_q += q_token
        p_out += DIM_V
        tl.debug_barrier()
        snapshot = tl.load(snapshot_of + i)
        if snapshot >= 0:
            _copy_scores(p_snapshots + snapshot.to(tl.int64) * n_keys, p_column, p_score, n_used, free, BLOCK_S)
    _copy_scores(p_final, p_column, p_score, tl.minimum(n_held + n_queries, n_own), free, BLOCK_S)


def evict_scan(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    budget: tuple[int, ...],
    decay: float | torch.Tensor,
    n_sink: int,
    recent: int,
    scored: bool,
    weight: torch.Tensor | None,
    initial: float | torch.Tensor,
    reduction: str,
    scale: float,
    positions: torch.Tensor,
    score: torch.Tensor,
    start: int,
    snapshot_steps: Sequence[int],
    softcap: float | None,
    window: int | None,
    sink_q: torch.Tensor | None,
    mask: KeyMask | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """As reference.evict_scan, where no key is hidden or protected."""
    if q.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError("the Triton kernel needs a CUDA tensor, or TRITON_INTERPRET=1 to run on the CPU")
    numbers: dict[str, Any] = {
        "budget": budget, "decay": decay, "n_sink": n_sink, "recent": recent, "scored": scored, "weight": weight,
        "initial": initial, "reduction": reduction, "scale": scale, "positions": positions, "score": score, "start": start,
        "snapshot_steps": snapshot_steps,
    }  # fmt: skip
    hides = softcap, window, sink_q, mask
    if q.shape[2] <= _FEW_QUERIES and all(x is None for x in hides):
        return _scanned(q, k, v, **numbers)
    hidden: dict[str, Any] = {"softcap": softcap, "window": window, "sink_q": sink_q, "mask": mask}
    out, evicted_at, final, threshold, snapshots, _ = reference.evict_scan(q, k, v, **numbers, **hidden, walk=walk)
    return out, evicted_at, final, threshold, snapshots


def _scanned(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    budget: tuple[int, ...],
    decay: float | torch.Tensor,
    n_sink: int,
    recent: int,
    scored: bool,
    weight: torch.Tensor | None,
    initial: float | torch.Tensor,
    reduction: str,
    scale: float,
    positions: torch.Tensor,
    score: torch.Tensor,
    start: int,
    snapshot_steps: Sequence[int],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of `positions` only the empty slots are read: the columns are in order of position."""
    batch, n_heads, n_queries, dim = q.shape
    n_kv, n_keys, dim_v = k.shape[1], k.shape[2], v.shape[3]
    group, n_past = n_heads // n_kv, n_keys - n_queries
    n_slots = min(min(max(budget), n_keys) + 1, n_keys)
    device, nan = q.device, float("nan")

    def per_key(values: float | torch.Tensor) -> torch.Tensor:
        if not isinstance(values, torch.Tensor):
            return torch.full((batch, n_kv, n_keys), values, dtype=torch.float32, device=device)
        return values.to(device, torch.float32).expand(batch, n_kv, n_keys).contiguous()

    out = q.new_empty(batch, n_heads, n_queries, dim_v)
    evicted_at = torch.full((batch, n_kv, n_keys), NEVER, dtype=torch.int32, device=device)
    final = torch.full((batch, n_kv, n_keys), nan, device=device, dtype=torch.float32)
    threshold = torch.full((batch, n_kv, n_queries), nan, device=device, dtype=torch.float32)
    snapshots = torch.full((batch, n_kv, len(snapshot_steps), n_keys), nan, device=device, dtype=torch.float32)
    slot_of = {step: slot for slot, step in enumerate(snapshot_steps)}
    snapshot_of = torch.tensor([slot_of.get(i, -1) for i in range(n_queries)], dtype=torch.int32, device=device)

    held = (positions.expand(batch, n_kv, n_past) >= 0).sum(2, dtype=torch.int32)
    column = torch.arange(n_slots, dtype=torch.int32, device=device).repeat(batch, n_kv, 1)
    slot_score = torch.empty(batch, n_kv, n_slots, dtype=torch.float32, device=device)
    if n_past:  # the slots leave out what is empty
        evicted_at[..., :n_past].masked_fill_(positions < 0, 0)
        occupied = (torch.arange(n_past, device=device) + n_past - held[..., None]).clamp_max(n_past - 1)
        column[..., :n_past] = occupied
        slot_score[..., :n_past] = score.expand(batch, n_kv, n_past).gather(2, occupied)
    logit = torch.empty(batch, n_heads, n_slots, dtype=torch.float32, device=device)

    block_g, block_d, block_v = (triton.next_power_of_2(n) for n in (group, dim, dim_v))
    block_s = min(max(4, triton.next_power_of_2(n_slots)), slots_of_block(block_g, max(block_d, block_v)))
    with guard(q):
        _scan[(batch * n_kv,)](
            q, k, v, per_key(decay), per_key(1.0 if weight is None else weight), per_key(initial),
            _budgets(budget, device), held, snapshot_of,
            column, slot_score, logit,
            out, evicted_at, final, threshold, snapshots,
            *q.stride(), *k.stride(), *v.stride(),
            scale, start, n_past, n_queries, n_keys, n_slots, n_sink, recent, len(snapshot_steps), n_kv,
            DIM=dim, DIM_V=dim_v, GROUP=group,
            SCORED=scored, REDUCTION=reduction,
            BLOCK_G=block_g, BLOCK_S=block_s, BLOCK_D=block_d, BLOCK_V=block_v,
            num_warps=_WARPS, num_stages=1,
        )  # fmt: skip
    return out, evicted_at, final, threshold, snapshots


def slots_of_block(block_g: int, wide: int) -> int:
    """Slots of a tile [group, slot, channel]."""
    return max(4, min(128, _TILE_ELEMENTS // (block_g * wide)))


@lru_cache(maxsize=64)
def _budgets(budget: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """int32 [Hkv], kept on the device: every call of a layer asks for the same."""
    with torch.inference_mode(False):
        return torch.tensor(budget, dtype=torch.int32, device=device)

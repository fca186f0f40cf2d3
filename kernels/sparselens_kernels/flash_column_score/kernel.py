"""Flash attention that stores each row's log-sum-exp, then a pass over the columns that adds up what each was given."""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl

from sparselens_kernels.device import guard

_LENGTHS = ["past", "n_queries", "n_keys", "first_query"]  # no compilation of their own for 1 or multiples of 16


@triton.jit(do_not_specialize=_LENGTHS)
def _rows(
    q, k, v, until, out, lse,
    q_batch, q_head, q_token, q_channel,  # strides
    k_batch, k_head, k_token, k_channel,
    v_batch, v_head, v_token, v_channel,
    u_batch, u_head, u_token,
    scale, past, n_queries, n_keys, n_heads,
    DIM: tl.constexpr, DIM_V: tl.constexpr, GROUP: tl.constexpr, UNTIL: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """lse[i] = log Σ_j exp x[i, j] and out[i] = Σ_j exp(x[i, j] − lse[i]) · v[j] over j ≤ past + i, x = scale · q · k.

    With UNTIL, over past + i < until[j] too; a key's own query always sees it.

    A program per (query block, batch · head). One block of keys at a time, rescaled where the running maximum rises.
    """
    i_row = tl.program_id(1).to(tl.int64)
    i_batch, i_head = i_row // n_heads, i_row % n_heads
    o_q = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    o_d, o_v = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
    m_q, m_d, m_v = o_q < n_queries, o_d < DIM, o_v < DIM_V

    p_q = q + i_batch * q_batch + i_head * q_head + o_q.to(tl.int64)[:, None] * q_token + o_d[None, :] * q_channel
    p_k = k + i_batch * k_batch + (i_head // GROUP) * k_head + o_d[:, None] * k_channel
    p_v = v + i_batch * v_batch + (i_head // GROUP) * v_head + o_v[None, :] * v_channel
    b_q = tl.load(p_q, mask=m_q[:, None] & m_d[None, :], other=0.0)
    b_max = tl.full([BLOCK], float("-inf"), tl.float32)
    b_sum = tl.zeros([BLOCK], tl.float32)
    b_out = tl.zeros([BLOCK, BLOCK_V], tl.float32)
    last = tl.minimum(past + (tl.program_id(0) + 1) * BLOCK, n_keys)
    for i_k in range(0, last, BLOCK):
        o_k = i_k + tl.arange(0, BLOCK)
        m_k = o_k < n_keys
        o_token = o_k.to(tl.int64)
        b_k = tl.load(p_k + o_token[None, :] * k_token, mask=m_d[:, None] & m_k[None, :], other=0.0)
        b_v = tl.load(p_v + o_token[:, None] * v_token, mask=m_k[:, None] & m_v[None, :], other=0.0)
        # "ieee" for float32: TF32 would leave three digits in the score. It changes nothing for 16-bit inputs.
        b_x = tl.dot(b_q, b_k, input_precision="ieee") * scale
        m_seen = m_k[None, :] & (o_k[None, :] <= past + o_q[:, None])
        if UNTIL:
            p_until = until + i_batch * u_batch + (i_head // GROUP) * u_head + o_token * u_token
            b_until = tl.load(p_until, mask=m_k, other=0)
            m_seen = m_seen & (past + o_q[:, None] < b_until[None, :])
        b_x = tl.where(m_seen, b_x, float("-inf"))
        # Finite from the first block on where every row sees key 0; with UNTIL not before a row's first visible key.
        b_new_max = tl.maximum(tl.maximum(b_max, tl.max(b_x, axis=1)), -1e30)
        b_p = tl.exp(b_x - b_new_max[:, None])
        b_rescale = tl.exp(b_max - b_new_max)
        b_sum = b_sum * b_rescale + tl.sum(b_p, axis=1)
        b_out = b_out * b_rescale[:, None] + tl.dot(b_p.to(b_v.dtype), b_v, input_precision="ieee")
        b_max = b_new_max
    p_out = out + i_row * n_queries * DIM_V + o_q.to(tl.int64)[:, None] * DIM_V + o_v[None, :]
    tl.store(p_out, b_out / b_sum[:, None], mask=m_q[:, None] & m_v[None, :])
    tl.store(lse + i_row * n_queries + o_q, b_max + tl.log(b_sum), mask=m_q)


@triton.jit(do_not_specialize=_LENGTHS)
def _columns(
    q, k, until, lse, log2_decay, weight, score,
    q_batch, q_head, q_token, q_channel,  # strides
    k_batch, k_head, k_token, k_channel,
    u_batch, u_head, u_token,
    scale, past, n_queries, n_keys, first_query, n_kv,
    DIM: tl.constexpr, GROUP: tl.constexpr, MEAN: tl.constexpr, UNTIL: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """score[j] = weight[j] · Σ_{i ≥ first_query} decay[j]^(n_queries − 1 − i) · Σ_g exp(x[g, i, j] − lse[g, i]).

    A program per (key block, batch · KV head) owns its columns: it visits every query that sees them, so no atomics.
    """
    i_row = tl.program_id(1).to(tl.int64)
    i_batch, i_kv = i_row // n_kv, i_row % n_kv
    o_k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    o_d = tl.arange(0, BLOCK_D)
    m_k, m_d = o_k < n_keys, o_d < DIM

    p_k = k + i_batch * k_batch + i_kv * k_head + o_k.to(tl.int64)[None, :] * k_token + o_d[:, None] * k_channel
    b_k = tl.load(p_k, mask=m_d[:, None] & m_k[None, :], other=0.0)
    b_log2_decay = tl.load(log2_decay + i_row * n_keys + o_k, mask=m_k, other=0.0)
    b_score = tl.zeros([BLOCK], tl.float32)
    if UNTIL:
        p_until = until + i_batch * u_batch + i_kv * u_head + o_k.to(tl.int64) * u_token
        b_until = tl.load(p_until, mask=m_k, other=0)
    first = tl.maximum(first_query, tl.program_id(0) * BLOCK - past)
    for i_q in range(first, n_queries, BLOCK):
        o_q = i_q + tl.arange(0, BLOCK)
        m_q = o_q < n_queries
        m_seen = m_q[:, None] & (o_k[None, :] <= past + o_q[:, None])
        if UNTIL:
            m_seen = m_seen & (past + o_q[:, None] < b_until[None, :])
        b_p = tl.zeros([BLOCK, BLOCK], tl.float32)
        for g in range(GROUP):
            i_head = i_kv * GROUP + g
            p_q = q + i_batch * q_batch + i_head * q_head + o_q.to(tl.int64)[:, None] * q_token
            b_q = tl.load(p_q + o_d[None, :] * q_channel, mask=m_q[:, None] & m_d[None, :], other=0.0)
            b_lse = tl.load(lse + (i_row * GROUP + g) * n_queries + o_q, mask=m_q, other=0.0)
            b_x = tl.dot(b_q, b_k, input_precision="ieee") * scale
            b_p += tl.exp(tl.where(m_seen, b_x - b_lse[:, None], float("-inf")))
        b_age = (n_queries - 1 - o_q).to(tl.float32)
        # The age is held at 1 or more inside exp2, since 0 · log2(0) is nan where decay^0 is 1.
        b_factor = tl.exp2(tl.maximum(b_age, 1.0)[:, None] * b_log2_decay[None, :])
        b_score += tl.sum(b_p * tl.where(b_age[:, None] == 0.0, 1.0, b_factor), axis=0)
    if MEAN:
        b_score = b_score / GROUP
    b_weight = tl.load(weight + i_row * n_keys + o_k, mask=m_k, other=0.0)
    tl.store(score + i_row * n_keys + o_k, b_score * b_weight, mask=m_k)


def flash_rows(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, scale: float, until: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(attention [B, H, Tq, Dv], log-sum-exp [B, H, Tq]) over the keys k with past + q < until[k], int32 [B, 1 | Hkv, Tk]."""
    _check_device(q)
    batch, n_heads, n_queries, dim = q.shape
    n_kv, n_keys, dim_v = k.shape[1], k.shape[2], v.shape[3]
    out = q.new_empty(batch, n_heads, n_queries, dim_v)
    q, k, v = _readable(q), _readable(k), _readable(v)
    lse = torch.empty(batch, n_heads, n_queries, dtype=torch.float32, device=q.device)
    block, block_d, block_v = _blocks(q, dim, dim_v)
    with guard(q):
        _rows[(triton.cdiv(n_queries, block), batch * n_heads)](
            q, k, v, until, out, lse,
            *q.stride(), *k.stride(), *v.stride(), *_strides(until, batch, n_kv, n_keys),
            scale, n_keys - n_queries, n_queries, n_keys, n_heads,
            DIM=dim, DIM_V=dim_v, GROUP=n_heads // n_kv, UNTIL=until is not None,
            BLOCK=block, BLOCK_D=block_d, BLOCK_V=block_v,
            num_stages=2,
        )  # fmt: skip
    return out, lse


def flash_column_score(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    decay: float | torch.Tensor,
    first_query: int,
    reduction: str,
    weight: torch.Tensor | None,
    scale: float,
    until: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As reference.flash_column_score, for reduction "sum" and "mean"; O(T) memory."""
    batch, n_heads, n_queries, dim = q.shape
    n_kv, n_keys, dim_v = k.shape[1], k.shape[2], v.shape[3]
    out, lse = flash_rows(q, k, v, scale=scale, until=until)
    q, k = _readable(q), _readable(k)

    def per_key(values: float | torch.Tensor) -> torch.Tensor:
        if not isinstance(values, torch.Tensor):
            values = torch.full((), values, dtype=torch.float64, device=q.device)
        return values.to(q.device, torch.float64).expand(batch, n_kv, n_keys)

    score = torch.empty(batch, n_kv, n_keys, dtype=torch.float32, device=q.device)
    # In float64, since the age multiplies what float32 loses of a decay near 1.
    log2_decay = per_key(decay).log2().float().contiguous()
    weight = per_key(1.0 if weight is None else weight).float().contiguous()
    block, block_d, _ = _blocks(q, dim, dim_v)
    with guard(q):
        _columns[(triton.cdiv(n_keys, block), batch * n_kv)](
            q, k, until, lse, log2_decay, weight, score,
            *q.stride(), *k.stride(), *_strides(until, batch, n_kv, n_keys),
            scale, n_keys - n_queries, n_queries, n_keys, max(0, first_query), n_kv,
            DIM=dim, GROUP=n_heads // n_kv, MEAN=reduction == "mean", UNTIL=until is not None,
            BLOCK=block, BLOCK_D=block_d,
            num_stages=2,
        )  # fmt: skip
    return out, score


def _check_device(q: torch.Tensor) -> None:
    if q.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError("the Triton kernel needs a CUDA tensor, or TRITON_INTERPRET=1 to run on the CPU")


def _readable(x: torch.Tensor) -> torch.Tensor:
    """The interpreter's tl.dot takes bfloat16 for the integers it is stored in."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return x.float() if interpreted and x.dtype == torch.bfloat16 else x


def _blocks(q: torch.Tensor, dim: int, dim_v: int) -> tuple[int, int, int]:
    block_d, block_v = (max(16, triton.next_power_of_2(n)) for n in (dim, dim_v))
    return rows_of_block(q.element_size() == 2, max(block_d, block_v)), block_d, block_v


def rows_of_block(half: bool, wide: int) -> int:
    """Queries or keys of a tile. Wider ones spill: float32 with "ieee" runs without tensor cores."""
    if half:
        return 64 if wide <= 128 else 32
    return 32 if wide <= 64 else 16


def _strides(until: torch.Tensor | None, batch: int, n_kv: int, n_keys: int) -> tuple[int, ...]:
    return (0, 0, 0) if until is None else until.expand(batch, n_kv, n_keys).stride()

"""Approximate scores, a program per block of tokens and KV head; integers unpacked in registers."""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl

from sparselens_kernels.device import guard
from sparselens_kernels.label_scores.labels import Labels

_REDUCTIONS = {"sum": 0, "mean": 1, "max": 2, "none": 3, "softmax": 4}
_LOG_SUM = 5
_BLOCK = 256  # tokens of a warp: eight of a thread, whose half-precision labels are one load of 16 bytes


@triton.jit
def _block(
    q, values, token_scale, lse, out,
    v_token, v_channel, s_token,
    factor, n_tokens, o_t, m_t,
    CHANNELS: tl.constexpr, GROUP: tl.constexpr, REDUCTION: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The tokens `o_t` of one KV head: a thread owns its tokens, so nothing is added up across threads.

    Each query head reads the labels again, from the nearest cache.
    """
    p_v = values + o_t.to(tl.int64) * v_token
    b_f = tl.full([BLOCK], factor, tl.float32)
    if BITS < 16:
        b_f = b_f * tl.load(token_scale + o_t.to(tl.int64) * s_token, mask=m_t, other=0.0).to(tl.float32)
    b_best = tl.full([BLOCK], float("-inf"), tl.float32) if REDUCTION == 2 else tl.zeros([BLOCK], tl.float32)
    for g in range(GROUP):
        b_s = tl.zeros([BLOCK], tl.float32)
        for c in tl.static_range(CHANNELS):
            b_v = tl.load(p_v + (c // 2 if BITS == 4 else c) * v_channel, mask=m_t, other=0)
            if BITS == 4:
                b_n = (b_v.to(tl.int32) >> (4 * (c % 2))) & 0xF
                b_x = tl.where(b_n > 7, b_n - 16, b_n).to(tl.float32)
            else:
                b_x = b_v.to(tl.float32)
            b_s += tl.load(q + g * CHANNELS + c) * b_x
        b_s = b_s * b_f
        if REDUCTION == 2:
            b_best = tl.maximum(b_best, b_s)
        elif REDUCTION == 3:
            tl.store(out + g * n_tokens + o_t, b_s, mask=m_t)
        elif REDUCTION == 4:
            b_best += tl.exp(b_s - tl.load(lse + g))
        elif REDUCTION == 5:
            b_s = tl.where(m_t, b_s, float("-inf"))
            top = tl.max(b_s, axis=0)
            tl.store(out + g * tl.num_programs(0) + tl.program_id(0), top + tl.log(tl.sum(tl.exp(b_s - top), axis=0)))
        else:
            b_best += b_s
    if REDUCTION == 1:
        b_best = b_best / GROUP
    if (REDUCTION != 3) and (REDUCTION != 5):
        tl.store(out + o_t, b_best, mask=m_t)


@triton.jit(do_not_specialize=["n_kv"])
def _scores(
    q, values, token_scale, lse, out,
    v_batch, v_head, v_token, v_channel,  # strides of the labels in elements
    s_batch, s_head, s_token,  # and of their scale
    factor, n_tokens, n_kv, row_out,
    CHANNELS: tl.constexpr, GROUP: tl.constexpr, REDUCTION: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out[t] = R_g score[g, t], score[g, t] = factor · scale[t] · Σ_c q[g, c] · value[t, c], for one block and one KV head.

    REDUCTION 4 adds up exp(score[g, t] − lse[g]); 5 gives each block's log Σ_t exp score[g, t].
    """
    i_row = tl.program_id(1).to(tl.int64)
    i_batch, i_head = i_row // n_kv, i_row % n_kv
    o_t = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    end = (tl.program_id(0) + 1) * BLOCK
    p_v, p_s = values + i_batch * v_batch + i_head * v_head, token_scale + i_batch * s_batch + i_head * s_head
    p_q, p_lse, p_out = q + i_row * GROUP * CHANNELS, lse + i_row * GROUP, out + i_row * row_out
    # Two calls, since a limit that is a multiple of BLOCK lets a thread load its tokens at once; n_tokens may be any number.
    if end <= n_tokens:
        _block(
            p_q, p_v, p_s, p_lse, p_out, v_token, v_channel, s_token, factor, n_tokens, o_t, o_t < end,
            CHANNELS, GROUP, REDUCTION, BITS, BLOCK,
        )  # fmt: skip
    else:
        _block(
            p_q, p_v, p_s, p_lse, p_out, v_token, v_channel, s_token, factor, n_tokens, o_t, o_t < n_tokens,
            CHANNELS, GROUP, REDUCTION, BITS, BLOCK,
        )  # fmt: skip


@triton.jit(do_not_specialize=["n_blocks"])
def _log_sum(parts, lse, n_blocks, BLOCK: tl.constexpr):
    """lse = log Σ_i exp parts[i] over the blocks of one query head."""
    i_row = tl.program_id(0).to(tl.int64)
    b_max = tl.full([BLOCK], -1e30, tl.float32)
    b_sum = tl.zeros([BLOCK], tl.float32)
    for i in range(0, n_blocks, BLOCK):
        o = i + tl.arange(0, BLOCK)
        b_x = tl.load(parts + i_row * n_blocks + o, mask=o < n_blocks, other=float("-inf"))
        b_new = tl.maximum(b_max, b_x)
        b_sum = b_sum * tl.exp(b_max - b_new) + tl.exp(b_x - b_new)
        b_max = b_new
    top = tl.max(b_max, axis=0)
    tl.store(lse + i_row, top + tl.log(tl.sum(b_sum * tl.exp(b_max - top), axis=0)))


def label_scores(q: torch.Tensor, labels: Labels, *, reduction: str, scale: float) -> torch.Tensor:
    """As reference.label_scores."""
    if q.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError("the Triton kernel needs a CUDA tensor, or TRITON_INTERPRET=1 to run on the CPU")
    batch, n_kv, n_tokens, _ = labels.values.shape
    values = labels.values
    token_scale = values[..., 0] if labels.scale is None else labels.scale
    n_heads, channels, n_blocks = q.shape[1], labels.n_channels, triton.cdiv(n_tokens, _BLOCK)
    q = q.float().contiguous()

    def scores(kind: int, lse: torch.Tensor, *shape: int) -> torch.Tensor:
        out = torch.empty(batch, *shape, dtype=torch.float32, device=q.device)
        with guard(q):
            _scores[(n_blocks, batch * n_kv)](
                q, values, token_scale, lse, out,
                *values.stride(), *token_scale.stride(),
                scale, n_tokens, n_kv, out[0].numel() // n_kv,
                CHANNELS=channels, GROUP=n_heads // n_kv, REDUCTION=kind,
                BITS={"fp16": 16, "int8": 8, "int4": 4}[labels.dtype],
                BLOCK=_BLOCK, num_warps=1,
            )  # fmt: skip
        return out

    if reduction == "softmax":  # the labels are read twice: a fifth of the bytes of a softmax over every head's scores
        parts = scores(_LOG_SUM, q, n_heads, n_blocks)
        lse = torch.empty(batch, n_heads, dtype=torch.float32, device=q.device)
        with guard(q):
            _log_sum[(batch * n_heads,)](parts, lse, n_blocks, BLOCK=_BLOCK)
        return scores(_REDUCTIONS[reduction], lse, n_kv, n_tokens)
    return scores(_REDUCTIONS[reduction], q, n_heads if reduction == "none" else n_kv, n_tokens)

"""Approximate scores, a program per block of tokens and KV head, its G query heads together; integers unpacked in registers."""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl

from sparselens_kernels.label_scores.labels import Labels

_REDUCTIONS = {"sum": 0, "mean": 1, "max": 2, "none": 3}


@triton.jit(do_not_specialize=["n_tokens", "n_kv"])
def _scores(
    q, values, token_scale, out,
    v_batch, v_head, v_token, v_channel,  # strides of the labels in elements
    s_batch, s_head, s_token,  # and of their scale
    factor, n_tokens, n_kv,
    CHANNELS: tl.constexpr, GROUP: tl.constexpr, REDUCTION: tl.constexpr, BITS: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out[t] = R_g factor · scale[t] · Σ_c q[g, c] · value[t, c] for the tokens of one block and one KV head."""
    i_row = tl.program_id(1).to(tl.int64)
    i_batch, i_head = i_row // n_kv, i_row % n_kv
    o_t = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    o_c = tl.arange(0, BLOCK_C)
    m_t, m_c = o_t < n_tokens, o_c < CHANNELS
    column = o_c // 2 if BITS == 4 else o_c
    p_v = values + i_batch * v_batch + i_head * v_head
    p_v += o_t.to(tl.int64)[:, None] * v_token + column.to(tl.int64)[None, :] * v_channel
    b_v = tl.load(p_v, mask=m_t[:, None] & m_c[None, :], other=0)
    if BITS == 4:
        b_n = (b_v.to(tl.int32) >> (4 * (o_c % 2))[None, :]) & 0xF
        b_x = tl.where(b_n > 7, b_n - 16, b_n).to(tl.float32)
    else:
        b_x = b_v.to(tl.float32)
    b_best = tl.full([BLOCK], float("-inf"), tl.float32) if REDUCTION == 2 else tl.zeros([BLOCK], tl.float32)
    b_f = tl.full([BLOCK], factor, tl.float32)
    if BITS < 16:
        p_s = token_scale + i_batch * s_batch + i_head * s_head + o_t.to(tl.int64) * s_token
        b_f = b_f * tl.load(p_s, mask=m_t, other=0.0).to(tl.float32)
    for g in range(GROUP):
        b_q = tl.load(q + (i_row * GROUP + g) * CHANNELS + o_c, mask=m_c, other=0.0).to(tl.float32)
        b_s = tl.sum(b_x * b_q[None, :], axis=1) * b_f
        if REDUCTION == 3:
            tl.store(out + (i_row * GROUP + g) * n_tokens + o_t, b_s, mask=m_t)
        else:
            b_best = tl.maximum(b_best, b_s) if REDUCTION == 2 else b_best + b_s
    if REDUCTION == 1:
        b_best = b_best / GROUP
    if REDUCTION != 3:
        tl.store(out + i_row * n_tokens + o_t, b_best, mask=m_t)


def label_scores(q: torch.Tensor, labels: Labels, *, reduction: str, scale: float) -> torch.Tensor:
    """As reference.label_scores."""
    if q.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError("the Triton kernel needs a CUDA tensor, or TRITON_INTERPRET=1 to run on the CPU")
    batch, n_kv, n_tokens, _ = labels.values.shape
    values = labels.values
    token_scale = values[..., 0] if labels.scale is None else labels.scale
    n_out = q.shape[1] if reduction == "none" else n_kv
    out = torch.empty(batch, n_out, n_tokens, dtype=torch.float32, device=q.device)
    channels = labels.n_channels
    block = 64
    with torch.cuda.device_of(q):
        _scores[(triton.cdiv(n_tokens, block), batch * n_kv)](
            q.float().contiguous(), values, token_scale, out,
            *values.stride(), *token_scale.stride(),
            scale, n_tokens, n_kv,
            CHANNELS=channels, GROUP=q.shape[1] // n_kv, REDUCTION=_REDUCTIONS[reduction],
            BITS={"fp16": 16, "int8": 8, "int4": 4}[labels.dtype],
            BLOCK=block, BLOCK_C=max(2, triton.next_power_of_2(channels)),
        )  # fmt: skip
    return out

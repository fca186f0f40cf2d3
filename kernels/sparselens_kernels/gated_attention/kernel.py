"""A program per block of keys finds the first query that drops each; flash attention then skips what is dropped."""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl

from sparselens_kernels.device import guard
from sparselens_kernels.dispatch import NEVER
from sparselens_kernels.flash_column_score.kernel import flash_rows


@triton.jit(do_not_specialize=["start", "past", "n_queries", "n_keys"])
def _drops(
    gate_q, gate_k, dropped_at,
    q_batch, q_token, q_channel,  # strides
    k_batch, k_token, k_channel,
    bias, start, past, n_queries, n_keys,
    RANK: tl.constexpr, BLOCK: tl.constexpr, BLOCK_R: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """dropped_at[j] = min over past + i > j with gate_q[i] · gate_k[j] + bias ≤ 0 of start + i.

    A program per (key block, batch) visits every query after its first key, so no atomics.
    """
    i_batch = tl.program_id(1).to(tl.int64)
    o_k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    o_r = tl.arange(0, BLOCK_R)
    m_k, m_r = o_k < n_keys, o_r < RANK
    p_k = gate_k + i_batch * k_batch + o_k.to(tl.int64)[None, :] * k_token + o_r[:, None] * k_channel
    b_k = tl.load(p_k, mask=m_r[:, None] & m_k[None, :], other=0.0)
    b_first = tl.full([BLOCK], LAST, tl.int32)
    for i_q in range(tl.maximum(0, tl.program_id(0) * BLOCK - past), n_queries, BLOCK):
        o_q = i_q + tl.arange(0, BLOCK)
        m_q = o_q < n_queries
        p_q = gate_q + i_batch * q_batch + o_q.to(tl.int64)[:, None] * q_token + o_r[None, :] * q_channel
        b_q = tl.load(p_q, mask=m_q[:, None] & m_r[None, :], other=0.0)
        b_x = tl.dot(b_q, b_k, input_precision="ieee") + bias
        m_drops = (b_x <= 0) & m_q[:, None] & (o_k[None, :] < past + o_q[:, None])
        b_first = tl.minimum(b_first, tl.min(tl.where(m_drops, (start + o_q)[:, None], LAST), axis=0))
    tl.store(dropped_at + i_batch * n_keys + o_k, b_first, mask=m_k)


def gate_drops(gate_q: torch.Tensor, gate_k: torch.Tensor, bias: float, start: int) -> torch.Tensor:
    """As reference.gate_drops; O(T) memory."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if gate_q.device.type == "cpu" and not interpreted:
        raise ValueError("the Triton kernel needs a CUDA tensor, or TRITON_INTERPRET=1 to run on the CPU")
    batch, n_queries, rank = gate_q.shape
    n_keys = gate_k.shape[1]
    dropped_at = torch.empty(batch, n_keys, dtype=torch.int32, device=gate_q.device)
    if interpreted and gate_q.dtype == torch.bfloat16:  # its tl.dot takes bfloat16 for the integers it is stored in
        gate_q, gate_k = gate_q.float(), gate_k.float()
    block = 64 if gate_q.element_size() == 2 else 32
    with guard(gate_q):
        _drops[(triton.cdiv(n_keys, block), batch)](
            gate_q, gate_k, dropped_at,
            *gate_q.stride(), *gate_k.stride(),
            float(bias), start, n_keys - n_queries, n_queries, n_keys,
            RANK=rank, BLOCK=block, BLOCK_R=max(16, triton.next_power_of_2(rank)), LAST=NEVER,
            num_stages=2,
        )  # fmt: skip
    return dropped_at


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dropped_at: torch.Tensor, *, scale: float
) -> torch.Tensor:
    """As reference.attention, for plain logits."""
    return flash_rows(q, k, v, scale=scale, until=dropped_at[:, None])[0]

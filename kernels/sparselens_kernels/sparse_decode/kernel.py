"""Flash decoding over gathered keys: splits of the selection in parallel, merged by their log-sum-exp."""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl

from sparselens_kernels.device import guard

_LENGTHS = ["n_index", "n_splits", "per_split"]
_PROGRAMS = 512  # that keep any card busy; with fewer, each reads a smaller part
_BLOCK = 64  # keys


@triton.jit(do_not_specialize=_LENGTHS)
def _split(
    q, k, v, index, n_selected, part, lse,
    k_batch, k_head, k_token, k_channel,  # strides
    v_batch, v_head, v_token, v_channel,
    scale, n_index, n_splits, n_kv, per_split,
    DIM: tl.constexpr, DIM_V: tl.constexpr, GROUP: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """part = Σ_s exp(x[g, s] − lse[g]) · v[s] and lse[g] = log Σ_s exp x[g, s] over one split of a KV head's selection.

    A program per (split, batch · KV head), with its G query heads packed into the rows of one product. An empty split
    leaves −∞ and nought.
    """
    i_split, i_row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    i_batch, i_kv = i_row // n_kv, i_row % n_kv
    o_g, o_d, o_v = tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
    m_g, m_d, m_v = o_g < GROUP, o_d < DIM, o_v < DIM_V
    p_q = q + (i_row * GROUP + o_g)[:, None] * DIM + o_d[None, :]
    b_q = tl.load(p_q, mask=m_g[:, None] & m_d[None, :], other=0.0)
    count = tl.load(n_selected + i_row)
    b_max = tl.full([BLOCK_G], float("-inf"), tl.float32)
    b_sum = tl.zeros([BLOCK_G], tl.float32)
    b_out = tl.zeros([BLOCK_G, BLOCK_V], tl.float32)
    first = i_split * per_split
    last = tl.minimum(first + per_split, count)
    for i_s in range(first, last, BLOCK):
        o_s = i_s + tl.arange(0, BLOCK)
        m_s = o_s < last
        o_key = tl.load(index + i_row * n_index + o_s, mask=m_s, other=0).to(tl.int64)
        p_k = k + i_batch * k_batch + i_kv * k_head + o_key[None, :] * k_token + o_d[:, None] * k_channel
        p_v = v + i_batch * v_batch + i_kv * v_head + o_key[:, None] * v_token + o_v[None, :] * v_channel
        b_k = tl.load(p_k, mask=m_d[:, None] & m_s[None, :], other=0.0)
        b_v = tl.load(p_v, mask=m_s[:, None] & m_v[None, :], other=0.0)
        b_x = tl.dot(b_q, b_k, input_precision="ieee") * scale
        b_x = tl.where(m_s[None, :], b_x, float("-inf"))
        b_new = tl.maximum(b_max, tl.max(b_x, axis=1))  # finite: every block of the loop has a key
        b_p = tl.exp(b_x - b_new[:, None])
        b_rescale = tl.exp(b_max - b_new)
        b_sum = b_sum * b_rescale + tl.sum(b_p, axis=1)
        b_out = b_out * b_rescale[:, None] + tl.dot(b_p.to(b_v.dtype), b_v, input_precision="ieee")
        b_max = b_new
    b_found = b_sum > 0
    b_total = tl.where(b_found, b_sum, 1.0)
    o_row = (i_row * n_splits + i_split) * GROUP + o_g
    tl.store(part + o_row[:, None] * DIM_V + o_v[None, :], b_out / b_total[:, None], mask=m_g[:, None] & m_v[None, :])
    tl.store(lse + o_row, tl.where(b_found, b_max + tl.log(b_total), float("-inf")), mask=m_g)


@triton.jit(do_not_specialize=["n_splits"])
def _merge(
    part, lse, out, n_splits, GROUP: tl.constexpr, DIM_V: tl.constexpr, BLOCK: tl.constexpr, BLOCK_V: tl.constexpr
):
    """out = Σ_i exp(lse[i]) · part[i] / Σ_i exp(lse[i]) over the splits of one query head; nought where all are empty."""
    i_row = tl.program_id(0).to(tl.int64)
    i_kv, i_g = i_row // GROUP, i_row % GROUP
    o_v = tl.arange(0, BLOCK_V)
    m_v = o_v < DIM_V
    top, total = -1e30, 0.0
    b_out = tl.zeros([BLOCK_V], tl.float32)
    for i_s in range(0, n_splits, BLOCK):
        o_s = i_s + tl.arange(0, BLOCK)
        m_s = o_s < n_splits
        o_row = (i_kv * n_splits + o_s) * GROUP + i_g
        b_lse = tl.load(lse + o_row, mask=m_s, other=float("-inf"))
        b_part = tl.load(part + o_row[:, None] * DIM_V + o_v[None, :], mask=m_s[:, None] & m_v[None, :], other=0.0)
        new_top = tl.maximum(top, tl.max(b_lse, axis=0))
        b_share = tl.exp(b_lse - new_top)
        rescale = tl.exp(top - new_top)
        b_out = b_out * rescale + tl.sum(b_share[:, None] * b_part, axis=0)
        total = total * rescale + tl.sum(b_share, axis=0)
        top = new_top
    tl.store(out + i_row * DIM_V + o_v, b_out / tl.where(total > 0, total, 1.0), mask=m_v)


def sparse_decode(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    index: torch.Tensor,
    *,
    n_selected: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """As reference.sparse_decode."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if q.device.type == "cpu" and not interpreted:
        raise ValueError("the Triton kernel needs a CUDA tensor, or TRITON_INTERPRET=1 to run on the CPU")
    batch, n_heads, dim = q.shape
    n_kv, n_index, dim_v, dtype = k.shape[1], index.shape[2], v.shape[3], q.dtype
    group = n_heads // n_kv
    if interpreted and dtype == torch.bfloat16:  # its tl.dot takes bfloat16 for the integers it is stored in
        q, k, v = q.float(), k.float(), v.float()
    if n_selected is None:
        n_selected = torch.full((batch, n_kv), n_index, dtype=torch.int32, device=q.device)
    block = keys_of_block(q.element_size() == 2, triton.next_power_of_2(max(dim, dim_v)))
    per_split = next((n for n in (256, 128) if batch * n_kv * triton.cdiv(n_index, n) >= _PROGRAMS), _BLOCK)
    n_splits = max(1, triton.cdiv(n_index, per_split))
    part = torch.empty(batch, n_kv, n_splits, group, dim_v, dtype=torch.float32, device=q.device)
    lse = torch.empty(batch, n_kv, n_splits, group, dtype=torch.float32, device=q.device)
    with guard(q):
        _split[(n_splits, batch * n_kv)](
            q.contiguous(), k, v, index.contiguous(), n_selected.int().contiguous(), part, lse,
            *k.stride(), *v.stride(),
            scale, n_index, n_splits, n_kv, per_split,
            DIM=dim, DIM_V=dim_v, GROUP=group,
            BLOCK=block, BLOCK_G=max(16, triton.next_power_of_2(group)),
            BLOCK_D=max(16, triton.next_power_of_2(dim)), BLOCK_V=max(16, triton.next_power_of_2(dim_v)),
        )  # fmt: skip
        out = torch.empty(batch, n_heads, dim_v, dtype=dtype, device=q.device)
        block_v = triton.next_power_of_2(dim_v)
        _merge[(batch * n_heads,)](part, lse, out, n_splits, GROUP=group, DIM_V=dim_v, BLOCK=16, BLOCK_V=block_v)
    return out


def keys_of_block(half: bool, wide: int) -> int:
    """Keys of a tile: fewer where a thread would spill, or where the tile would not fit the 64 KiB of an MI300X."""
    return _BLOCK if half else max(16, min(_BLOCK, 4096 // wide))

"""The rows of a block of queries one after the other, on the device: a program per (batch, KV head) walks its probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import triton
import triton.language as tl

from sparselens_kernels.device import guard

if TYPE_CHECKING:
    from sparselens_kernels.evict_scan.reference import Block, Walked


@triton.jit(do_not_specialize=["n_rows", "n_columns", "n_kept", "n_sink", "recent"])
def _walk(
    p, logits, score, decay, weight, n_empty, n_free,  # read; p and score are written too
    choices, dropped_in, lowest,  # written
    n_rows, n_columns, n_kept, n_sink, recent,
    GROUP: tl.constexpr, SCORED: tl.constexpr, REDUCTION: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """For each row i in turn, over the columns c that no earlier row has dropped:

        P[g, c]  = p[g, i, c] / Σ_c p[g, i, c]
        score[c] = decay · score[c] + weight · R_g P[g, c]
        from row `n_free` on: drop the argmin of (score, c) over first ≤ c ≤ n_kept + i − recent

    where `first` is the head's column after its empty ones and its sinks. What a thread holds of the columns it alone changes,
    and of p each row is read before it is written: no barrier is needed.
    """
    i_row = tl.program_id(0).to(tl.int64)  # batch · KV heads + KV head
    o_g, o_c = tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_C)
    m_g, m_c = o_g < GROUP, o_c < n_columns
    m_gc = m_g[:, None] & m_c[None, :]
    empty, free = tl.load(n_empty + i_row), tl.load(n_free + i_row)
    o_gc = (i_row * GROUP + o_g[:, None]) * n_rows * n_columns + o_c[None, :]
    p_p, p_logits, p_choices = p + o_gc, logits + o_gc, choices + i_row * n_rows * n_columns + o_c
    b_score = tl.load(score + i_row * n_columns + o_c, mask=m_c, other=0.0)
    b_decay = tl.load(decay + i_row * n_columns + o_c, mask=m_c, other=0.0)
    b_weight = tl.load(weight + i_row * n_columns + o_c, mask=m_c, other=0.0)
    b_dropped = tl.where(o_c < empty, -1, n_rows)
    b_next = tl.load(p_p, mask=m_gc, other=0.0)
    for i in range(n_rows):
        m_alive = m_c & (b_dropped == n_rows)
        b_p = tl.where(m_alive[None, :], b_next, 0.0)
        b_next = tl.load(p + o_gc + tl.minimum(i + 1, n_rows - 1) * n_columns, mask=m_gc, other=0.0)
        b_sum = tl.sum(b_p, axis=1)
        if (
            tl.min(tl.where(m_g, b_sum, 1.0), axis=0) < 1e-20
        ):  # what was dropped held nearly all: softmax of what is left
            b_x = tl.load(p_logits, mask=m_g[:, None] & m_alive[None, :], other=float("-inf"))
            b_p = tl.exp(b_x - tl.maximum(tl.max(b_x, axis=1), -1e30)[:, None])
            b_sum = tl.sum(b_p, axis=1)
        b_p = b_p / tl.where(m_g, b_sum, 1.0)[:, None]
        tl.store(p_p, b_p, mask=m_gc)
        if SCORED:
            if REDUCTION == "max":
                b_row = tl.max(b_p, axis=0)
            elif REDUCTION == "mean":
                b_row = tl.sum(b_p, axis=0) / GROUP
            else:
                b_row = tl.sum(b_p, axis=0)
            b_score = b_decay * b_score + b_weight * b_row
        tl.store(p_choices, tl.where(m_alive, b_score, float("inf")), mask=m_c)
        if i >= free:
            m_open = m_alive & (o_c >= empty + n_sink) & (o_c <= n_kept + i - recent)
            b_choice = tl.where(b_score == b_score, b_score, float("-inf"))  # nan goes first: some key has to go
            least, victim = tl.min(
                tl.where(m_open, b_choice, float("inf")),
                axis=0,
                return_indices=True,
                return_indices_tie_break_left=True,
            )
            b_dropped = tl.where(o_c == victim, i, b_dropped)
            tl.store(lowest + i_row * n_rows + i, least)
        p_p += n_columns
        p_logits += n_columns
        p_choices += n_columns
    tl.store(score + i_row * n_columns + o_c, b_score, mask=m_c)
    tl.store(dropped_in + i_row * n_columns + o_c, b_dropped, mask=m_c)


def walk(block: Block, n_sink: int, recent: int, scored: bool, copied: Sequence[int]) -> Walked:
    """As `walk_cpu.walk`, where no key is hidden or protected."""
    batch, n_kv, group, rows, columns = block.logits.shape
    device = block.logits.device

    def per_key(values: float | torch.Tensor | None) -> torch.Tensor:
        if not isinstance(values, torch.Tensor):
            return torch.full((batch, n_kv, columns), 1.0 if values is None else values, device=device)
        return values.float().expand(batch, n_kv, columns).contiguous()

    def per_head(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values.astype(np.int32)).to(device)

    p, score = block.attention().contiguous(), block.score.float().clone()
    choices = torch.empty(batch, n_kv, rows, columns, dtype=torch.float32, device=device)
    dropped_in = torch.empty(batch, n_kv, columns, dtype=torch.int32, device=device)
    lowest = torch.full((batch, n_kv, rows), float("nan"), device=device)
    block_g, block_c = triton.next_power_of_2(group), triton.next_power_of_2(columns)
    with guard(p):
        _walk[(batch * n_kv,)](
            p, block.logits.contiguous(), score, per_key(block.decay), per_key(block.weight),
            per_head(block.n_empty), per_head(block.n_free), choices, dropped_in, lowest,
            rows, columns, block.n_kept, n_sink, recent,
            GROUP=group, SCORED=scored, REDUCTION=block.reduction,
            BLOCK_G=block_g, BLOCK_C=block_c,
            num_warps=max(4, min(16, block_g * block_c // 512)),
        )  # fmt: skip
    block.score = score
    return dropped_in.long(), p, choices[:, :, list(copied)].permute(2, 0, 1, 3), lowest

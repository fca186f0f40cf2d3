"""Gather, then attend."""

from __future__ import annotations

import torch

from kernels.rows import accumulator_dtype


def sparse_decode(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    index: torch.Tensor,
    *,
    n_selected: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    batch, n_heads, dim = q.shape
    n_kv, dtype = k.shape[1], accumulator_dtype(q.dtype)
    columns = index.long().unsqueeze(-1)
    keys = k.gather(2, columns.expand(-1, -1, -1, k.shape[3])).to(dtype)  # [B, Hkv, S, D]
    values = v.gather(2, columns.expand(-1, -1, -1, v.shape[3])).to(dtype)
    logits = (q.to(dtype) * scale).view(batch, n_kv, -1, dim) @ keys.transpose(-1, -2)  # [B, Hkv, G, S]
    if n_selected is not None:
        unused = torch.arange(index.shape[2], device=q.device) >= n_selected[..., None]
        logits = logits.masked_fill(unused[:, :, None], float("-inf"))
    p = torch.softmax(logits, dim=-1).nan_to_num(0.0)  # a head without keys
    return (p @ values).view(batch, n_heads, -1).to(q.dtype)

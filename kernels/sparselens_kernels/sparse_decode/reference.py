"""Gather, then attend."""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention

from sparselens_kernels.rows import accumulator_dtype


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
    first = torch.arange(batch * n_kv, device=q.device).view(batch, n_kv, 1) * k.shape[2]  # of each head's rows
    rows = (index + first).flatten()

    def chosen(x: torch.Tensor) -> torch.Tensor:
        """[B, Hkv, S, D]; whole rows are copied, which takes a fifth of the time of `gather`."""
        return x.reshape(-1, x.shape[3]).index_select(0, rows).view(batch, n_kv, -1, x.shape[3]).to(dtype)

    grouped = q.to(dtype).reshape(batch, n_kv, -1, dim)  # the query heads of a KV head, as so many rows
    used = None
    if n_selected is not None:
        used = (torch.arange(index.shape[2], device=q.device) < n_selected[..., None])[:, :, None]
    out = scaled_dot_product_attention(grouped, chosen(k), chosen(v), attn_mask=used, scale=scale)
    if used is not None:
        out = out.masked_fill(~used.any(-1, keepdim=True), 0.0)  # a head without keys has no softmax
    return out.reshape(batch, n_heads, -1).to(q.dtype)  # CUDA's attention lays it out by row

"""The gate's decisions a block of queries at a time, and attention over what they leave."""

from __future__ import annotations

import torch

from sparselens_kernels.dispatch import NEVER
from sparselens_kernels.rows import accumulator_dtype, causal_rows

_ELEMENTS = 1 << 20  # of gate logits at once


def gate_drops(gate_q: torch.Tensor, gate_k: torch.Tensor, bias: float, start: int) -> torch.Tensor:
    batch, n_queries, _ = gate_q.shape
    n_keys = gate_k.shape[1]
    past, device = n_keys - n_queries, gate_q.device
    dtype = accumulator_dtype(gate_q.dtype)
    keys = gate_k.to(dtype).mT
    if n_queries == 1:
        drops = (gate_q.to(dtype) @ keys)[:, 0] + bias <= 0
        drops[:, -1] = False  # its own key
        return torch.where(drops, start, NEVER).int()
    dropped_at = torch.full((batch, n_keys), NEVER, dtype=torch.int32, device=device)
    rows = max(1, _ELEMENTS // max(1, batch * n_keys))
    for begin in range(0, n_queries, rows):
        end = min(n_queries, begin + rows)
        seen = past + end  # the keys before the block's last query, and its own
        x = gate_q[:, begin:end].to(dtype) @ keys[..., :seen] + bias  # [B, R, seen]
        drops = (x <= 0).tril_(past + begin - 1)  # a query drops what is before it
        first = drops.int().argmax(1).int() + (start + begin)  # the first of equals
        found = torch.where(drops.any(1), first, NEVER)
        dropped_at[:, :seen] = dropped_at[:, :seen].minimum(found)
    return dropped_at


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    dropped_at: torch.Tensor,  # int32 [B, Tk]
    *,
    scale: float,
    softcap: float | None,
    window: int | None,
) -> torch.Tensor:
    out = q.new_empty(*q.shape[:3], v.shape[3])
    group = q.shape[1] // k.shape[1]
    for tile in causal_rows(q, k, scale=scale, softcap=softcap, window=window, until=dropped_at[:, None]):
        heads = slice(tile.heads.start * group, tile.heads.stop * group)
        out[:, heads, tile.start : tile.end] = tile.attend(v)
    return out

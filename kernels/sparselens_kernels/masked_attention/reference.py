"""Gathered attention: for each block of queries, the keys that any of them sees, and nothing else."""

from __future__ import annotations

import torch

from sparselens_kernels.masks import KeyMask
from sparselens_kernels.rows import accumulator_dtype

_BLOCK = 64  # queries: half of it gathers twice as often, twice of it computes more that is hidden


def masked_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: KeyMask,
    *,
    scale: float,
    softcap: float | None,
    window: int | None,
    until: torch.Tensor | None,
) -> tuple[torch.Tensor, int]:
    n_heads, n = q.shape[1:3]
    dtype, device, lists = accumulator_dtype(q.dtype), q.device, mask.lists
    per_list = n_heads // lists  # query heads that share a list of keys
    own_k, own_v = (x[0].to(dtype).repeat_interleave(lists // k.shape[1], 0).flatten(0, 1) for x in (k, v))
    own_q = q[0].to(dtype).unflatten(0, (lists, per_list)) * scale  # [lists, G, T, D]
    first = torch.arange(lists, device=device)[:, None] * n
    gone = None if until is None else until[0].expand(k.shape[1], -1).repeat_interleave(lists // k.shape[1], 0)
    out = q.new_empty(1, n_heads, n, v.shape[3])
    pairs = 0
    for start in range(0, n, _BLOCK):
        end = min(n, start + _BLOCK)
        key, known = _gathered(mask.columns(start, end, device), 0 if window is None else start - window + 1)
        query = torch.arange(start, end, device=device)
        seen = mask.sees(query, key) & known[:, None]
        if window is not None:
            seen &= key[:, None] > query[:, None] - window
        if gone is not None:
            seen &= query[:, None] < gone.gather(1, key)[:, None]
        rows = (key + first).flatten()
        block_k, block_v = (x.index_select(0, rows).view(lists, key.shape[1], -1) for x in (own_k, own_v))
        logits = own_q[:, :, start:end].flatten(1, 2) @ block_k.mT  # [lists, G · R, C]
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        logits = logits.unflatten(1, (per_list, -1)).masked_fill_(~seen[:, None], float("-inf"))
        weights = torch.softmax(logits, dim=-1).flatten(1, 2)
        block = (weights @ block_v).unflatten(1, (per_list, -1)).flatten(0, 1)
        out[0, :, start:end] = block.to(q.dtype)
        pairs += n_heads * (end - start) * key.shape[1]
    return out, pairs


def _gathered(columns: torch.Tensor, first: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(int64 [lists, C] the keys of each list in order, bool [lists, C] which are no filling); none before `first`."""
    if first > 0:
        columns = columns & (torch.arange(columns.shape[1], device=columns.device) >= first)
    count = columns.sum(1)
    most = int(count.max())
    if bool((count == most).all()):
        return columns.nonzero()[:, 1].view(columns.shape[0], most), columns.new_ones(1, most)
    order = torch.argsort(columns.logical_not(), dim=1, stable=True)[:, :most]
    return order, torch.arange(most, device=columns.device) < count[:, None]

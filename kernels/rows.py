"""Causal attention a block of query rows at a time: what every reference is written in.

Shapes: B batch, Hkv KV heads, G query heads per KV head, R rows (queries) of a block, C columns (keys).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

_BLOCK_ELEMENTS = 786_432  # logits of one KV head and block: 3 MiB of float32, which stays in a core's cache


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """Scores and softmax are float32; a float64 model keeps float64."""
    return torch.promote_types(dtype, torch.float32)


def block_rows(n_columns: int, group: int) -> int:
    """Rows per block so that a block's logits stay small at any context length."""
    return max(32, min(256, _BLOCK_ELEMENTS // max(1, group * n_columns)))


def logits(q: torch.Tensor, k: torch.Tensor, scale: float, softcap: float | None) -> torch.Tensor:
    """q [B, H, R, D], k [B, Hkv, C, D] → scaled logits [B, Hkv, G, R, C] in the accumulator's dtype."""
    batch, n_heads, rows, dim = q.shape
    n_kv, columns = k.shape[1], k.shape[2]
    dtype = accumulator_dtype(q.dtype)
    q_grouped = (q.to(dtype) * scale).reshape(batch, n_kv, (n_heads // n_kv) * rows, dim)
    out = torch.matmul(q_grouped, k.to(dtype).transpose(-1, -2))
    if softcap is not None:
        out = softcap * torch.tanh(out / softcap)
    return out.view(batch, n_kv, n_heads // n_kv, rows, columns)


def attend(probabilities: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """P [B, Hkv, G, R, C], v [B, Hkv, C, Dv] → [B, H, R, Dv] in v's dtype."""
    batch, n_kv, group, rows, columns = probabilities.shape
    flat = probabilities.reshape(batch, n_kv, group * rows, columns)
    return torch.matmul(flat, v.to(flat.dtype)).view(batch, n_kv * group, rows, -1).to(v.dtype)


def causal_rows(
    q: torch.Tensor,
    k: torch.Tensor,
    *,
    scale: float,
    softcap: float | None = None,
    window: int | None = None,
) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Yields (start, end, P) with P [B, Hkv, G, end − start, C] the softmax rows of queries start…end − 1.

    Queries are the last Tq of the Tk keys. P holds the columns that the block's last query sees, C = Tk − Tq + end.
    `window` hides the keys at a distance of `window` or more (a sliding-window layer).
    """
    n_queries, n_keys, group = q.shape[2], k.shape[2], q.shape[1] // k.shape[1]
    past = n_keys - n_queries
    start = 0
    while start < n_queries:
        end = min(n_queries, start + block_rows(past + start + 1, group))
        columns = past + end
        rows = logits(q[:, :, start:end], k[:, :, :columns], scale, softcap)
        query = torch.arange(past + start, columns, device=q.device)[:, None]
        rows[..., past + start :].masked_fill_(query < query.T, float("-inf"))
        if window is not None:
            key = torch.arange(columns, device=q.device)[None, :]
            rows.masked_fill_(key <= query - window, float("-inf"))
        yield start, end, torch.softmax(rows, dim=-1)
        start = end


def reduce_group(probabilities: torch.Tensor, reduction: str) -> torch.Tensor:
    """[B, Hkv, G, …] → [B, Hkv, …] over the query heads that share a KV head."""
    if reduction == "max":
        return probabilities.amax(dim=2)
    return probabilities.sum(dim=2) if reduction == "sum" else probabilities.mean(dim=2)


def decayed_sums(
    score: torch.Tensor,
    probabilities: torch.Tensor,
    stops: Sequence[int],
    *,
    decay: float | torch.Tensor,
    reduction: str,
    weight: torch.Tensor | None,
    first: int = 0,
) -> Iterator[tuple[int, torch.Tensor]]:
    """`score = decay · score + weight · row` over the rows `first` … of P; yields (stop, score before row `stop`).

    score [B, Hkv, C], P [B, Hkv, G, R, C]; `decay` is a number or broadcasts to [B, Hkv, C], and so does `weight`.
    `stops` ascend. The rows between two stops are summed at once, by one product for all stops where `decay` is a number.
    """
    batch, n_kv, group, rows, columns = probabilities.shape
    starts = [first, *stops[:-1]]
    by_product = not isinstance(decay, torch.Tensor) and reduction != "max"
    if by_product:
        ages = torch.zeros(len(stops), rows, dtype=probabilities.dtype)
        for i, (start, stop) in enumerate(zip(starts, stops, strict=True)):
            ages[i, start:stop] = decay ** torch.arange(stop - start - 1, -1, -1, dtype=probabilities.dtype)
        share = 1.0 / group if reduction == "mean" else 1.0
        summing = (share * ages).repeat(1, group).to(probabilities.device)  # [stops, G · R]
        sums = torch.matmul(summing, probabilities.reshape(batch, n_kv, group * rows, columns))
    for i, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        if by_product:
            added = sums[:, :, i]
        else:
            part = reduce_group(probabilities[..., start:stop, :], reduction)
            age = torch.arange(stop - start - 1, -1, -1, device=part.device, dtype=part.dtype)
            factor = torch.atleast_1d(torch.as_tensor(decay, dtype=part.dtype, device=part.device))
            added = (part * factor.unsqueeze(-2) ** age[:, None]).sum(dim=2)
        score = score * decay ** (stop - start) + (added if weight is None else added * weight)
        yield stop, score

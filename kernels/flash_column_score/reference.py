"""Causal attention and the decayed sum of each of its columns, a block of rows at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from kernels.rows import accumulator_dtype, attend, causal_rows, decayed_sum


def flash_column_score(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    decay: float | torch.Tensor,
    first_query: int,
    reduction: str,
    weight: torch.Tensor | None,
    scale: float,
    softcap: float | None,
    window: int | None,
    snapshot_steps: Sequence[int],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    batch, _, n_queries, _ = q.shape
    n_kv, n_keys = k.shape[1], k.shape[2]
    past = n_keys - n_queries
    dtype = accumulator_dtype(q.dtype)
    out = q.new_empty(*q.shape[:3], v.shape[3])
    score = torch.zeros(batch, n_kv, n_keys, dtype=dtype, device=q.device)
    snapshots = torch.full((batch, n_kv, len(snapshot_steps), n_keys), float("nan"), dtype=dtype, device=q.device)
    slot_of = {step: slot for slot, step in enumerate(snapshot_steps)}

    def columns_of(values: Any, n: int) -> Any:
        return values[..., :n] if isinstance(values, torch.Tensor) and values.shape[-1] > 1 else values

    for start, end, p in causal_rows(q, k, scale=scale, softcap=softcap, window=window):
        out[:, :, start:end] = attend(p, v[:, :, : past + end])
        stops = sorted({s + 1 for s in snapshot_steps if start <= s < end} | {end})
        begin = max(start, first_query)
        for stop in stops:
            if begin < stop:
                seen = past + end
                score[..., :seen] = decayed_sum(
                    score[..., :seen],
                    p[..., begin - start : stop - start, :],
                    decay=columns_of(decay, seen),
                    reduction=reduction,
                    weight=columns_of(weight, seen),
                )
                begin = stop
            if stop - 1 in slot_of:
                snapshots[:, :, slot_of[stop - 1], : past + stop] = score[..., : past + stop]
    return out, score, snapshots

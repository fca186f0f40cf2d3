"""Causal attention and the decayed sum of each of its columns, a block of rows at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from kernels.rows import accumulator_dtype, attend, causal_rows, decayed_sums


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
        seen = past + end
        begin = max(start, first_query)
        stops = sorted({s + 1 for s in snapshot_steps if begin <= s < end} | {end})
        if begin < end:
            sums = decayed_sums(
                score[..., :seen],
                p,
                [stop - start for stop in stops],
                first=begin - start,
                decay=columns_of(decay, seen),
                reduction=reduction,
                weight=columns_of(weight, seen),
            )
            for stop, current in sums:
                score[..., :seen] = current
                if start + stop - 1 in slot_of:
                    snapshots[:, :, slot_of[start + stop - 1], : past + start + stop] = current[
                        ..., : past + start + stop
                    ]
        for step in slot_of:
            if start <= step < begin:
                snapshots[:, :, slot_of[step], : past + step + 1] = score[..., : past + step + 1]
    return out, score, snapshots

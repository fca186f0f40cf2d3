"""Causal attention and the decayed sum of each of its columns, a block of rows at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from sparselens_kernels.masks import KeyMask
from sparselens_kernels.rows import accumulator_dtype, causal_rows, decayed_sums


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
    until: torch.Tensor | None,
    mask: KeyMask | None,
    snapshot_steps: Sequence[int],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    batch, _, n_queries, _ = q.shape
    n_kv, n_keys = k.shape[1], k.shape[2]
    past = n_keys - n_queries
    dtype = accumulator_dtype(q.dtype)
    out = q.new_empty(*q.shape[:3], v.shape[3])
    score = torch.zeros(batch, n_kv, n_keys, dtype=dtype, device=q.device)
    snapshots = torch.zeros(batch, n_kv, len(snapshot_steps), n_keys, dtype=dtype, device=q.device)
    slot_of = {step: slot for slot, step in enumerate(snapshot_steps)}

    def part_of(values: Any, heads: slice, n: int) -> Any:
        """The values [B, Hkv, Tk] of these heads and the first n keys, where an axis has more than one."""
        if not isinstance(values, torch.Tensor):
            return values
        values = values if values.shape[1] == 1 else values[:, heads]
        return values if values.shape[2] == 1 else values[..., :n]

    group = q.shape[1] // n_kv
    for tile in causal_rows(q, k, scale=scale, softcap=softcap, window=window, until=until, mask=mask):
        heads, start, end, seen = tile.heads, tile.start, tile.end, past + tile.end
        out[:, heads.start * group : heads.stop * group, start:end] = tile.attend(v)
        begin = max(start, first_query)
        if begin < end:
            steps = sorted(step for step in snapshot_steps if begin <= step < end)
            sums = decayed_sums(
                score[:, heads, :seen],
                tile.weights,
                [step + 1 - start for step in steps] + [end - start],
                first=begin - start,
                decay=part_of(decay, heads, seen),
                reduction=reduction,
                weight=part_of(weight, heads, seen),
                norm=tile.norm,
            )
            score[:, heads, :seen] = sums[:, :, -1]
            if steps:
                snapshots[:, heads, [slot_of[step] for step in steps], :seen] = sums[:, :, :-1]
    last = past + torch.tensor(snapshot_steps, dtype=torch.int64, device=q.device)[:, None]
    snapshots.masked_fill_(torch.arange(n_keys, device=q.device) > last, float("nan"))
    return out, score, snapshots

"""A decode step on the CPU: the recurrence of `reference`, of one query and without what a block of them needs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from sparselens_kernels.dispatch import NEVER, REDUCTIONS
from sparselens_kernels.evict_scan.walk_cpu import nothing, per_key, walk_rows
from sparselens_kernels.rows import attend, logits


def evict_scan(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    budget: Sequence[int],
    decay: float | torch.Tensor,
    n_sink: int,
    recent: int,
    scored: bool,
    weight: torch.Tensor | None,
    initial: float | torch.Tensor,
    reduction: str,
    scale: float,
    softcap: float | None,
    window: int | None,
    positions: torch.Tensor,
    score: torch.Tensor,
    start: int,
    snapshot_steps: Sequence[int],
    until: torch.Tensor | None,
    protected: torch.Tensor | None,
    shared: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `reference.evict_scan`, which has the rest: masks, turned sinks and memories."""
    found = logits(q, k, scale, softcap)  # [B, Hkv, G, 1, C]
    batch, n_kv, _, _, columns = found.shape
    shape, x = (batch, n_kv, columns), found.numpy()
    held, current = np.full(shape, start), per_key(initial, shape, x.dtype)
    held[..., :-1], current[..., :-1] = positions.numpy(), score.numpy()
    hidden_at = per_key(NEVER if until is None else until, shape, np.int64)
    place = np.arange(columns) - (held < 0).sum(2, keepdims=True)  # below 0: an empty slot
    hidden = (place < 0) | (hidden_at <= start)
    if window is not None:
        hidden |= held <= start - window
    np.copyto(x, -np.inf, where=hidden[:, :, None, None])
    np.copyto(current, 0.0, where=place < 0)
    by_place = until is None and protected is None
    stays = (place if by_place else held) < n_sink
    if protected is not None:
        stays = stays | protected.numpy()
    p, alive = np.exp(x), (place >= 0).astype(x.dtype)
    full = np.asarray(budget) <= place[..., -1]  # [B, Hkv]
    dropped_in = np.where(place < 0, -1, 1)
    lowest = np.full((batch, n_kv, 1), np.nan, x.dtype)
    walk_rows(
        p, x, current, alive, dropped_in, np.empty((0, *shape), x.dtype), lowest,
        per_key(decay, shape, x.dtype), per_key(1.0 if weight is None else weight, shape, x.dtype),
        stays, hidden_at, held, np.where(full, 0, 1), np.full(1, -1),
        *nothing(p),
        columns - 1, recent, by_place, scored, REDUCTIONS.index(reduction), shared,
    )  # fmt: skip
    if by_place:
        lowest[:, np.asarray(budget) <= n_sink + recent] = np.nan  # heads that have no choice
    gone = dropped_in < 1
    evicted_at = np.where(place < 0, 0, np.where(gone, start + 1, NEVER)).astype(np.int32)
    np.copyto(current, np.nan, where=gone)
    snapshots = np.broadcast_to(current[:, :, None], (batch, n_kv, len(snapshot_steps), columns)).copy()
    evicted, final, threshold, copied = (torch.from_numpy(each) for each in (evicted_at, current, lowest, snapshots))
    return attend(torch.from_numpy(p), v), evicted, final, threshold, copied

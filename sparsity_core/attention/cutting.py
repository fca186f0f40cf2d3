"""Which keys one cut of a layer's cache leaves, from their votes; and what a layer's rule remembers between queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from sparselens_kernels import EMPTY, LATE, NEVER, Memory
from torch.nn.functional import avg_pool1d

from sparsity_core.kinds import Budget, PrefillRule, budgets_of

UNLIMITED = NEVER  # a budget that no text reaches


@dataclass
class LayerScores:
    """What one layer's rule remembers of B texts."""

    score: torch.Tensor  # [B, Hkv, held]
    threshold: torch.Tensor  # float32 [B, Hkv, T]
    steps: list[int]  # [S]: queries after which the scores are copied
    snapshots: torch.Tensor  # float32 [B, Hkv, S, T + 1], by position as LayerKeys has it
    window: int | None = None  # where keys leave the cache once the layer's window has passed them
    limits: torch.Tensor | None = None  # int64 [B, Hkv]: the budgets, where the votes set them
    queries: torch.Tensor | None = None  # [B, H, w, D]: the last ones, where a ranking looks at them
    memory: Memory | None = None  # of what was evicted, where the rule's queries read it


def limits_of(budget: Budget, n_kv: int) -> list[int]:
    """The budget of each KV head as a number."""
    return [UNLIMITED if own is None else own for own in budgets_of(budget, n_kv)]


def pooled_votes(score: torch.Tensor, rule: PrefillRule, n: int) -> torch.Tensor:
    """The votes [B, Hkv, n], pooled for the keys before the window, to which the window's own do not count."""
    votes = score.clone()
    if rule.pool > 1:
        votes[..., n - rule.recent :] = 0.0
        votes = avg_pool1d(votes, rule.pool, stride=1, padding=rule.pool // 2)
        votes[..., n - rule.recent :] = score[..., n - rule.recent :]
    return votes


def in_order(
    votes: torch.Tensor,
    positions: torch.Tensor,
    end: int,
    *,
    n_sink: int,
    recent: int,
    protected: torch.Tensor | None,
    until: torch.Tensor | None,
) -> torch.Tensor:
    """The order [B, Hkv, n] in which a cut before query `end` keeps the keys at `positions`: the highest stay.

    `protected` bool and `until` int32 are like `positions`; hidden keys and empty slots are −∞.
    """
    ranked = votes.clone()
    # Above every vote and below what is protected, the oldest first to go where there is no room for all.
    late = LATE * (1 + (positions - (end - recent)) / max(recent, 1))
    ranked = torch.where(positions >= end - recent, late.to(ranked.dtype), ranked)
    ranked[positions < n_sink] = float("inf")
    if protected is not None:
        ranked.masked_fill_(protected.to(ranked.device), float("inf"))
    if until is not None:
        ranked.masked_fill_(until < end, float("-inf"))  # but not what a later query will drop
    return ranked.masked_fill_(positions == EMPTY, float("-inf"))


def highest(ranked: torch.Tensor, limits: Sequence[int] | torch.Tensor) -> torch.Tensor:
    """bool like `ranked` [B, Hkv, n]: the highest of each head, as many as its limit, [Hkv] or [B, Hkv]."""
    counts = torch.as_tensor(limits, device=ranked.device)
    most = min(ranked.shape[2], int(counts.max()))
    top = ranked.topk(most, dim=2).indices
    within = torch.arange(most, device=top.device) < counts[..., None]
    return torch.zeros_like(ranked, dtype=torch.bool).scatter_(2, top, within.expand_as(top))


def best_lost(ranked: torch.Tensor, stays: torch.Tensor) -> torch.Tensor:
    """float32 [B, Hkv]: the highest vote that goes; nan where none does, or where no vote decided."""
    lost = ranked.masked_fill(stays, float("-inf")).amax(dim=2).float()
    return lost.masked_fill(lost.isinf() | (lost >= LATE), float("nan"))

"""Eviction by a method's own ranking: the text is read in blocks, each of which ends where a head's cache overflows."""

from __future__ import annotations

from typing import Any

import torch
from sparselens_kernels import EMPTY, NEVER, evict_scan

from sparsity_core.attention.cutting import UNLIMITED, LayerScores, best_lost, highest, in_order, limits_of
from sparsity_core.attention.step import LayerKeys, Step, take
from sparsity_core.kinds import HeldKeys, ScanRule
from sparsity_core.models import AttentionCall


def held_keys(
    call: AttentionCall,
    *,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    positions: torch.Tensor,
    until: torch.Tensor | None,
    end: int,
    frequencies: Any,
) -> HeldKeys:
    """What a ranking sees of the keys at `positions` [B, Hkv, n] before query `end`."""
    exists = positions != EMPTY
    if until is not None:
        exists = exists & (until >= end)
    return HeldKeys(call.layer, q, k, v, positions, exists, end, **call.how, frequencies=frequencies)


class RankedScan:
    """One call's queries under a ranking rule. `attend` gives their output; `columns` are then the call's that stay."""

    def __init__(
        self,
        step: Step,
        rule: ScanRule,
        call: AttentionCall,
        start: int,
        own: LayerScores,
        *,
        protected: torch.Tensor | None,
        frequencies: Any,
    ) -> None:
        self._step, self._rule, self._call, self._start, self._own = step, rule, call, start, own
        self._protected, self._frequencies = protected, frequencies
        self._past = call.n_keys - call.n_queries
        device = call.k.device
        self.columns = torch.arange(self._past, device=device).expand(*call.k.shape[:2], -1)
        self._limits = torch.tensor(limits_of(rule.budget, call.n_kv), device=device)
        self._left = torch.where(self._limits == UNLIMITED, UNLIMITED, self._limits + 1 - rule.every)
        self.cut, self.backends = False, set[str]()

    def attend(self) -> torch.Tensor:
        """The output [B, H, Tq, Dv]; the layer's keys then hold what the last cut left."""
        call, parts, begin = self._call, [], 0
        while begin < call.n_queries:
            end = self._block_end(begin)
            parts.append(self._block(begin, end))
            self._rank(begin, end)
            begin = end
        return torch.cat(parts, dim=2)

    @property
    def _keys(self) -> LayerKeys:
        return self._step.keys

    def _block_end(self, begin: int) -> int:
        """Up to where queries can be read before some head overflows, or a snapshot is due."""
        room = int((self._limits - self._keys.n_held).min()) + 1
        snapshots = [s + 1 - self._start for s in self._own.steps if s >= self._start + begin]
        return min([self._call.n_queries, begin + max(1, room), *snapshots])

    def _block(self, begin: int, end: int) -> torch.Tensor:
        """Attention of queries begin … end − 1 over what is held and over each other."""
        call, keys, past = self._call, self._keys, self._keys.positions
        new = torch.arange(begin, end, device=call.k.device).expand(*call.k.shape[:2], -1)
        self.columns = torch.cat([self.columns, self._past + new], dim=2)
        keys.positions = torch.cat([past, self._start + new], dim=2)
        until = keys.until(keys.positions)
        result = evict_scan(
            call.q[:, :, begin:end],
            take(call.k, self.columns),
            take(call.v, self.columns),
            budget=UNLIMITED,
            scored=False,
            until=until,
            mask=self._step.mask,
            positions=past,
            score=torch.zeros_like(past, dtype=torch.float32),
            start=self._start + begin,
            **call.how,
        )
        self.backends.add(result.backend)
        if until is not None:
            keys.evicted_at.scatter_reduce_(2, keys.place(keys.positions), until, "amin")
        return result.out

    def _rank(self, begin: int, end: int) -> None:
        """Cuts the heads that hold more than their budget, and copies the ranking where it is asked for."""
        call, rule, keys, own = self._call, self._rule, self._keys, self._own
        if rule.ranking_queries:
            q = call.q[:, :, begin:end]
            known = q if own.queries is None else torch.cat([own.queries, q], dim=2)
            own.queries = known[:, :, -rule.ranking_queries :].clone()
        over, at = keys.n_held > self._limits, self._start + end
        slots = [i for i, step in enumerate(own.steps) if step == at - 1]
        if not slots and not bool(over.any()):
            return
        positions, until = keys.positions, keys.until(keys.positions)
        held = held_keys(
            call,
            q=call.q[:, :, :0] if own.queries is None else own.queries,
            k=take(call.k, self.columns),
            v=take(call.v, self.columns),
            positions=positions,
            until=until,
            end=at,
            frequencies=self._frequencies,
        )
        assert rule.rank is not None
        votes = rule.rank(held)
        ranked = in_order(
            votes,
            positions,
            at,
            n_sink=rule.n_sink,
            recent=rule.recent,
            protected=None if self._protected is None else _at(self._protected, positions),
            until=until,
        )
        stays = highest(ranked, torch.where(over, self._left, UNLIMITED)) & (positions != EMPTY)
        for i in slots:
            copied = votes.float().masked_fill(~stays, float("nan"))
            own.snapshots[:, :, i].scatter_(2, keys.place(positions), copied)
        if not bool(over.any()):
            return
        lost = torch.where(stays, NEVER, at).int()
        keys.evicted_at.scatter_reduce_(2, keys.place(positions), lost, "amin")
        own.threshold[..., at - 1] = torch.where(over, best_lost(ranked, stays), float("nan"))
        self.columns = self.columns.gather(2, keys.keep(positions, stays))
        self.cut = True


def _at(named: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """What `named` bool [1 or B, T] says of `positions` [B, Hkv, n]."""
    return named.to(positions.device)[:, None].expand(*positions.shape[:2], -1).gather(2, positions.clamp_min(0))

"""The eviction stage's engine: attention over what is kept, the scores that judge it, and the drops, layer by layer.

The dense model is the rule that keeps everything; its scores are recorded too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from sparselens_kernels import NEVER, KeyMask, Memory, evict_scan, flash_column_score, masked_attention
from torch.nn.functional import scaled_dot_product_attention

from sparsity_core.attention.cutting import LayerScores, best_lost, highest, in_order, limits_of, pooled_votes
from sparsity_core.attention.ranked import RankedScan, held_keys
from sparsity_core.attention.rules import cuts_once
from sparsity_core.attention.step import LayerKeys, Stage, Step, stacked, take
from sparsity_core.kinds import Budget, ForgettingFactor, PrefillRule, ScanRule, budgets_of, least_of
from sparsity_core.models import AttentionCall, Model
from sparsity_core.record import EvictionRecord


class EvictionStage(Stage):
    """Runs one rule per layer over some equally long texts, most often one.

    `token_classes` are of each text, and grow with it; `only_layer` alone copies scores where it is given. With `splits` a
    rule that drops as it goes reads the prompt and what follows apart, too.
    """

    def __init__(
        self,
        model: Model,
        rules: Sequence[ScanRule | PrefillRule],
        *,
        n_tokens: int,
        n_prefill: int,
        token_classes: Sequence[Sequence[str]],
        snapshot_steps: Sequence[int] = (),
        only_layer: int | None = None,
        protected: torch.Tensor | None = None,
        splits: bool = False,
    ) -> None:
        self._model, self.rules, self.n_prefill, self._splits = model, rules, n_prefill, splits
        self._n_tokens, self._token_classes, self._only_layer = n_tokens, token_classes, only_layer
        self.snapshot_steps = list(snapshot_steps)
        self.protected = protected  # bool [1 or B, T]
        self.backends: set[str] = set()
        self._layers: dict[int, LayerScores] = {}
        self._keys: dict[int, LayerKeys] = {}
        self._check_room()

    def begin(self, layer: int, keys: LayerKeys) -> None:
        """Makes room for a layer's scores."""
        heads, device = keys.positions.shape[:2], keys.positions.device
        steps = self.snapshot_steps if self._only_layer in (None, layer) else []
        self._keys[layer] = keys
        self._layers[layer] = LayerScores(
            score=torch.empty(*heads, 0, device=device),
            threshold=torch.full((*heads, self._n_tokens), float("nan"), device=device),
            steps=steps,
            snapshots=torch.full((*heads, len(steps), self._n_tokens + 1), float("nan"), device=device),
        )

    def share(self, layer: int, source: int) -> None:
        """A layer that reads the cache of another has its scores."""
        self._keys[layer], self._layers[layer] = self._keys[source], self._layers[source]

    def attend(self, step: Step) -> torch.Tensor:
        """The output [B, H, Tq, Dv] over what each query finds kept; `step.keys` then holds what stays."""
        call, rule = step.reads, self.rules[step.layer]
        cut, scan = (None, rule) if isinstance(rule, ScanRule) else (rule, rule.then)
        if rule.memory and self._layers[step.layer].memory is None:
            self._layers[step.layer].memory = Memory.empty(call.k, call.v)
        n_first = max(0, min(call.n_queries, self.n_prefill - step.start))
        if n_first == 0 or (cut is None and not self._splits):
            return self._scan(step, scan, call, step.start)
        prompt = call.rows(0, n_first)
        first = self._scan(step, scan, prompt, step.start) if cut is None else self._read_prompt(step, cut, prompt)
        if n_first == call.n_queries:
            return first
        held, q = step.keys.positions.clamp_min(0), call.q[:, :, n_first:]  # an empty slot shows any key, to nobody
        k, v = take(call.k, held), take(call.v, held)
        if step.later is not None:
            k = step.later(k, step.keys.positions)
        k, v = torch.cat([k, call.k[:, :, n_first:]], dim=2), torch.cat([v, call.v[:, :, n_first:]], dim=2)
        rest = AttentionCall(call.layer, q, k, v, **call.how)
        return torch.cat([first, self._scan(step, scan, rest, step.start + n_first)], dim=2)

    def nbytes(self, layer: int) -> int:
        memory = self._layers[layer].memory
        return 0 if memory is None else memory.nbytes

    def keep(self, layer: int, columns: torch.Tensor) -> None:
        layer_scores = self._layers[layer]
        layer_scores.score = layer_scores.score.gather(2, columns)

    def record(self, n: int, text: int = 0) -> EvictionRecord:
        """What it did over the first n tokens of one text of the batch."""
        steps = [s for s in self.snapshot_steps if s < n]
        snapshots = np.stack([self.layer_snapshots(i, text) for i in sorted(self._layers)])
        budgets: list[Any] = [budgets_of(rule.budget, self._model.arch.n_kv_heads) for rule in self.rules]
        for layer, own in self._layers.items():
            if own.limits is not None:
                budgets[layer] = own.limits[text].tolist()
        return EvictionRecord(
            n_prefill=self.n_prefill if self._splits or cuts_once(self.rules) else 0,
            budgets=np.asarray([[n if each is None else each for each in layer] for layer in budgets], np.int32),
            n_sink=np.asarray([rule.n_sink for rule in self.rules], np.int32),
            recent=np.asarray([rule.recent for rule in self.rules], np.int32),
            threshold=stacked({i: own.threshold[text] for i, own in self._layers.items()})[..., :n],
            snapshot_steps=np.asarray(steps, np.int32),
            snapshots=snapshots[:, :, : len(steps), :n],
        )

    def layer_snapshots(self, layer: int, text: int = 0) -> np.ndarray:
        """float32 [Hkv, S, T] of one layer; nan where a key is not in the cache, or is hidden from all heads."""
        own, hidden_at = self._layers[layer], self._keys[layer].hidden_at[text, :-1]
        steps = torch.tensor(own.steps, device=hidden_at.device)
        hidden = hidden_at <= steps[:, None]
        if own.window is not None:
            hidden = hidden | (torch.arange(len(hidden_at), device=steps.device) <= steps[:, None] - own.window)
        return own.snapshots[text, ..., :-1].masked_fill(hidden, float("nan")).cpu().numpy()

    def _check_room(self) -> None:
        """Raises ValueError where a layer's budget cannot hold what the user's rules protect."""
        if self.protected is None:
            return
        for layer, rule in enumerate(self.rules):
            mine, least = int(self.protected[:, rule.n_sink :].sum(1).max()), least_of(rule.budget)
            if least is not None and mine and mine + rule.n_sink + 1 > least:
                raise ValueError(
                    f"protect names {mine} tokens, which with {rule.n_sink} sinks and the newest token do not fit the "
                    f"budget of {least} in layer {layer}: raise the budget or protect fewer"
                )

    def _read_prompt(self, step: Step, rule: PrefillRule, call: AttentionCall) -> torch.Tensor:
        """Attention of the prompt's queries over all its keys that they may see, and the one cut at its end."""
        n, keys, own = call.n_queries, step.keys, self._layers[call.layer]
        positions = torch.arange(call.n_keys, device=call.k.device).expand(*call.k.shape[:2], -1)
        slots = [i for i, at in enumerate(own.steps) if at < n]
        until = keys.until(positions)
        if step.mask is not None and keys.alike and n == call.n_keys == step.mask.n_tokens:
            return self._read_masked(step, step.mask, call, positions, until)
        result = flash_column_score(
            call.q,
            call.k,
            call.v,
            until=until,
            mask=step.mask,
            decay=self._decay(rule.decay, positions),
            first_query=0 if rule.queries is None else max(0, n - rule.queries),
            reduction=rule.reduction,
            weight=_norms(call.v) if rule.value_norm else None,
            snapshot_steps=[own.steps[i] for i in slots],
            **call.how,
        )
        self.backends.add(result.backend)
        own.snapshots[:, :, slots, :n] = result.snapshots.float()
        if until is not None:
            keys.evicted_at[..., :n] = until
        limits = limits_of(rule.budget, call.n_kv)
        if min(limits) >= n:
            keys.positions, own.score = positions, result.score
            self._compact(step, n)
            return result.out
        votes = self._votes(rule, call, positions, until, result.score)
        ranked = in_order(
            votes,
            positions,
            n,
            n_sink=rule.n_sink,
            recent=rule.recent,
            protected=self._protected_at(positions),
            until=until,
        )
        if rule.allot is not None:
            own.limits = rule.allot(ranked, limits[0])
        stays = highest(ranked, limits if own.limits is None else own.limits)
        keys.evicted_at[..., :n] = torch.where(stays, NEVER, n).int().minimum(keys.evicted_at[..., :n])
        for i in slots:
            if own.steps[i] == n - 1:
                own.snapshots[:, :, i, :n] = votes.float().masked_fill(~stays, float("nan"))
        own.threshold[..., n - 1] = best_lost(ranked, stays)
        if own.memory is not None:
            own.memory = own.memory.with_evicted(call.k, call.v, ~stays if until is None else ~stays & (until >= n))
        step.left = keys.keep(positions, stays)
        own.score = result.score.gather(2, step.left)
        return result.out

    def _read_masked(
        self, step: Step, mask: KeyMask, call: AttentionCall, positions: torch.Tensor, until: torch.Tensor | None
    ) -> torch.Tensor:
        """Attention of the prompt's queries over the keys that a mask shows them, where nothing is evicted or scored."""
        keys, own, n = step.keys, self._layers[call.layer], call.n_queries
        result = masked_attention(call.q, call.k, call.v, mask, until=until, **call.how)
        self.backends.add(result.backend)
        step.pairs = result.pairs
        if until is not None:
            keys.evicted_at[..., :n] = until
        keys.positions, own.score = positions, torch.zeros_like(positions, dtype=torch.float32)
        self._compact(step, n)
        return result.out

    def _votes(
        self,
        rule: PrefillRule,
        call: AttentionCall,
        positions: torch.Tensor,
        until: torch.Tensor | None,
        received: torch.Tensor,
    ) -> torch.Tensor:
        """[B, Hkv, n]: what one cut ranks the prompt's keys by: the attention `received`, or the method's own."""
        n = call.n_queries
        if rule.rank is None:
            return pooled_votes(received, rule, n)
        how: dict[str, Any] = {"until": until, "end": n, "frequencies": self._model.rotary_frequencies}
        votes: torch.Tensor = rule.rank(held_keys(call, q=call.q, k=call.k, v=call.v, positions=positions, **how))
        return votes

    def _scan(self, step: Step, rule: ScanRule, call: AttentionCall, start: int) -> torch.Tensor:
        """Attention of each query over what the one before it left, which drops at most one key of each head."""
        n, end, keys, own = call.n_queries, start + call.n_queries, step.keys, self._layers[call.layer]
        new = torch.arange(start, end, device=call.k.device).expand(*call.k.shape[:2], n)
        if rule.rank is not None:
            return self._scan_ranked(step, rule, call, start)
        positions = torch.cat([keys.positions, new], dim=2)
        plain = rule.budget is None and call.softcap is None and call.window is None and not rule.memory
        if n == 1 and plain and not own.steps and keys.alike and not keys.uneven and step.generating:
            # Nothing is scored or cut, and what is hidden has left the cache: the model's own attention is all.
            keys.positions, own.score = positions, torch.zeros_like(positions, dtype=own.score.dtype)
            if keys.forced:  # what a gate drops has left before its query looked
                self._compact(step, end)
            return _grouped_attention(call)
        slots = [i for i, at in enumerate(own.steps) if start <= at < end]
        until = keys.until(positions)
        result = evict_scan(
            call.q,
            call.k,
            call.v,
            until=until,
            mask=step.mask,
            protected=self._protected_at(positions),
            budget=limits_of(rule.budget, call.n_kv),
            decay=self._decay(rule.decay, positions),
            n_sink=rule.n_sink,
            recent=rule.recent,
            scored=rule.scored,
            weight=_norms(call.v) if rule.value_norm else None,
            initial=0.0 if rule.noise is None else self._noise(call.layer, positions, rule.noise),
            reduction=rule.reduction,
            shared=rule.shared,
            sink_q=re_rotated(call.q, start, rule.budget, self._model) if rule.re_rotate else None,
            positions=keys.positions,
            score=own.score,
            start=start,
            snapshot_steps=[own.steps[i] - start for i in slots],
            memory=own.memory,
            **call.how,
        )
        self.backends.add(result.backend)
        own.memory = result.memory
        place = keys.place(positions)
        keys.evicted_at.scatter_(2, place, result.evicted_at if until is None else result.evicted_at.minimum(until))
        own.threshold[..., start:end] = result.threshold.float()
        for i, slot in enumerate(slots):
            own.snapshots[:, :, slot].scatter_(2, place, result.snapshots[:, :, i].float())
        least = least_of(rule.budget)
        if least is None or positions.shape[2] <= least:
            keys.positions, own.score = positions, result.score
            if least is None:
                self._compact(step, end)
        else:
            step.left = keys.keep(positions, result.evicted_at == NEVER)
            own.score = result.score.gather(2, step.left)
        return result.out

    def _scan_ranked(self, step: Step, rule: ScanRule, call: AttentionCall, start: int) -> torch.Tensor:
        """As `_scan`, where a method's own ranking says what goes."""
        own, frequencies = self._layers[step.layer], self._model.rotary_frequencies
        scan = RankedScan(step, rule, call, start, own, protected=self.protected, frequencies=frequencies)
        out = scan.attend()
        self.backends |= scan.backends
        own.score = torch.zeros_like(step.keys.positions, dtype=torch.float32)
        if scan.cut:
            step.left = scan.columns
        return out

    def _compact(self, step: Step, end: int) -> None:
        """Takes out of the cache what query `end` would not see, where all heads hold the same keys.

        Under an eviction method those slots wait for it to use them again.
        """
        keys, own, window = step.keys, self._layers[step.layer], step.call.window
        if not keys.alike or (window is None and not keys.hides):
            return
        at = keys.positions[:, 0]
        held = keys.hidden(at) > end
        if window is not None:
            held &= at > end - window
            own.window = window
        if not bool(held.all()):
            step.left = keys.keep(keys.positions, held[:, None].expand_as(keys.positions))
            own.score = own.score.gather(2, step.left)

    def _protected_at(self, positions: torch.Tensor) -> torch.Tensor | None:
        """bool like `positions` [B, Hkv, keys]: whether the user's rules keep the key; None without such rules."""
        if self.protected is None:
            return None
        own = self.protected.to(positions.device)[:, None].expand(*positions.shape[:2], -1)
        return own.gather(2, positions.clamp_min(0))

    def _decay(self, factor: ForgettingFactor, positions: torch.Tensor) -> float | torch.Tensor:
        """A number, [Hkv, 1], or the factor of each key's token class [B, Hkv, keys]."""
        if isinstance(factor, Mapping):
            other = factor.get("other", 1.0)
            own = [[factor.get(c, other) for c in text] for text in self._token_classes]
            by_position = torch.tensor(own, device=positions.device)[:, None].expand(*positions.shape[:2], -1)
            return by_position.gather(2, positions.clamp_min(0))
        if isinstance(factor, tuple):
            return torch.tensor(factor, device=positions.device)[:, None]
        return factor

    def _noise(self, layer: int, positions: torch.Tensor, seed: int) -> torch.Tensor:
        """A uniform score per key that depends on seed, layer, head and position alone."""
        table = np.stack(
            [
                np.random.Generator(np.random.Philox(key=[seed, layer * 4096 + head])).random(self._n_tokens)
                for head in range(positions.shape[1])
            ]
        )
        by_position = torch.from_numpy(table).to(positions.device, torch.float32).expand(len(positions), -1, -1)
        return by_position.gather(2, positions.clamp_min(0))


def re_rotated(q: torch.Tensor, start: int, budget: Budget, model: Model) -> torch.Tensor:
    """Queries as the sinks see them: at most `budget` positions away, as if the gap in the cache were closed."""
    frequencies = model.rotary_frequencies().to(q.device, torch.float32)
    position = torch.arange(start, start + q.shape[2], device=q.device)
    limits = torch.tensor(limits_of(budget, 1), device=q.device)  # of all heads, or of each KV head
    if len(limits) > 1:
        limits = limits.repeat_interleave(q.shape[1] // len(limits))
    back = position.minimum(limits[:, None]) - position  # [1 or H, Tq], ≤ 0
    angle = back[..., None].float() * frequencies
    cos, sin = torch.cat([angle.cos()] * 2, -1).to(q.dtype), torch.cat([angle.sin()] * 2, -1).to(q.dtype)
    turning = q[..., : cos.shape[-1]]
    first, second = turning.chunk(2, dim=-1)
    turned = turning * cos + torch.cat([-second, first], dim=-1) * sin
    return torch.cat([turned, q[..., cos.shape[-1] :]], dim=-1)


def _grouped_attention(call: AttentionCall) -> torch.Tensor:
    """One query's attention with the query heads of a KV head as rows: two thirds of the time of enable_gqa on a CPU."""
    rows: Any = call.q.reshape(*call.k.shape[:2], -1, call.q.shape[3])
    return scaled_dot_product_attention(rows, call.k, call.v, scale=call.scale).reshape(*call.q.shape[:3], -1)


def _norms(v: torch.Tensor) -> torch.Tensor:
    return v.float().norm(dim=-1)

"""What follows a pipeline through a forward: the gate and the eviction rule of every layer, and their record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sparselens_kernels import LATE, NEVER, evict_scan, flash_column_score, gate_drops
from torch.nn.functional import scaled_dot_product_attention

from sparsity_core.kinds import DENSE, EvictionMethod, ForgettingFactor, LayerShape, PrefillRule, ScanRule
from sparsity_core.models import AttentionCall, Enough, attention_input

if TYPE_CHECKING:
    from sparsity_core.attention.reading import Reading
    from sparsity_core.kinds import Gate
    from sparsity_core.models import Model


UNLIMITED = NEVER  # a budget that no text reaches


@dataclass
class LayerState:
    """What one layer remembers: the cache's keys by position, and the record of what left it. [1, Hkv, …] each."""

    rule: ScanRule | PrefillRule
    positions: torch.Tensor  # int64 [1, Hkv, kept]
    score: torch.Tensor  # [1, Hkv, kept]
    evicted_at: torch.Tensor  # int32 [1, Hkv, T]
    threshold: torch.Tensor  # float32 [1, Hkv, T]
    steps: list[int]  # [S]: queries after which the scores are copied
    snapshots: torch.Tensor  # float32 [1, Hkv, S, T]
    gone_at: torch.Tensor  # int32 [T]: the first query that no head sees the key at, by the gate or a user's rule
    gate_keys: torch.Tensor  # float16 [1, held, r]: the gate's side of the keys that it has not dropped
    gate_positions: torch.Tensor  # int64 [held]

    @property
    def evicts(self) -> bool:
        """Whether heads may come to hold different keys."""
        later = self.rule.then.budget if isinstance(self.rule, PrefillRule) else None
        return self.rule.budget is not None or later is not None


def layer_rules(model: Model, method: EvictionMethod | None, seed: int = 0) -> list[ScanRule | PrefillRule]:
    """The rule of each layer. Raises ValueError where a layer's budget cannot hold what the method protects."""
    arch = model.arch
    shapes = [LayerShape(i, arch.n_layers, arch.n_kv_heads, seed) for i in range(arch.n_layers)]
    return [DENSE if method is None else method.rule(shape) for shape in shapes]


def cuts_once(rules: Sequence[ScanRule | PrefillRule]) -> bool:
    """Whether any layer drops at one cut, when the prefill ends."""
    return any(isinstance(rule, PrefillRule) and rule.budget is not None for rule in rules)


class Recorder:
    """Runs one eviction rule per layer and keeps what it did, in O(L · Hkv · T) memory.

    The driver sets `start`, the position of the forward's first query. With `cache`, a transformers DynamicCache, what
    a rule drops leaves the cache at once; without it the drop is simulated inside one forward over the whole text. What of
    the rest each query reads is `reading`'s.
    """

    def __init__(
        self,
        model: Model,
        method: EvictionMethod | None,
        *,
        n_tokens: int,
        n_prefill: int,
        token_classes: Sequence[str],
        snapshot_steps: Sequence[int] = (),
        seed: int = 0,
        cache: Any = None,
        reading: Reading | None = None,
        gate: Gate | None = None,
        threshold: float = 0.0,
        protected: np.ndarray | None = None,
        dropped: np.ndarray | None = None,
        only_layer: int | None = None,
        on_layer: Callable[[int], None] = lambda layer: None,
    ) -> None:
        arch = model.arch
        self.model, self.n_tokens, self.n_prefill, self.cache = model, n_tokens, n_prefill, cache
        self.token_classes = token_classes
        self.snapshot_steps = list(snapshot_steps)
        self.only_layer, self.on_layer = only_layer, on_layer
        self.start = 0
        self.reading = reading
        self.calls = [0] * arch.n_layers
        self.backends: set[str] = set()
        self.rules = layer_rules(model, method, seed)
        self.gate, self._threshold = gate, threshold
        self._protected = None if protected is None else torch.from_numpy(protected)  # bool [T]
        self._dropped = None if dropped is None else torch.from_numpy(dropped)  # bool [T]
        self._check_room()
        self._states: dict[int, LayerState] = {}
        self._left: dict[int, torch.Tensor] = {}  # what this forward's evictions left of a layer's cache

    def attend(self, call: AttentionCall) -> torch.Tensor:
        layer, q, k, v, own = call.layer, call.q, call.k, call.v, call.how
        if q.shape[0] != 1:
            raise ValueError(f"a recorder follows one text at a time; got a batch of {q.shape[0]}")
        self.on_layer(layer)
        self.calls[layer] += 1
        state = self._state(layer, k)
        if self.reading is not None:
            out = self.reading.from_host(layer, self.start, q, k, v, own)
            if out is not None:
                return out
        if self.gate is not None:
            k, v = self._pass_gate(layer, state, k, v, q.shape[2])
        before = state.positions
        out = self._follow(layer, q, k, v, own)
        if self.reading is not None:
            step = self.cache is not None and q.shape[2] == 1
            hidden = partial(self._hidden_in_cache, layer) if step else None
            out = self.reading.attend(
                layer, self.start, out, q, k, v, own, before=before, until=state.evicted_at[0], hidden=hidden
            )
            left = self._left.pop(layer, None)
            if left is not None:
                self.reading.keep(layer, left)
        if layer == self.only_layer:
            raise Enough
        return out

    def _follow(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, own: dict[str, Any]
    ) -> torch.Tensor:
        state = self._state(layer, k)
        if isinstance(state.rule, ScanRule):
            return self._scan(layer, state, state.rule, q, k, v, self.start, own)
        n_first = max(0, min(q.shape[2], self.n_prefill - self.start))
        if n_first == 0:
            return self._scan(layer, state, state.rule.then, q, k, v, self.start, own)
        first = self._prefill(layer, state, state.rule, q[:, :, :n_first], k[:, :, :n_first], v[:, :, :n_first], own)
        if n_first == q.shape[2]:
            return first
        k_rest = torch.cat([_take(k, state.positions), k[:, :, n_first:]], dim=2)
        v_rest = torch.cat([_take(v, state.positions), v[:, :, n_first:]], dim=2)
        rest = self._scan(layer, state, state.rule.then, q[:, :, n_first:], k_rest, v_rest, self.start + n_first, own)
        return torch.cat([first, rest], dim=2)

    def _check_room(self) -> None:
        """Raises ValueError where a layer's budget cannot hold what the user's rules protect."""
        if self._protected is None:
            return
        for layer, rule in enumerate(self.rules):
            mine = int(self._protected[rule.n_sink :].sum())
            if rule.budget is not None and mine and mine + rule.n_sink + 1 > rule.budget:
                raise ValueError(
                    f"protect names {mine} tokens, which with {rule.n_sink} sinks and the newest token do not fit the budget "
                    f"of {rule.budget} in layer {layer}: raise the budget or protect fewer"
                )

    def _pass_gate(
        self, layer: int, state: LayerState, k: torch.Tensor, v: torch.Tensor, n: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Lets the layer's new tokens drop earlier ones; returns k and v without what a decode step has just dropped."""
        assert self.gate is not None
        gate_q, gate_k = self.gate.project(layer, attention_input(layer))
        new = torch.arange(self.start, self.start + n, device=k.device)
        at = torch.cat([state.gate_positions, new])
        keys = torch.cat([state.gate_keys, gate_k.half()], dim=1)  # rounded alike for every query
        bias = float(self.gate.bias[layer]) - self._threshold
        dropped_at = gate_drops(gate_q.float(), keys.float(), bias=bias, start=self.start)[0]
        if self._protected is not None:
            dropped_at = dropped_at.masked_fill(self._protected.to(at.device)[at], NEVER)
        if self.gate.propagate_in_depth and layer:
            dropped_at = dropped_at.minimum(self._states[layer - 1].gone_at[at])
        if self._dropped is not None:
            dropped_at = dropped_at.minimum(state.gone_at[at])
        going = dropped_at != NEVER
        some_go = bool(going.any())
        if some_go:
            gone, left = at[going], ~going
            state.gone_at[gone] = dropped_at[going]
            state.evicted_at[..., gone] = state.evicted_at[..., gone].minimum(dropped_at[going])
            keys, at = keys[:, left], at[left]
        state.gate_keys, state.gate_positions = keys, at
        if some_go and self.cache is not None and n == 1 and not state.evicts:
            columns = (state.gone_at[state.positions[0, 0]] == NEVER).nonzero()[:, 0]
            if len(columns) < state.positions.shape[2]:
                held = torch.cat([columns, columns.new_full((1,), k.shape[2] - 1)])
                self._shrink(layer, k, v, held.expand(1, k.shape[1], -1))
                self._left.pop(layer)
                if self.reading is not None:
                    self.reading.keep(layer, columns.expand(1, k.shape[1], -1))
                state.positions, state.score = state.positions[..., columns], state.score[..., columns]
                k, v = self.cache.layers[layer].keys, self.cache.layers[layer].values
        return k, v

    def _hidden_in_cache(self, layer: int, positions: torch.Tensor, window: int | None) -> torch.Tensor | None:
        """bool [Hkv, Tk]: what the query at `start` may not look at though it has a slot of the cache; None where it sees all.

        `positions` [Hkv, Tk] are the keys' own in the text.
        """
        state = self._states[layer]
        waits = state.evicts and (self.gate is not None or self._dropped is not None)
        if window is None and not waits:
            return None
        hidden = state.gone_at[positions] <= self.start
        return hidden if window is None else hidden | (positions <= self.start - window)

    @property
    def index_bytes(self) -> int:
        """What the gate and the decode stage hold beside the cache; where drops are simulated, of the keys that are left."""
        found = sum(state.gate_keys.nbytes for state in self._states.values())
        for layer, state in self._states.items():
            own = 0 if self.reading is None else self.reading.nbytes(layer)
            kept, all_keys = state.positions.numel(), state.positions.shape[1] * self.n_tokens
            found += own if self.cache is not None else own * kept // all_keys
        return found

    def _prefill(
        self,
        layer: int,
        state: LayerState,
        rule: PrefillRule,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        own: dict[str, Any],
    ) -> torch.Tensor:
        n = q.shape[2]
        slots = [i for i, step in enumerate(state.steps) if step < n]
        until = self._until(state, _range(k))
        result = flash_column_score(
            q,
            k,
            v,
            until=until,
            decay=self._decay(rule.decay, _range(k)),
            first_query=0 if rule.queries is None else max(0, n - rule.queries),
            reduction=rule.reduction,
            weight=_norms(v) if rule.value_norm else None,
            snapshot_steps=[state.steps[i] for i in slots],
            **own,
        )
        self.backends.add(result.backend)
        state.snapshots[:, :, slots, :n] = result.snapshots.float()
        score = result.score
        if until is not None:
            state.evicted_at[..., :n] = until
        if rule.budget is None or rule.budget >= n:
            state.positions, state.score = _range(k), score
            self._compact(layer, state, k, v, n)
            return result.out
        votes = score.clone()
        if rule.pool > 1:  # the votes for the keys before the window, to which the window's own do not count
            votes[..., n - rule.recent :] = 0.0
            votes = torch.nn.functional.avg_pool1d(votes, rule.pool, stride=1, padding=rule.pool // 2)
            votes[..., n - rule.recent :] = score[..., n - rule.recent :]
        ranked = votes.clone()
        # Above every vote and below what is protected, the oldest first to go where there is no room for all.
        ranked[..., n - rule.recent :] = LATE * (1 + torch.arange(rule.recent, device=k.device) / n)
        ranked[..., : rule.n_sink] = float("inf")
        if self._protected is not None:
            ranked[..., self._protected[:n].to(ranked.device)] = float("inf")
        if until is not None:
            ranked.masked_fill_(until < n, float("-inf"))  # but not what a later query will drop
        kept = ranked.topk(rule.budget, dim=2).indices.sort(dim=2).values
        dropped = torch.ones(ranked.shape, dtype=torch.bool, device=ranked.device).scatter_(2, kept, False)
        state.evicted_at[..., :n] = torch.where(dropped, n, NEVER).int().minimum(state.evicted_at[..., :n])
        for i in slots:
            if state.steps[i] == n - 1:
                state.snapshots[:, :, i, :n] = votes.float().masked_fill(dropped, float("nan"))
        lowest = ranked.masked_fill(~dropped, float("-inf")).amax(dim=2).float()
        state.threshold[..., n - 1] = lowest.masked_fill(lowest.isinf() | (lowest >= LATE), float("nan"))
        state.positions, state.score = kept, score.gather(2, kept)
        self._shrink(layer, k, v, kept)
        return result.out

    def _scan(
        self,
        layer: int,
        state: LayerState,
        rule: ScanRule,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        start: int,
        own: dict[str, Any],
    ) -> torch.Tensor:
        n, end = q.shape[2], start + q.shape[2]
        new = torch.arange(start, end, device=k.device).expand(1, k.shape[1], n)
        positions = torch.cat([state.positions, new], dim=2)
        plain = rule.budget is None and own["softcap"] is None and own["window"] is None
        if n == 1 and plain and not state.steps and not state.evicts and self.cache is not None:
            # Nothing is scored or cut, and what is hidden has left the cache: the model's own attention is all.
            state.positions, state.score = positions, torch.zeros_like(positions, dtype=state.score.dtype)
            if self._dropped is not None:  # what a gate drops has left before its query looked
                self._compact(layer, state, k, v, end)
            # The query heads of a KV head as so many rows: two thirds of the time of enable_gqa on a CPU.
            rows = q.reshape(1, k.shape[1], -1, q.shape[3])
            return scaled_dot_product_attention(rows, k, v, scale=own["scale"]).reshape(*q.shape[:3], -1)
        slots = [i for i, step in enumerate(state.steps) if start <= step < end]
        until = self._until(state, positions)
        result = evict_scan(
            q,
            k,
            v,
            until=until,
            protected=None if self._protected is None else self._protected.to(k.device)[positions],
            budget=rule.budget or UNLIMITED,
            decay=self._decay(rule.decay, positions),
            n_sink=rule.n_sink,
            recent=rule.recent,
            scored=rule.scored,
            weight=_norms(v) if rule.value_norm else None,
            initial=0.0 if rule.noise is None else self._noise(layer, positions, rule.noise),
            reduction=rule.reduction,
            sink_q=self._re_rotated(q, start, rule) if rule.re_rotate else None,
            positions=state.positions,
            score=state.score,
            start=start,
            snapshot_steps=[state.steps[i] - start for i in slots],
            **own,
        )
        self.backends.add(result.backend)
        alive = result.evicted_at == NEVER
        evicted_at = result.evicted_at if until is None else result.evicted_at.minimum(until)
        state.evicted_at.scatter_(2, positions, evicted_at)
        state.threshold[..., start:end] = result.threshold.float()
        for i, slot in enumerate(slots):
            state.snapshots[:, :, slot].scatter_(2, positions, result.snapshots[:, :, i].float())
        n_alive = min(positions.shape[2], rule.budget or UNLIMITED)
        state.positions = positions[alive].view(1, -1, n_alive)
        state.score = result.score[alive].view(1, -1, n_alive)
        if n_alive < positions.shape[2]:
            self._shrink(layer, k, v, alive.nonzero()[:, 2].view(1, -1, n_alive))
        elif rule.budget is None:
            self._compact(layer, state, k, v, end)
        return result.out

    def _until(self, state: LayerState, positions: torch.Tensor) -> torch.Tensor | None:
        """int32 [1, Hkv, keys]: from which query on the keys at these positions are hidden; None where none is."""
        return None if self.gate is None and self._dropped is None else state.gone_at[positions]

    def _compact(self, layer: int, state: LayerState, k: torch.Tensor, v: torch.Tensor, end: int) -> None:
        """Takes out of the cache what query `end` would not see, where all heads hold the same keys.

        Under an eviction method those slots wait for it to use them again.
        """
        if state.evicts or (self.gate is None and self._dropped is None):
            return
        held = state.gone_at[state.positions[0, 0]] > end
        if not bool(held.all()):
            state.positions, state.score = state.positions[..., held], state.score[..., held]
            self._shrink(layer, k, v, held.nonzero()[:, 0].expand(1, k.shape[1], -1))

    def _shrink(self, layer: int, k: torch.Tensor, v: torch.Tensor, columns: torch.Tensor) -> None:
        """Leaves only `columns` [1, Hkv, kept] of this layer in the cache."""
        if self.cache is not None:
            if self.cache.layers[layer].keys.shape != k.shape:
                raise ValueError(
                    f"{self.model.name} caches compressed keys, which cannot be evicted: use run, not generate"
                )
            self._left[layer] = columns
            self.cache.layers[layer].keys = _take(k, columns)
            self.cache.layers[layer].values = _take(v, columns)

    def _state(self, layer: int, k: torch.Tensor) -> LayerState:
        if layer not in self._states:
            # On a CPU all at once, before the forward: lying between its large blocks they would split the room these leave.
            for i in range(len(self.rules)) if k.device.type == "cpu" else [layer]:
                self._states[i] = self._new_state(i, k.shape[1], k.device)
        return self._states[layer]

    def _new_state(self, layer: int, heads: int, device: torch.device) -> LayerState:
        steps = self.snapshot_steps if self.only_layer in (None, layer) else []
        rank = 0 if self.gate is None else self.gate.rank
        state = LayerState(
            rule=self.rules[layer],
            positions=torch.empty(1, heads, 0, dtype=torch.int64, device=device),
            score=torch.empty(1, heads, 0, device=device),
            evicted_at=torch.full((1, heads, self.n_tokens), NEVER, dtype=torch.int32, device=device),
            threshold=torch.full((1, heads, self.n_tokens), float("nan"), device=device),
            steps=steps,
            snapshots=torch.full((1, heads, len(steps), self.n_tokens), float("nan"), device=device),
            gone_at=torch.full((self.n_tokens,), NEVER, dtype=torch.int32, device=device),
            gate_keys=torch.empty(1, 0, rank, dtype=torch.float16, device=device),
            gate_positions=torch.empty(0, dtype=torch.int64, device=device),
        )
        if self._dropped is not None:
            forced = self._dropped.to(device).nonzero()[:, 0]
            state.gone_at[forced] = forced.int() + 1
        return state

    def _decay(self, factor: ForgettingFactor, positions: torch.Tensor) -> float | torch.Tensor:
        """A number, [Hkv, 1], or the factor of each key's token class [1, Hkv, keys]."""
        if isinstance(factor, Mapping):
            other = factor.get("other", 1.0)
            by_position = torch.tensor([factor.get(c, other) for c in self.token_classes], device=positions.device)
            return by_position[positions]
        if isinstance(factor, tuple):
            return torch.tensor(factor, device=positions.device)[:, None]
        return factor

    def _noise(self, layer: int, positions: torch.Tensor, seed: int) -> torch.Tensor:
        """A uniform score per key that depends on seed, layer, head and position alone."""
        table = np.stack(
            [
                np.random.Generator(np.random.Philox(key=[seed, layer * 4096 + head])).random(self.n_tokens)
                for head in range(positions.shape[1])
            ]
        )
        return torch.from_numpy(table).to(positions.device, torch.float32)[None].gather(2, positions)

    def _re_rotated(self, q: torch.Tensor, start: int, rule: ScanRule) -> torch.Tensor:
        """Queries as the sinks see them: at most `budget` positions away, as if the gap in the cache were closed."""
        frequencies = self.model.rotary_frequencies().to(q.device, torch.float32)
        position = torch.arange(start, start + q.shape[2], device=q.device)
        back = position.clamp(max=rule.budget or UNLIMITED) - position  # ≤ 0
        angle = back[:, None].float() * frequencies
        cos, sin = torch.cat([angle.cos()] * 2, -1).to(q.dtype), torch.cat([angle.sin()] * 2, -1).to(q.dtype)
        turning = q[..., : cos.shape[-1]]
        first, second = turning.chunk(2, dim=-1)
        turned = turning * cos + torch.cat([-second, first], dim=-1) * sin
        return torch.cat([turned, q[..., cos.shape[-1] :]], dim=-1)

    def check_fired(self, forwards: int) -> None:
        """Raises RuntimeError where a layer's attention did not go through the hook in each of the forwards."""
        silent = [layer for layer, calls in enumerate(self.calls) if calls != forwards]
        if silent:
            raise RuntimeError(f"the recording hook did not fire once per forward in layers {silent}")

    def evicted_at(self, n: int) -> np.ndarray:
        """int32 [L, Hkv, n]; n where never."""
        return self._stacked("evicted_at")[..., :n].clip(max=n).astype(np.int32)

    def gated_at(self, n: int) -> np.ndarray:
        """int32 [L, n]: the query whose gate dropped each key; n where none did. Empty without a gate."""
        if self.gate is None:
            return np.zeros((0, 0), np.int32)
        found = np.stack([self._states[i].gone_at.cpu().numpy()[:n] for i in range(len(self.rules))])
        return (found if self._dropped is None else np.where(self._dropped.numpy()[:n], n, found)).clip(max=n)

    def protected(self, n: int) -> np.ndarray:
        """bool [n]: what the user's rules keep; empty without such rules."""
        return np.zeros(0, bool) if self._protected is None else self._protected.numpy()[:n]

    def n_cached(self) -> int:
        """Keys that the cache holds after the last query, over all layers and KV heads."""
        return sum(state.positions.numel() for state in self._states.values())

    def threshold(self, n: int) -> np.ndarray:
        """float32 [L, Hkv, n]: the score at which each query dropped a key; nan where it dropped none."""
        return self._stacked("threshold")[..., :n]

    def snapshots(self, n: int) -> np.ndarray:
        """float32 [L, Hkv, S, n]."""
        return np.stack([self.layer_snapshots(i) for i in range(len(self.rules))])[..., :n]

    def layer_snapshots(self, layer: int) -> np.ndarray:
        """float32 [Hkv, S, T] of one layer; nan where a key is not seen, by its own state or since a gate or rule hides it."""
        state = self._states[layer]
        steps = torch.tensor(state.steps, device=state.gone_at.device)
        hidden = state.gone_at <= steps[:, None]
        return state.snapshots[0].masked_fill(hidden, float("nan")).cpu().numpy()

    def _stacked(self, name: str) -> np.ndarray:
        return np.stack([getattr(self._states[i], name)[0].cpu().numpy() for i in range(len(self.rules))])


def _take(x: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """x [1, Hkv, keys, D] at columns [1, Hkv, n]; whole rows are copied, which takes a fifth of the time of `gather`."""
    n_kv, n_keys, dim = x.shape[1:]
    rows = columns[0] + n_keys * torch.arange(n_kv, device=x.device)[:, None]
    return x.reshape(n_kv * n_keys, dim).index_select(0, rows.flatten()).view(1, n_kv, -1, dim)


def _range(k: torch.Tensor) -> torch.Tensor:
    return torch.arange(k.shape[2], device=k.device).expand(1, k.shape[1], k.shape[2])


def _norms(v: torch.Tensor) -> torch.Tensor:
    return v.float().norm(dim=-1)

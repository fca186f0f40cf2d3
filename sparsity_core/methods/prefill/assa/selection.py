"""ASSA's choice of keys: importance by probes, a budget for each segment, and the mask of both."""

from __future__ import annotations

from functools import partial

import torch
from sparselens_kernels import BlockColumns, Columns, KeyMask, Window

from sparsity_core.attention import probing_flops
from sparsity_core.kinds import PromptView
from sparsity_core.methods.prefill.assa.choice import Repeats, clusters_of, kept_keys, means_of_repeats
from sparsity_core.methods.prefill.assa.knobs import Knobs
from sparsity_core.methods.prefill.assa.parts import Parts
from sparsity_core.methods.prefill.assa.probes import Correction, Probes, low_rank, mean_value


class Selection:
    """What one layer's keys are judged by."""

    def __init__(self, knobs: Knobs, view: PromptView) -> None:
        self._knobs, self._view = knobs, view
        self.n_kv, self.n = len(view.k), view.n_tokens
        self.window = Window(knobs.window, knobs.window)  # whole stretches, which gathering keys reads anyway
        self.parts = Parts.of(view.texts, self.n, knobs.block, knobs.segment, view.k.device)
        self.probes = Probes.of(view, knobs.block, knobs.probes)
        self._importance = self.probes.importance(self.n_kv)
        self._clusters = None if knobs.samplers == "attention" else clusters_of(view.k)
        self._repeats = None if knobs.repeated == "all" else Repeats.of(view.k)
        # Keys [Hkv, T, D] and values [Hkv, T, Dv] that are read in place of the layer's own.
        self.instead = means_of_repeats(view.k, view.v) if knobs.repeated == "mean" else None

    def flops(self) -> int:
        """Spent on the probes and on looking for repeats, over all heads."""
        found = probing_flops(self._view, self.probes.pairs)
        if self._repeats is not None:
            found += self.n_kv * self.n**2 * self._view.k.shape[2]
        if self.instead is not None:
            found += self.n_kv * self.n**2 * sum(x.shape[2] for x in self.instead)
        return found

    def kept(self, n: int) -> torch.Tensor:
        """bool [Hkv, n]: what is kept of the first n keys, judged by the probes among them."""
        probes, parts = self.probes.before(n), self.parts.before(n)
        clusters = None if self._clusters is None else self._clusters[:, :n]
        sinks = torch.arange(n, device=probes.at.device) < self._knobs.n_sink
        importance = self._importance[:, len(probes.at) - 1, :n]
        if self._repeats is not None:
            importance = importance.masked_fill(~self._repeats.newest(n), -1.0)
        found = kept_keys(self._knobs, importance, clusters, parts) | sinks
        for _ in range(self._knobs.rescored):
            again = probes.importance(self.n_kv, seen_by=found[:, None] | probes.near(self.window))[:, -1]
            found = kept_keys(self._knobs, again, clusters, parts) | sinks
        return found

    def correction(self, n: int, kept: torch.Tensor) -> Correction:
        """What stands in for the keys before n that are left out."""
        probes, v = self.probes.before(n), self._view.v[:, :n]
        if self._knobs.compensation == "mean":
            return mean_value(probes, kept, self.window, v)
        return low_rank(probes, kept, self.window, self._view.q, v)


def select(knobs: Knobs, view: PromptView) -> KeyMask:
    """The mask of one layer: what each block of queries sees, per KV head, beside the window."""
    found, n, block = Selection(knobs, view), view.n_tokens, knobs.block
    if knobs.look_ahead:
        own = found.kept(n)
        some = Columns(own, own if knobs.queries == "selected" else None)
        sinks = Columns((torch.arange(n, device=own.device) < knobs.n_sink)[None])
        return KeyMask([found.window, some, sinks], found.n_kv, n, found.flops(), instead=found.instead)
    kept = torch.zeros(found.n_kv, -(-n // block), n, dtype=torch.bool, device=view.k.device)
    kept[:, 0, : min(block, n)] = True  # nothing has scored the first block, which stays dense
    corrections = []
    for i, start in enumerate(range(block, n, block), 1):
        kept[:, i, :start] = own = found.kept(start)
        if knobs.compensation != "none":
            corrections.append(found.correction(start, own))
    correct = partial(_corrected, corrections, block, view.q) if corrections else None
    return KeyMask([found.window, BlockColumns(kept, block)], found.n_kv, n, found.flops(), correct, found.instead)


def _corrected(corrections: list[Correction], block: int, q: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """out [H, T, Dv] of queries q [H, T, D], each block of them but the first by its own correction."""
    out = out.clone()
    for i, correct in enumerate(corrections, 1):
        own = slice(i * block, (i + 1) * block)
        out[:, own] = correct(q[:, own], out[:, own].float()).to(out.dtype)
    return out

"""What a pipeline costs against the dense model, computed inside one dense forward pass.

With P the dense probabilities of a layer and keep[q, k] = k ≤ q < evicted_at[k]:

    regret[h, q] = Σ_k P[h, q, k] · (1 − keep[q, k])           the attention that evicted keys would have had
    ideal[q]     = the keys of largest Σ_g P[g, q, k], as many as are kept at q
    coverage     = Σ_k P[h, q, k] · mask[q, k]                 of a prefill stage
    top[q]       = the fewest keys whose P[h, q, k] add up to 95 %
    top recall and precision = |mask ∩ top| / |top| and / |mask|
    recall       = |keep ∩ ideal| / |ideal|
    cosine       = ⟨P·keep, P·ideal⟩ / (‖P·keep‖ ‖P·ideal‖)

The masks have equal size, so their plain cosine is the recall; the weighted one is what falls when a key that matters,
such as a sink, is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from sparselens_kernels import KeyMask, causal_rows

from sparsity_core.attention.probing import smallest_set
from sparsity_core.models import AttentionCall

_PROBES = 256
_TOP, _TOP_PROBES = 0.95, 32  # the attention that the top keys hold; probes at which they are sorted out


def probe_steps(n_tokens: int) -> np.ndarray:
    """int32 [P]: every query of a short text, evenly spaced ones of a long text, the last among them."""
    if n_tokens <= _PROBES:
        return np.arange(n_tokens, dtype=np.int32)
    return np.unique(np.linspace(0, n_tokens - 1, _PROBES).round().astype(np.int32))


class AgainstDense:
    """A recorder of the dense pass that compares each layer with what a pipeline evicted there."""

    def __init__(
        self,
        evicted_at: np.ndarray,  # int32 [L, Hkv, T]
        n_heads: int,
        on_layer: Callable[[int], None] = lambda layer: None,
        masks: Mapping[int, KeyMask] | None = None,
    ) -> None:
        n_layers, n_kv, n_tokens = evicted_at.shape
        self.steps = probe_steps(n_tokens)
        self.regret = np.zeros((n_layers, n_heads, n_tokens), np.float32)
        self.recall = np.ones((n_layers, n_kv, len(self.steps)), np.float32)
        self.cosine = np.ones_like(self.recall)
        self.mass = np.ones_like(self.recall)
        self.top_recall = np.full((n_layers, n_heads, len(self.steps)) if masks else (0, 0, 0), np.nan, np.float32)
        self.top_precision = self.top_recall.copy()
        self._top_probes = np.unique(np.linspace(0, len(self.steps) - 1, _TOP_PROBES).round().astype(int))
        self._evicted_at, self._on_layer, self._masks = evicted_at, on_layer, masks or {}
        self.coverage = np.full(self.regret.shape if self._masks else (0, 0, 0), np.nan, np.float32)

    def attend(self, call: AttentionCall) -> torch.Tensor:
        q, k, v, layer = call.q, call.k, call.v, call.layer
        self._on_layer(layer)
        out = q.new_empty(*q.shape[:3], v.shape[3])
        evicted_at = torch.tensor(self._evicted_at[layer], device=q.device)
        dropped_here = bool((evicted_at < evicted_at.shape[1]).any())
        group, mask = q.shape[1] // k.shape[1], self._masks.get(layer)
        key = torch.arange(call.n_keys, device=q.device)
        for tile in causal_rows(q, k, **call.how):
            heads, start, end = tile.heads, tile.start, tile.end
            own = slice(heads.start * group, heads.stop * group)
            out[:, own, start:end] = tile.attend(v)
            if dropped_here:
                self._compare(layer, heads, own, start, end, tile.probabilities()[0], evicted_at[heads, :end])
            if mask is not None and start < mask.n_tokens:
                last = min(end, mask.n_tokens)
                shown = mask.grouped(mask.rows(start, last, key), k.shape[1], heads)
                p = tile.probabilities()[0, :, :, : last - start, :last]
                self.coverage[layer, own, start:last] = (p * shown).sum(-1).flatten(0, 1).cpu().numpy()
                self._find_top(layer, own, start, last, p, shown)
        return out

    def _find_top(self, layer: int, heads: slice, start: int, end: int, p: torch.Tensor, shown: torch.Tensor) -> None:
        """p and shown [KV heads, G, R, C] of the prompt's queries start … end − 1."""
        where = self._top_probes[(self.steps[self._top_probes] >= start) & (self.steps[self._top_probes] < end)]
        if not where.size:
            return
        rows = torch.from_numpy(self.steps[where] - start).to(p.device)
        dense, seen = p[:, :, rows], shown.expand_as(p)[:, :, rows]
        causal = torch.arange(p.shape[-1], device=p.device) <= rows[:, None] + start
        top, seen = smallest_set(dense, _TOP), seen & causal
        both = (top & seen).sum(-1)
        for found, of in ((self.top_recall, top), (self.top_precision, seen)):
            found[layer, heads][:, where] = (both / of.sum(-1)).flatten(0, 1).cpu().numpy()

    def _compare(
        self, layer: int, kv: slice, heads: slice, start: int, end: int, p: torch.Tensor, evicted_at: torch.Tensor
    ) -> None:
        """p [KV heads, G, R, C] against evicted_at [KV heads, C]."""
        query = torch.arange(start, end, device=p.device)
        keep = query[:, None] < evicted_at[:, None, :]  # the columns above the diagonal have no mass
        lost = (p * ~keep[:, None]).sum(-1)
        self.regret[layer, heads, start:end] = lost.reshape(-1, end - start).cpu().numpy()
        where = np.flatnonzero((self.steps >= start) & (self.steps < end))
        if not where.size:
            return
        rows = torch.from_numpy(self.steps[where] - start).to(p.device)
        dense = p[:, :, rows].sum(1)  # [Hkv, probes, C]
        mass = dense / dense.sum(-1, keepdim=True)
        causal = torch.arange(p.shape[-1], device=p.device) <= query[rows][:, None]
        kept = keep[:, rows] & causal
        n_kept = kept.sum(-1, keepdim=True)
        order = mass.masked_fill(~causal, -1.0).sort(dim=-1, descending=True)
        rank = torch.arange(p.shape[-1], device=p.device)
        ideal = torch.zeros_like(kept).scatter_(-1, order.indices, rank < n_kept)
        both = kept & ideal
        square = mass.square()
        norm = ((square * kept).sum(-1) * (square * ideal).sum(-1)).sqrt()
        self.recall[layer, kv][:, where] = (both.sum(-1) / n_kept[..., 0]).cpu().numpy()
        self.cosine[layer, kv][:, where] = ((square * both).sum(-1) / norm.clamp_min(1e-30)).cpu().numpy()
        self.mass[layer, kv][:, where] = (mass * ideal).sum(-1).cpu().numpy()

"""ASSA's choice of keys: importance by probes, a budget for each segment, and the mask of both."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

import torch
from sparselens_kernels import BlockColumns, Columns, KeyMask, Window

from sparsity_core.attention import probabilities, probing_flops
from sparsity_core.kinds import PromptView

_ENDS = re.compile(r"[.!?。！？]\s*$|\n")  # of a token that ends a sentence


class Knobs(Protocol):
    """The numbers of `ASSA` that its choice is made by."""

    @property
    def coverage(self) -> float: ...
    @property
    def min_ratio(self) -> float: ...
    @property
    def max_ratio(self) -> float: ...
    @property
    def segment(self) -> str: ...
    @property
    def block(self) -> int: ...
    @property
    def probes(self) -> int: ...
    @property
    def window(self) -> int: ...
    @property
    def n_sink(self) -> int: ...
    @property
    def queries(self) -> str: ...
    @property
    def look_ahead(self) -> bool: ...


def select(knobs: Knobs, view: PromptView) -> KeyMask:
    """The mask of one layer: what each block of queries sees, per KV head, beside the window."""
    n, n_kv, block = view.n_tokens, view.k.shape[0], knobs.block
    segments = segments_of(view.texts, n, block, knobs.segment).to(view.k.device)
    total = torch.zeros(n_kv, n, device=view.k.device)
    seen = torch.zeros(n, device=view.k.device)  # probes that could see each key
    starts = range(0, n, block)
    kept = torch.zeros(n_kv, len(starts), n, dtype=torch.bool, device=view.k.device)
    pairs = 0
    for i, start in enumerate(starts):
        end = min(n, start + block)
        if start and not knobs.look_ahead:
            kept[:, i, :start] = chosen(total[:, :start] / seen[:start], segments[:start], knobs)
        probes = torch.arange(max(start, end - knobs.probes), end, device=view.k.device)
        rows = probabilities(_until(view, end), probes)  # [H, probes, end]
        total[:, :end] += rows.unflatten(0, (n_kv, -1)).sum((1, 2))
        seen[:end] += (torch.arange(end, device=seen.device) <= probes[:, None]).sum(0)
        pairs += len(probes) * end
    sinks = torch.arange(n, device=view.k.device) < knobs.n_sink
    if knobs.look_ahead:
        own = chosen(total / seen.clamp_min(1), segments, knobs) | sinks
        scoring = Columns(own, own if knobs.queries == "selected" else None)
        return KeyMask([Window(knobs.window), scoring, Columns(sinks[None])], n_kv, n, probing_flops(view, pairs))
    kept[:, 0, : min(block, n)] = True  # nothing has scored the first block, which stays dense
    terms = [Window(knobs.window), BlockColumns(kept | sinks, block)]
    return KeyMask(terms, n_kv, n, probing_flops(view, pairs))


def chosen(importance: torch.Tensor, segments: torch.Tensor, knobs: Knobs) -> torch.Tensor:
    """bool [Hkv, K]: of each segment the fewest keys that hold `coverage` of its importance [Hkv, K], within the ratios.

    `segments` int64 [K] ascend: the segment of each key.
    """
    sizes = torch.bincount(segments)
    place = torch.arange(len(segments), device=segments.device) - (sizes.cumsum(0) - sizes)[segments]
    table = importance.new_full((len(importance), len(sizes), int(sizes.max())), -1.0)  # a row for each segment
    table[:, segments, place] = importance
    ranked, order = table.sort(dim=2, descending=True, stable=True)
    held = ranked.clamp_min(0).cumsum(2)
    rank, size = torch.arange(table.shape[2], device=segments.device), sizes[:, None].double()
    keep = held - ranked < knobs.coverage * held[..., -1:] * (1 - 1e-6)
    keep &= rank < (knobs.max_ratio * size).ceil()
    keep |= rank < (knobs.min_ratio * size).ceil()
    return torch.zeros_like(keep).scatter_(2, order, keep)[:, segments, place]


def segments_of(texts: Sequence[str], n: int, block: int, by: str) -> torch.Tensor:
    """int64 [n]: the segment of each token, blocks of `block` tokens or sentences; numbered from 0 without gaps."""
    if by == "block":
        return torch.arange(n) // block
    ends = torch.tensor([bool(_ENDS.search(text)) for text in texts[:n]], dtype=torch.int64)
    return ends.cumsum(0) - ends


def _until(view: PromptView, end: int) -> PromptView:
    return PromptView(view.layer, view.q[:, :end], view.k[:, :end], view.v[:, :end], view.scale, view.texts[:end])

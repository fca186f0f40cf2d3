"""Which keys are kept, by their importance: a budget for each segment, the samplers' votes, and the hierarchy of parts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from sparsity_core.attention import smallest_set
from sparsity_core.methods.prefill.assa.knobs import Knobs
from sparsity_core.methods.prefill.assa.parts import Parts

_VOTES = (0.6, 0.2, 0.2)  # of attention, clusters and structure
_SAME = 0.95  # cosine above which keys repeat one another
_PLANES = 6  # a cluster is one of 2⁶ sides of as many planes


def kept_keys(knobs: Knobs, importance: torch.Tensor, clusters: torch.Tensor | None, parts: Parts) -> torch.Tensor:
    """bool [Hkv, K]: what ASSA keeps of keys whose importance is [Hkv, K]; `clusters` int64 [Hkv, K] where samplers ask."""
    if knobs.hierarchical:
        importance = within_parts(importance, parts, knobs.coverage)
    if knobs.samplers == "attention" or clusters is None:
        return chosen(importance, parts.segments, knobs.coverage, knobs.min_ratio, knobs.max_ratio)
    barred = importance < 0
    views = [importance, rarity(clusters), parts.marked.expand_as(importance) + 0.01]
    views = [view.masked_fill(barred, -1.0) for view in views]
    if knobs.samplers == "vote":
        mass = segment_sums(views[0], parts.segments)
        shares = [view / segment_sums(view, parts.segments).clamp_min(1e-30) for view in views]
        vote = sum(weight * share for weight, share in zip(_VOTES, shares, strict=True)) * mass
        return chosen(vote.masked_fill(barred, -1.0), parts.segments, knobs.coverage, knobs.min_ratio, knobs.max_ratio)
    limits = [knobs.max_ratio * weight for weight in _VOTES]  # a union within the same budget
    least = [min(knobs.min_ratio, limit) for limit in limits]
    picks = [
        chosen(view, parts.segments, knobs.coverage, low, high)
        for view, low, high in zip(views, least, limits, strict=True)
    ]
    return picks[0] | picks[1] | picks[2]


def chosen(
    importance: torch.Tensor, segments: torch.Tensor, coverage: float, min_ratio: float, max_ratio: float
) -> torch.Tensor:
    """bool [Hkv, K]: of each segment the fewest keys that hold `coverage` of its importance [Hkv, K], within the ratios.

    `segments` int64 [K] ascend: the segment of each key. Keys of negative importance are not kept.
    """
    sizes = torch.bincount(segments)
    place = torch.arange(len(segments), device=segments.device) - (sizes.cumsum(0) - sizes)[segments]
    table = importance.new_full((len(importance), len(sizes), int(sizes.max())), -1.0)  # a row for each segment
    table[:, segments, place] = importance
    ranked, order = table.sort(dim=2, descending=True, stable=True)
    mass = ranked.clamp_min(0)
    held = mass.cumsum(2)
    rank, size = torch.arange(table.shape[2], device=segments.device), sizes[:, None].double()
    keep = held - mass < coverage * held[..., -1:] * (1 - 1e-6)
    keep &= rank < (max_ratio * size).ceil()
    keep |= rank < (min_ratio * size).ceil()
    keep &= ranked >= 0
    return torch.zeros_like(keep).scatter_(2, order, keep)[:, segments, place]


def within_parts(importance: torch.Tensor, parts: Parts, coverage: float) -> torch.Tensor:
    """importance [Hkv, K], −1 outside the fewest paragraphs that hold `coverage` of it, and in them the fewest sentences."""
    for kind in (parts.paragraphs, parts.sentences):
        mass = importance.new_zeros(len(importance), int(kind.max()) + 1).index_add_(1, kind, importance.clamp_min(0))
        importance = importance.masked_fill(~smallest_set(mass, coverage)[:, kind], -1.0)
    return importance


def segment_sums(values: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
    """[Hkv, K]: the sum over each value's segment, of those that are not negative."""
    total = values.new_zeros(len(values), int(segments.max()) + 1).index_add_(1, segments, values.clamp_min(0))
    return total[:, segments]


def clusters_of(k: torch.Tensor) -> torch.Tensor:
    """int64 [Hkv, T]: the cluster of each key k [Hkv, T, D], by the sides of random planes that its direction lies on."""
    planes = torch.randn(k.shape[2], _PLANES, generator=torch.Generator().manual_seed(0)).to(k.device)
    return ((k.float() @ planes > 0) * 2 ** torch.arange(_PLANES, device=k.device)).sum(2)


def rarity(clusters: torch.Tensor) -> torch.Tensor:
    """[Hkv, K]: one over the number of keys in each key's cluster, so that every cluster counts alike."""
    ones = torch.ones(clusters.shape, device=clusters.device)
    size = ones.new_zeros(len(clusters), 2**_PLANES).scatter_add_(1, clusters, ones)
    return size.gather(1, clusters).reciprocal()


@dataclass(frozen=True, eq=False)
class Repeats:
    """Which keys k [Hkv, T, D] say nearly the same as earlier ones."""

    following: (
        torch.Tensor
    )  # int64 [Hkv, T]: the next later key that says nearly the same as each; T where there is none

    @classmethod
    def of(cls, k: torch.Tensor) -> Repeats:
        n = k.shape[1]
        found = torch.full(k.shape[:2], n, device=k.device)
        for start, alike in _alike(k):
            found[:, start : start + alike.shape[1]] = torch.where(alike.any(2), alike.int().argmax(2) + start, n)
        return cls(found)

    def newest(self, n: int) -> torch.Tensor:
        """bool [Hkv, n]: of the first n keys those that none of them repeats."""
        return self.following[:, :n] >= n


def means_of_repeats(k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean of each key k [Hkv, T, D] and the earlier ones that it repeats, and of their values v [Hkv, T, Dv]."""
    own = torch.cat([k, v], dim=2).to(torch.promote_types(k.dtype, torch.float32))
    sums, count = own.clone(), torch.ones(k.shape[:2], device=k.device)
    for start, alike in _alike(k):
        count[:, start:] += alike.sum(1)
        sums[:, start:] += alike.to(own.dtype).mT @ own[:, start : start + alike.shape[1]]
    mean_k, mean_v = (sums / count[..., None]).to(k.dtype).split([k.shape[2], v.shape[2]], dim=2)
    return mean_k, mean_v


def _alike(k: torch.Tensor, rows: int = 256) -> Iterator[tuple[int, torch.Tensor]]:
    """For stretches of keys: where each starts, and bool [Hkv, R, T − start], which keys later than each are nearly the same."""
    unit, n = torch.nn.functional.normalize(k.float(), dim=2), k.shape[1]
    for start in range(0, n, rows):
        end = min(n, start + rows)
        later = torch.arange(n - start, device=k.device) > torch.arange(end - start, device=k.device)[:, None]
        yield start, (unit[:, start:end] @ unit[:, start:].mT > _SAME) & later

"""Cutting FFN neurons: which stay, and how many in each layer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from sparsity_core.kinds import Ranking, WeightMethod
from sparsity_core.models import Model, wrap
from sparsity_core.weights.compressed import CompressedModel
from sparsity_core.weights.counts import kept_count
from sparsity_core.weights.ffn import FeedForward, NeuronCut, feed_forwards, without_neurons
from sparsity_core.weights.spectrum import Gram, ks_distance
from sparsity_core.work import Progress

_GRID = 12  # ratios at which a layer's KS distance is computed; between them it is interpolated


def cut_neurons(
    model: Model,
    method: WeightMethod,
    rank: Callable[[Model, Sequence[FeedForward], Progress], Sequence[Ranking]],
    progress: Progress,
    *,
    ratio: float,
    allocation: str = "uniform",
    multiple: int = 1,
) -> CompressedModel:
    """The model without the neurons that `rank` puts lowest, layer by layer; `method` names the result.

    `allocation` gives every layer the same ratio ("uniform"), or ratios of equal KS distance whose mean is `ratio`
    ("equal_ks"); kept neurons are rounded to a `multiple`.
    """
    began = time.perf_counter()
    with torch.no_grad():  # inference mode's tensors could never take part in a backward pass again
        blocks = feed_forwards(model)
        if ratio == 0.0:
            kept = [torch.arange(block.n_neurons) for block in blocks]
            rankings: Sequence[Ranking] = []
        else:
            rankings = rank(model, blocks, lambda share, doing: progress(0.8 * share, doing))
            counts = _counts(
                blocks, rankings, ratio, allocation, multiple, lambda s, doing: progress(0.8 + 0.2 * s, doing)
            )
            kept = [top(r.importance, n) for r, n in zip(rankings, counts, strict=True)]
        cuts = [NeuronCut(rows.to(model.device)) for rows in kept]
        if rankings and rankings[0].mean is not None:
            cuts = [_compensated(block, cut.kept, r.mean) for block, cut, r in zip(blocks, cuts, rankings, strict=True)]
        hf, notes = without_neurons(model, cuts)
    compressed = wrap(hf, model.tokenizer, f"{model.name} {method}")
    arrays = tuple(rows.cpu().numpy() for rows in kept)
    progress(1.0, "every layer is cut")
    return CompressedModel(compressed, model, method, arrays, time.perf_counter() - began, tuple(notes))


def top(importance: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` most important neurons, ascending; of equal ones the first."""
    if bool(torch.isnan(importance).any()):
        raise ValueError("a neuron's importance is not a number: the weights or the calibration are damaged")
    return importance.double().cpu().sort(descending=True, stable=True).indices[:count].sort().values


def _compensated(block: FeedForward, kept: torch.Tensor, mean: torch.Tensor | None) -> NeuronCut:
    if mean is None:
        return NeuronCut(kept)
    lost = mean.to(block.down).clone()
    lost[kept] = 0.0
    return NeuronCut(kept, block.down @ lost)


def _counts(
    blocks: Sequence[FeedForward],
    rankings: Sequence[Ranking],
    ratio: float,
    allocation: str,
    multiple: int,
    progress: Progress,
) -> list[int]:
    ratios = [ratio] * len(blocks)
    if allocation == "equal_ks" and len(blocks) > 1:
        ratios = _equal_ks(blocks, rankings, ratio, progress)
    return [kept_count(b.n_neurons, r, multiple) for b, r in zip(blocks, ratios, strict=True)]


def _equal_ks(
    blocks: Sequence[FeedForward], rankings: Sequence[Ranking], ratio: float, progress: Progress
) -> list[float]:
    """Ratios of mean `ratio` under which every layer's first matrix moves by the same KS distance."""
    grid = np.linspace(0.0, min(0.95, 2.0 * ratio), _GRID)
    curves = []
    for block, ranking in zip(blocks, rankings, strict=True):
        progress(block.layer / len(blocks), f"layer {block.layer + 1}: KS distance by ratio")
        gram = Gram(block.first)
        before = gram.singular_values().cpu()
        distances = [0.0]
        for r in grid[1:]:
            kept = torch.zeros(block.n_neurons, dtype=torch.bool)
            kept[top(ranking.importance, kept_count(block.n_neurons, float(r)))] = True
            distances.append(ks_distance(before, gram.singular_values(kept).cpu()).statistic)
        curves.append(np.maximum.accumulate(distances))
    low, high = 0.0, max(float(curve[-1]) for curve in curves)
    for _ in range(50):
        middle = (low + high) / 2
        found = [float(np.interp(middle, curve + 1e-9 * grid, grid)) for curve in curves]
        low, high = (middle, high) if np.mean(found) < ratio else (low, middle)
    return found

"""FFN matrices of low rank: the nearest to the weight itself, or the nearest by what comes out for the inputs it gets."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch

from sparsity_core.kinds import WeightMethod
from sparsity_core.models import Model, wrap
from sparsity_core.weights.compressed import CompressedModel
from sparsity_core.weights.ffn import feed_forwards, shared_copy, with_matrices
from sparsity_core.work import Progress

_RIDGE = 1e-8  # of the mean eigenvalue: directions that no input takes are then ranked by the weight alone


def rank_for(rows: int, columns: int, ratio: float) -> int:
    """The largest k with k (m + n) ≤ (1 − ratio) m n. Raises ValueError where it is none."""
    k = int((1.0 - ratio) * rows * columns / (rows + columns) + 1e-9)
    if k < 1:
        raise ValueError(f"a ratio of {ratio:g} leaves no rank of a {rows} × {columns} matrix: choose a smaller one")
    return k


def nearest(weight: torch.Tensor, k: int) -> torch.Tensor:
    """The best rank-k approximation of W [m, n]: float64, ‖W − Ŵ‖ least in every unitarily invariant norm."""
    w = weight.double()
    if w.shape[0] <= w.shape[1]:
        u = _leading(w @ w.T, k)
        return u @ (u.T @ w)
    v = _leading(w.T @ w, k)
    return (w @ v) @ v.T


def nearest_for_inputs(weight: torch.Tensor, moment: torch.Tensor, k: int) -> torch.Tensor:
    """The rank-k matrix of least E‖(W − Ŵ) x‖² for inputs of second moment C = E[x xᵀ] [n, n]; float64.

    With C = S Sᵀ it is the truncation of W S times S⁻¹, which is U Uᵀ W with the leading left singular vectors U of W S:
    nothing is inverted, and which root S of C is taken makes no difference. Cholesky's would fail where inputs span less
    than the space, as behind a LayerNorm.
    """
    w, c = weight.double(), moment.double()
    least = float(_RIDGE * c.diagonal().mean().clamp_min(1e-30))
    if w.shape[0] <= w.shape[1]:
        u = _leading(w @ c @ w.T + least * w @ w.T, k)
    else:
        eigenvalues, vectors = torch.linalg.eigh(c)
        whitened = (w @ vectors) * eigenvalues.clamp_min(least).sqrt()
        u = torch.linalg.qr(whitened @ _leading(whitened.T @ whitened, k)).Q
    return u @ (u.T @ w)


Moments = Iterable[tuple[torch.Tensor | None, torch.Tensor | None]]


def truncate(
    model: Model,
    method: WeightMethod,
    moments: Callable[[Model, Progress], Moments],
    progress: Progress,
    *,
    ratio: float,
) -> CompressedModel:
    """The model with FFN matrices of low rank, each nearest for its inputs where their second moments are known.

    `moments` yields, layer after layer, those of what gate and up read [d, d] and of what down reads [n, n], or None;
    `method` names the result.
    """
    began = time.perf_counter()
    removed, ranks, cut = 0, {}, 0.0
    with torch.no_grad():
        blocks = feed_forwards(model)
        if ratio == 0.0:
            hf = shared_copy(model.hf)
        else:
            changed = []
            for block, (entering, inner) in zip(blocks, moments(model, progress), strict=True):
                found: dict[str, Any] = {}
                for name, moment in (("gate", entering), ("up", entering), ("down", inner)):
                    weight = getattr(block, name)
                    if weight is None:
                        continue
                    m, n = weight.shape
                    k = rank_for(m, n, ratio)
                    low = nearest(weight, k) if moment is None else nearest_for_inputs(weight, moment, k)
                    found[name] = low.to(weight.dtype)
                    ranks[name], removed = k, removed + m * n - k * (m + n)
                changed.append(replace(block, **found))
            hf = with_matrices(model, changed)
            cut = removed / sum(w.numel() for block in blocks for w in block.matrices.values())
    notes = ("Matrices of low rank are stored whole, so that others load them: the saved size does not shrink.",)
    compressed = wrap(hf, model.tokenizer, f"{model.name} {method}")
    kept = tuple(torch.arange(block.n_neurons).numpy() for block in blocks)
    extra = {"rank": ranks, "cut_of_ffn_by_layer": [round(cut, 6)] * len(blocks)}
    progress(1.0, "every layer is cut")
    return CompressedModel(
        compressed,
        model,
        method,
        kept,
        time.perf_counter() - began,
        notes if ratio else (),
        extra if ratio else {},
        removed,
    )


def _leading(gram: torch.Tensor, k: int) -> torch.Tensor:
    """The k eigenvectors of the largest eigenvalues, as columns."""
    return torch.linalg.eigh(gram).eigenvectors[:, -k:]

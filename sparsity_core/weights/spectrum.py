"""Singular-value spectra of weight matrices, and how far pruning moves them.

A spectrum comes from the eigenvalues of the float64 Gram matrix of the smaller side, which is faster than a singular value
decomposition of a tall matrix and more exact than one in float32. Rows that are pruned are subtracted from a stored Gram
matrix, so trying another ratio costs one small eigenproblem.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from sparsity_core.models import all_finite

_SLICE = 2048  # rows in float64 at once
_GRAMS = 1 << 28  # bytes of Gram matrices at once
_RELIABLE = 1e-8  # of the largest singular value: squares of smaller ones are lost in float64


@dataclass(frozen=True)
class KSDistance:
    """Two-sample Kolmogorov–Smirnov statistic: the largest gap of two empirical distributions, and where it is."""

    statistic: float
    location: float

    def __float__(self) -> float:
        return self.statistic


class Gram:
    """The Gram matrix of a weight W [rows, columns], from which rows can be taken away again and again."""

    def __init__(self, weight: torch.Tensor) -> None:
        if weight.ndim != 2 or not weight.numel():
            raise ValueError(f"a spectrum is of a matrix [rows, columns]; got {tuple(weight.shape)}")
        if not all_finite(weight):
            raise ValueError("the weight holds values that are not finite: the checkpoint is damaged")
        self._weight = weight.detach()

    @cached_property
    def _whole(self) -> torch.Tensor:
        return _gram(self._weight)

    def singular_values(self, kept: torch.Tensor | None = None) -> torch.Tensor:
        """float64, descending, [min(rows, columns)]; of the rows `kept` (bool [rows]) alone where given.

        Exact zeros stand where a value is too small to be told from nought (below 1e-8 of the largest).

        Raises ValueError where `kept` does not fit, or keeps no row.
        """
        rows, columns = self._weight.shape
        if kept is None:
            return _values(self._whole, min(rows, columns))
        kept = kept.to(self._weight.device)
        if kept.dtype != torch.bool or kept.shape != (rows,):
            raise ValueError(f"kept is bool [{rows}]; got {kept.dtype} {tuple(kept.shape)}")
        n_kept = int(kept.sum())
        if not n_kept:
            raise ValueError("kept leaves no row: keep at least one")
        if n_kept <= columns // 2 or rows <= columns:
            return _values(_gram(self._weight[kept]), min(n_kept, columns))
        removed = self._weight[~kept].double()
        return _values(self._whole - removed.T @ removed, min(n_kept, columns))


def singular_values(weight: torch.Tensor) -> torch.Tensor:
    """All singular values of a matrix [rows, columns]: float64, descending, [min(rows, columns)]."""
    return Gram(weight).singular_values()


def each_spectrum(weights: Sequence[torch.Tensor]) -> Generator[torch.Tensor]:
    """`singular_values` of every matrix, in order; on a CPU several at once, each on one core, where they are small.

    An eigenproblem of a few hundred columns is hardly faster on two cores than on one.
    """
    threads = torch.get_num_threads()
    largest = max((min(w.shape) for w in weights), default=0)
    at_once = min(threads, _GRAMS // (8 * largest**2 + 1))
    if at_once < 2 or weights[0].device.type != "cpu":
        yield from map(singular_values, weights)
        return
    pool = ThreadPoolExecutor(at_once, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield from pool.map(singular_values, weights)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # its BLAS counts for the whole process


def ks_distance(before: torch.Tensor, after: torch.Tensor) -> KSDistance:
    """sup_x |F_before(x) − F_after(x)| over the two sets of singular values, and the x at which it is reached.

    No p-value: singular values are not independent draws. The least distance of n values from others is 1/n or 0.
    """
    a, b = (np.sort(np.asarray(values, dtype=np.float64).ravel()) for values in (before, after))
    if not a.size or not b.size:
        raise ValueError("a distance is between two sets of at least one value each")
    at = np.concatenate([a, b])
    gap = np.abs(np.searchsorted(a, at, side="right") / a.size - np.searchsorted(b, at, side="right") / b.size)
    return KSDistance(float(gap.max()), float(at[gap.argmax()]))


def scaled_ks_distance(before: torch.Tensor, after: torch.Tensor, ratio: float) -> KSDistance:
    """`ks_distance` after the pruned spectrum is divided by √(1 − ratio): what is left once mere shrinkage is undone."""
    if not 0.0 <= ratio < 1.0:
        raise ValueError(f"ratio is a share removed, 0 to below 1; got {ratio}")
    return ks_distance(before, after / (1.0 - ratio) ** 0.5)


def wasserstein(before: torch.Tensor, after: torch.Tensor) -> float:
    """Wasserstein-1 distance of the two spectra over the mean singular value before."""
    from scipy.stats import wasserstein_distance

    return float(wasserstein_distance(np.asarray(before), np.asarray(after)) / float(before.mean()))


def energy(values: torch.Tensor) -> float:
    """Σ σ², the squared Frobenius norm."""
    return float(values.square().sum())


def stable_rank(values: torch.Tensor) -> float:
    """Σ σ² / σ_max² (Rudelson and Vershynin, 2007)."""
    return energy(values) / float(values.max().square())


def effective_rank(values: torch.Tensor) -> float:
    """exp of the entropy of σ / Σ σ (Roy and Vetterli, 2007)."""
    share = values / values.sum()
    return float(torch.special.entr(share).sum().exp())


def leverage_scores(weight: torch.Tensor) -> torch.Tensor:
    """float64 [rows]: ‖U_i‖² of W = U Σ Vᵀ, 0 to 1, summing to the rank (Drineas, Mahoney and Muthukrishnan, 2008)."""
    rows, columns = weight.shape
    if rows <= columns:
        eigenvalues, vectors = torch.linalg.eigh(_gram(weight))
        return vectors[:, eigenvalues > _RELIABLE**2 * eigenvalues[-1]].square().sum(1)
    eigenvalues, vectors = torch.linalg.eigh(_gram(weight))
    sound = eigenvalues > _RELIABLE**2 * eigenvalues[-1]
    whitened = vectors[:, sound] / eigenvalues[sound].sqrt()
    return torch.cat([(part.double() @ whitened).square().sum(1) for part in weight.split(_SLICE)])


def _gram(weight: torch.Tensor) -> torch.Tensor:
    """Wᵀ W or W Wᵀ, the smaller, in float64. In bands, and of the lower triangle alone: eigh reads no more.

    A slice of the longer side at a time, so that no copy of W is held.
    """
    tall = weight if weight.shape[0] > weight.shape[1] else weight.T
    n = tall.shape[1]
    band = max(128, -(-n // 4))
    out = torch.zeros(n, n, dtype=torch.float64, device=weight.device)
    for part in tall.split(_SLICE):
        rows = part.double()
        for start in range(0, n, band):
            end = min(n, start + band)
            out[start:end, :end].addmm_(rows.T[start:end], rows[:, :end])
    return out


def _values(gram: torch.Tensor, count: int) -> torch.Tensor:
    eigenvalues = torch.linalg.eigvalsh(gram).flip(0)[:count].clamp_min(0.0)
    values = eigenvalues.sqrt()
    return torch.where(values < _RELIABLE * values[0], 0.0, values)

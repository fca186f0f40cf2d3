"""Public: singular values of weight matrices, and distances between two spectra."""

from sparsity_core.weights import (
    KSDistance,
    effective_rank,
    energy,
    ks_distance,
    leverage_scores,
    scaled_ks_distance,
    singular_values,
    stable_rank,
    wasserstein,
)

__all__ = [
    "KSDistance",
    "effective_rank",
    "energy",
    "ks_distance",
    "leverage_scores",
    "scaled_ks_distance",
    "singular_values",
    "stable_rank",
    "wasserstein",
]

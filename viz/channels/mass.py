"""How much of the exact attention was read."""

from __future__ import annotations

import numpy as np

from sparsity_core.record import Trace
from viz.channels.reads import choices, reads_everything


def mass_selected(trace: Trace) -> float:
    """Share of the exact attention that the queries of the layers with a selector read; nan where it was not measured.

    It is not measured where the keys are read from a real cache, beside which nothing exact is computed.
    """
    found = trace.selected_mass
    return float(found[np.isfinite(found)].mean()) if np.isfinite(found).any() else float("nan")


def mass_read(trace: Trace) -> float:
    """Share of the exact attention, mean over all layers, that was read (decode methods) or still cached (eviction).

    A layer without a selector reads all of it. nan where it was not measured.
    """
    if trace.selected_mass.size:
        if not choices(trace).any():
            return float("nan")
        dense = int(reads_everything(trace).sum())
        own = mass_selected(trace) if dense < trace.n_layers else 1.0
        return (dense + (trace.n_layers - dense) * own) / trace.n_layers
    return float(1.0 - trace.regret.mean()) if trace.compared else float("nan")

"""What the eviction stage did; the dense model is the rule that keeps everything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from sparsity_core.record.part import Axes, Part


@dataclass(frozen=True, eq=False)
class EvictionRecord(Part):
    """Budgets, scores at S steps, and the score at which each query dropped a key."""

    n_prefill: int  # leading tokens that a one-cut method read densely; 0 where eviction runs from the first token
    budgets: Annotated[np.ndarray, Axes("int", "layer", "kv_head")]  # keys kept; T where the head keeps everything
    n_sink: Annotated[np.ndarray, Axes("int", "layer")]
    recent: Annotated[np.ndarray, Axes("int", "layer")]
    threshold: Annotated[
        np.ndarray, Axes("float", "layer", "kv_head", "key")
    ]  # of the key dropped at each query; nan where none
    snapshot_steps: Annotated[np.ndarray, Axes("int", "snapshot")]
    snapshots: Annotated[
        np.ndarray, Axes("float", "layer", "kv_head", "snapshot", "key")
    ]  # scores; nan where not in the cache

"""What the decode stage read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from sparsity_core.record.part import Axes, Part


@dataclass(frozen=True, eq=False)
class ReadingRecord(Part):
    """How often each key was read, and what of the exact attention that held. Layers that read everything hold nan."""

    selected: Annotated[np.ndarray, Axes("float", "layer", "kv_head", "key")]  # how many queries read each key
    selected_mass: Annotated[np.ndarray, Axes("float", "layer", "head", "key")]  # exact attention that each query read
    selected_recall: Annotated[
        np.ndarray, Axes("float", "layer", "kv_head", "key")
    ]  # share of the exact top keys that it read


@dataclass(frozen=True, eq=False)
class DriftRecord(Part):
    """The channels of a decode stage that ranks them again while it runs."""

    drift_steps: Annotated[np.ndarray, Axes("int", "ranking")]  # tokens read by then
    drift: Annotated[
        np.ndarray, Axes("float", "layer", "ranking")
    ]  # share of the calibrated channels still chosen; nan: reads all

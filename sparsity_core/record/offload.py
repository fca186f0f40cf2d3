"""What a generation fetched from a cache in host memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from sparsity_core.record.part import Axes, Part


@dataclass(frozen=True, eq=False)
class OffloadRecord(Part):
    """Fetches ahead of a step, by prediction, and those that the step itself had to wait for."""

    prefetch_hits: Annotated[
        np.ndarray, Axes("float", "layer")
    ]  # share of the rows read that had been fetched; nan: none read
    bytes_ahead: int
    bytes_late: int

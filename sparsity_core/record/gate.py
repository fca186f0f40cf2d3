"""What the gate stage did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from sparsity_core.record.part import Axes, Part


@dataclass(frozen=True, eq=False)
class GateRecord(Part):
    """Which token dropped which, from all heads of a layer."""

    gated_at: Annotated[
        np.ndarray, Axes("int", "layer", "key")
    ]  # the token whose gate dropped the key; T where none did

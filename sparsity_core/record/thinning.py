"""What the keys lost of their channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from sparsity_core.record.part import Axes, Part


@dataclass(frozen=True, eq=False)
class ThinningRecord(Part):
    """The channels that the prompt's keys kept when it ended, and how many keys are held without the others."""

    channels_kept: Annotated[
        np.ndarray, Axes("bool", "layer", "kv_head", "channel")
    ]  # all of a layer that was left as it was
    thinned: Annotated[np.ndarray, Axes("int", "layer", "kv_head")]  # keys without the other channels, at the end

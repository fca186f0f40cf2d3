"""The model's sizes, before and after its weights were cut: what a pipeline's costs are counted from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from sparsity_core.record.part import Axes, Part


@dataclass(frozen=True, eq=False)
class SizeRecord(Part):
    """Sizes in bytes, and in floating-point operations; `…_left` is what the weights stage left."""

    pair_flops: Annotated[np.ndarray, Axes("int", "layer")]  # of one query and one key, over all query heads
    neurons: Annotated[np.ndarray, Axes("int", "layer", optional=True)]  # empty where the model's FFN is not known
    neurons_left: Annotated[np.ndarray, Axes("int", "layer", optional=True)]
    head_dim: int
    ranked_channels: (
        int  # of each key that the decode stage ranks by; those of a head where it ranks by all, or is absent
    )
    weight_bytes: int
    weight_bytes_left: int
    token_flops: int  # of the matrices that a token passes, attention aside
    token_flops_left: int
    index_bytes: int  # held beside the cache at the end: labels, a gate's keys

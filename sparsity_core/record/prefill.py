"""What the prefill stage showed each query of the prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from sparsity_core.record.part import Axes, Part


@dataclass(frozen=True, eq=False)
class PrefillRecord(Part):
    """How many keys each query saw, where they lie, and what that cost. Lists: KV heads, or query heads.

    A layer that reads everything shows each query all its earlier keys.
    """

    shown: Annotated[np.ndarray, Axes("int", "layer", "list", "key")]  # keys that each query of the prompt sees
    blocks: Annotated[np.ndarray, Axes("float", "layer", "list", "query_block", "key_block")]  # share of pairs seen
    block: int  # tokens of a block of `blocks`
    coverage: Annotated[
        np.ndarray, Axes("float", "layer", "head", "key")
    ]  # dense attention seen by each query; nan: unknown
    pairs: Annotated[
        np.ndarray, Axes("int", "layer")
    ]  # products of a query and a key that were computed, over all heads
    scoring_flops: Annotated[np.ndarray, Axes("int", "layer")]  # spent on finding the masks
    looks_ahead: bool  # the whole prompt was known to every mask

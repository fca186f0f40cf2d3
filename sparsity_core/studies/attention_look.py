"""One layer's dense attention over a text, as pages read it: pooled to blocks, and by key."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class AttentionLook:
    """The dense attention of one layer, a KV head's query heads averaged; nothing of it is T × T."""

    layer: int
    block: int  # tokens of a block
    blocks: (
        np.ndarray
    )  # float32 [kv_head, query block, key block]: what a block's queries give to it; a row adds up to 1
    importance: np.ndarray  # float32 [kv_head, T]: the mean attention that a key gets from the queries that can see it

"""One layer's gate logits, as pages read them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class GateLook:
    """A layer's gate logits over some neighbouring tokens, as they were while a pipeline ran."""

    layer: int
    start: int  # the first of the tokens
    x: np.ndarray  # float32 [query, key], the threshold taken off: at most 0 drops; meaningful below the diagonal

"""Whether a text that a model wrote ends in a loop."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def loop_of(ids: Sequence[int] | np.ndarray, times: int = 3, least: int = 8) -> tuple[int, int] | None:
    """(the place of the loop's first token, its period in tokens) of a text that ends in a repeated n-gram; None of any other.

    The tail repeats the same n tokens at least `times` over and is at least `least` tokens long; its last repetition may be
    unfinished. Of several periods the shortest counts, and the loop begins as early as it holds.
    """
    tokens = np.asarray(ids)
    n = len(tokens)
    for period in range(1, n // times + 1):
        other = np.flatnonzero(tokens[: n - period] != tokens[period:])
        first = int(other[-1]) + 1 if len(other) else 0
        if n - first >= max(times * period, least):
            return first, period
    return None

"""Whether a difference between two pipelines on the same units is real: a paired bootstrap, and McNemar's test of outcomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_SAMPLES, _LEVEL = 2000, 0.05


@dataclass(frozen=True)
class Paired:
    """The mean difference a − b over n units, the interval that 95 % of resamples lie in (nan: none), and the verdict on a."""

    n: int
    difference: float
    low: float
    high: float
    verdict: str  # "better", "worse" or "cannot be told apart at n = …"


def paired(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray, seed: int = 0) -> Paired:
    """Holds losses of two pipelines on the same units against each other, by a bootstrap over the units.

    A lower loss is better. The units must be independent, as texts are and tokens of one text are not: of those the interval
    comes out too narrow. Units of which either loss is nan are left out.

    Raises ValueError for lists of unequal length, and where fewer than two units have both losses.
    """
    apart = _apart(a, b)
    if len(apart) < 2:
        raise ValueError(f"a paired test needs two units or more that both pipelines measured; got {len(apart)}")
    rng = np.random.default_rng(seed)
    means = [float(apart[rng.integers(0, len(apart), len(apart))].mean()) for _ in range(_SAMPLES)]
    low, high = (float(edge) for edge in np.quantile(means, [_LEVEL / 2, 1 - _LEVEL / 2]))
    return Paired(len(apart), float(apart.mean()), low, high, _verdict(high < 0, low > 0, len(apart)))


def paired_outcomes(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> Paired:
    """Holds outcomes of two pipelines on the same units, 1 right and 0 wrong, against each other: McNemar's exact test.

    Only units on which the two differ count: p = P(at least so uneven a split of them | a fair coin), two-sided.

    Raises ValueError for lists of unequal length, outcomes other than 0 and 1, and where no unit has both.
    """
    from scipy.stats import binomtest

    apart = _apart(a, b)
    if not len(apart):
        raise ValueError("a paired test needs a unit that both pipelines measured; got none")
    for each in (a, b):
        known = np.asarray(each, np.float64)
        if not np.isin(known[~np.isnan(known)], (0.0, 1.0)).all():
            raise ValueError("outcomes are 1 for right and 0 for wrong: compare other numbers by `paired`")
    ahead, behind = int((apart > 0).sum()), int((apart < 0).sum())
    real = ahead + behind > 0 and float(binomtest(ahead, ahead + behind).pvalue) < _LEVEL
    verdict = _verdict(real and ahead > behind, real and behind > ahead, len(apart))
    return Paired(len(apart), float(apart.mean()), float("nan"), float("nan"), verdict)


def _apart(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> np.ndarray:
    """a − b of the units that have both."""
    if len(a) != len(b):
        raise ValueError(f"a paired test compares the same units; got {len(a)} and {len(b)}")
    apart = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    return np.asarray(apart[~np.isnan(apart)])


def _verdict(better: bool, worse: bool, n: int) -> str:
    return "better" if better else "worse" if worse else f"cannot be told apart at n = {n:,}"

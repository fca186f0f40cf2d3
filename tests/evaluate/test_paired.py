"""Paired tests, on differences that are plain to see and on splits worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from sparsity_core.evaluate import paired, paired_outcomes

NAN = float("nan")


def test_a_difference_that_every_unit_shows_is_real():
    """Each resample of equal differences has their mean, so the interval is that number."""
    found = paired([1.0, 2.0, 3.0, NAN], [1.5, 2.5, 3.5, 9.0])
    assert (found.n, found.difference, found.low, found.high, found.verdict) == (3, -0.5, -0.5, -0.5, "better")
    assert paired([1.5, 2.5], [1.0, 2.0]).verdict == "worse"


def test_differences_that_cancel_cannot_be_told_apart():
    a = np.asarray([1.0, -1.0] * 10)
    found = paired(a, np.zeros(20))
    assert found.verdict == "cannot be told apart at n = 20"
    assert found.low < 0 < found.high
    assert found == paired(a, np.zeros(20)) and found != paired(a, np.zeros(20), seed=1)


@pytest.mark.parametrize(
    ("ahead", "behind", "verdict"),
    [  # p = 2 · P(at most the smaller of the two | a fair coin)
        (8, 1, "better"),  # 2 · (1 + 9) / 512 = .039
        (1, 8, "worse"),
        (5, 0, "cannot be told apart at n = 7"),  # 2 / 32 = .0625
        (6, 0, "better"),  # 2 / 64 = .031
        (0, 0, "cannot be told apart at n = 2"),
    ],
)
def test_mcnemar_counts_the_units_that_differ(ahead, behind, verdict):
    a = [1] * ahead + [0] * behind + [1, 0]
    b = [0] * ahead + [1] * behind + [1, 0]
    found = paired_outcomes(a, b)
    assert found.verdict == verdict
    assert found.difference == pytest.approx((ahead - behind) / (ahead + behind + 2))


@pytest.mark.parametrize(
    ("test", "a", "b", "said"),
    [
        (paired, [1.0], [2.0], "two units or more"),
        (paired, [1.0, 2.0], [1.0], "the same units; got 2 and 1"),
        (paired_outcomes, [0.5, 1], [1, 1], "1 for right and 0 for wrong"),
        (paired_outcomes, [NAN], [1], "got none"),
    ],
)
def test_what_cannot_be_compared_is_a_sentence(test, a, b, said):
    with pytest.raises(ValueError, match=said):
        test(a, b)

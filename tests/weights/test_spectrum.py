"""Spectra against torch's own decomposition, scipy's statistics, the interlacing law, and numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from sparsity_core.weights.spectrum import (
    Gram,
    each_spectrum,
    effective_rank,
    energy,
    ks_distance,
    scaled_ks_distance,
    singular_values,
    stable_rank,
    wasserstein,
)


def matrix(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("rows", "columns"), [(96, 24), (24, 96), (31, 31), (1, 7), (7, 1), (400, 301)])
def test_singular_values_are_those_of_the_decomposition(rows, columns):
    weight = matrix(rows, columns)
    expected = torch.linalg.svdvals(weight.double())
    torch.testing.assert_close(singular_values(weight), expected, rtol=1e-10, atol=1e-10)


def test_many_spectra_at_once_are_those_of_one_by_one_and_leave_the_threads_as_they_were():
    weights = [matrix(96, 24, seed) for seed in range(7)]
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for found, weight in zip(each_spectrum(weights), weights, strict=True):
            torch.testing.assert_close(found, singular_values(weight), rtol=1e-10, atol=1e-10)
        assert torch.get_num_threads() == 2
        given_up = each_spectrum(weights)
        next(given_up)
        given_up.close()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.7, 0.95])
@pytest.mark.parametrize(("rows", "columns"), [(96, 24), (24, 96), (40, 40), (400, 301)])
def test_rows_taken_away_leave_the_spectrum_of_the_rest(rows, columns, share):
    weight = matrix(rows, columns)
    kept = torch.rand(rows, generator=torch.Generator().manual_seed(1)) >= share
    kept[0] = True
    expected = torch.linalg.svdvals(weight[kept].double())
    torch.testing.assert_close(Gram(weight).singular_values(kept), expected, rtol=1e-7, atol=1e-7)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(2, 40), columns=st.integers(1, 20), n_removed=st.integers(0, 39))
def test_no_singular_value_grows_when_rows_go(seed, rows, columns, n_removed):
    weight = matrix(rows, columns, seed)
    kept = torch.ones(rows, dtype=torch.bool)
    kept[: min(n_removed, rows - 1)] = False
    gram = Gram(weight)
    before, after = gram.singular_values(), gram.singular_values(kept)
    assert (after <= before[: len(after)] * (1 + 1e-9) + 1e-9).all()


def test_a_matrix_of_low_rank_has_exact_zeros():
    weight = matrix(40, 3) @ matrix(3, 12, 1)
    values = singular_values(weight.double())
    assert (values[:3] > 0.1).all()
    assert (values[3:] < 1e-6 * values[0]).all()
    assert (singular_values(torch.diag(torch.tensor([3.0, 1.0, 0.0]))) == torch.tensor([3.0, 1.0, 0.0])).all()


@settings(max_examples=60, deadline=None)
@given(
    a=st.lists(st.floats(0, 9, width=16), min_size=1, max_size=30),
    b=st.lists(st.floats(0, 9, width=16), min_size=1, max_size=30),
)
def test_ks_distance_is_scipys(a, b):
    found = ks_distance(torch.tensor(a), torch.tensor(b))
    expected = ks_2samp(a, b, method="asymp")
    assert found.statistic == pytest.approx(expected.statistic, abs=1e-12)
    share = [sum(x <= found.location for x in values) / len(values) for values in (a, b)]
    assert abs(share[0] - share[1]) == pytest.approx(found.statistic, abs=1e-12)


def test_ks_distance_by_hand():
    # F_before steps at 1, 2, 3, 4 by ¼; F_after at 1, 2, 2.5 by ⅓: at 2.5 they are ½ and 1.
    found = ks_distance(torch.tensor([4.0, 3, 2, 1]), torch.tensor([2.5, 2, 1]))
    assert (found.statistic, found.location) == (0.5, 2.5)
    # halved by pruning three quarters of the rows, and whole again once the shrinkage is undone
    assert ks_distance(torch.tensor([4.0, 2.0]), torch.tensor([2.0, 1.0])).statistic == 0.5
    assert scaled_ks_distance(torch.tensor([4.0, 2.0]), torch.tensor([2.0, 1.0]), 0.75).statistic == 0.0


def test_summaries_by_hand():
    values = torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64)
    assert energy(values) == 6
    assert stable_rank(values) == 1.5
    # shares ½, ¼, ¼: entropy ½ ln 2 + ½ ln 4 = 1.5 ln 2
    assert effective_rank(values) == pytest.approx(2**1.5)
    # sorted differences 1, 0, 0 over a mean of 4/3
    assert wasserstein(values, torch.tensor([1.0, 1.0, 1.0])) == pytest.approx((1 / 3) / (4 / 3))
    assert math.isclose(float(ks_distance(values, values)), 0.0)


def test_what_is_no_weight_is_refused():
    with pytest.raises(ValueError, match="of a matrix"):
        singular_values(torch.ones(3))
    with pytest.raises(ValueError, match="not finite"):
        singular_values(torch.tensor([[1.0, float("nan")]]))
    gram = Gram(matrix(6, 3))
    with pytest.raises(ValueError, match=r"kept is bool \[6\]"):
        gram.singular_values(torch.ones(5, dtype=torch.bool))
    with pytest.raises(ValueError, match="keep at least one"):
        gram.singular_values(torch.zeros(6, dtype=torch.bool))
    with pytest.raises(ValueError, match="0 to below 1"):
        scaled_ks_distance(torch.ones(2), torch.ones(2), 1.0)
    with pytest.raises(ValueError, match="at least one value"):
        ks_distance(torch.ones(0), torch.ones(2))

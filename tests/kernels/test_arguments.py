"""Arguments and shapes that an operation cannot take are refused with a sentence."""

from __future__ import annotations

import pytest
import torch
from sparselens_kernels import evict_scan, flash_column_score

from tests.kernels.backends import tokens


@pytest.mark.parametrize("op", [lambda *qkv, **numbers: evict_scan(*qkv, budget=4, **numbers), flash_column_score])
@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"decay": 1.1}, "lies between 0 and 1; got 1.1"),
        ({"decay": float("nan")}, "lies between 0 and 1; got nan"),
        ({"window": 0}, "at least the query's own key; got 0"),
        ({"snapshot_steps": (8,)}, r"0 to 7; got \[8\]"),
        ({"snapshot_steps": (3, 3)}, r"different queries, 0 to 7; got \[3, 3\]"),
    ],
)
def test_numbers_of_scoring_that_do_not_fit_are_named(op, numbers, message):
    with pytest.raises(ValueError, match=message):
        op(*tokens(36, n=8), **numbers)


STATE = {"positions": torch.zeros(1, 1, 8, dtype=torch.int64), "score": torch.zeros(1, 1, 8), "start": 8}


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"budget": 0}, "at least 1 key; got 0"),
        ({"budget": 10, "n_sink": 5, "recent": 6}, r"between 0 and the budget of 10; got 5 \+ 6"),
        ({"budget": 10, "n_sink": -1}, r"between 0 and the budget of 10; got -1 \+ 0"),
        ({"budget": 10, "reduction": "median"}, "one of sum, mean, max; got 'median'"),
        ({"budget": 10, "backend": "cuda"}, "one of auto, reference, triton; got 'cuda'"),
        ({"budget": 10, "backend": "triton", "until": torch.full((1, 1, 8), 9)}, "hidden or.* backend='reference'"),
        ({"budget": 10, "backend": "triton"}, "float64.* backend='reference'"),
    ],
)
def test_evict_scan_refuses_numbers_that_do_not_fit(numbers, message):
    with pytest.raises(ValueError, match=message):
        evict_scan(*tokens(36, n=8), **numbers)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [({"budget": 10}, "positions, their score and the start"), ({"budget": 7} | STATE, "8 keys, more than .* 7")],
)
def test_evict_scan_refuses_a_cache_without_state_or_over_budget(numbers, message):
    q, k, v = tokens(37, n=10)
    with pytest.raises(ValueError, match=message):
        evict_scan(q[:, :, 8:], k, v, **numbers)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"reduction": "median"}, "one of sum, mean, max; got 'median'"),
        ({"backend": "cuda"}, "one of auto, reference, triton; got 'cuda'"),
        ({"backend": "triton", "reduction": "max"}, "reduction='max'.* backend='reference'"),
        ({"backend": "triton", "snapshot_steps": (3,)}, "snapshots.* backend='reference'"),
        ({"backend": "triton", "softcap": 30.0}, "soft-capping.* backend='reference'"),
        ({"backend": "triton", "window": 8}, "sliding-window.* backend='reference'"),
        ({"backend": "triton"}, "float64.* backend='reference'"),
    ],
)
def test_flash_column_score_refuses_what_it_cannot_do(numbers, message):
    with pytest.raises(ValueError, match=message):
        flash_column_score(*tokens(38, n=8), **numbers)


@pytest.mark.parametrize("op", [lambda *qkv: evict_scan(*qkv, budget=4), flash_column_score])
@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((1, 2, 8), (1, 1, 8, 4), (1, 1, 8, 4)), r"\[batch, head, token, channel\]; got \(1, 2, 8\)"),
        (((1, 2, 8, 4), (1, 1, 8, 4), (1, 1, 7, 4)), r"\(1, 1, 8, 4\) and \(1, 1, 7, 4\)"),
        (((1, 2, 8, 4), (1, 1, 8, 5), (1, 1, 8, 5)), r"\(1, 2, 8, 4\) and \(1, 1, 8, 5\)"),
        (((1, 3, 8, 4), (1, 2, 8, 4), (1, 2, 8, 4)), "multiple of KV heads; got 3 and 2"),
        (((1, 2, 8, 4), (1, 1, 7, 4), (1, 1, 7, 4)), "as many keys as queries; got 7 and 8"),
    ],
)
def test_shapes_that_do_not_fit_are_named(op, shapes, message):
    with pytest.raises(ValueError, match=message):
        op(*(torch.zeros(shape) for shape in shapes))


def test_heads_that_choose_together_have_one_budget_and_no_triton_kernel():
    q, k = torch.randn(1, 2, 6, 8), torch.randn(1, 2, 6, 8)
    with pytest.raises(ValueError, match="heads that choose together have one budget; got 2, 3"):
        evict_scan(q, k, k, budget=(2, 3), shared=True)
    with pytest.raises(ValueError, match="cannot run this call: heads that choose together"):
        evict_scan(q, k, k, budget=2, shared=True, backend="triton")

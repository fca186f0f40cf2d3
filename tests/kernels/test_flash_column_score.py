"""`flash_column_score`: the reference against the matrix of probabilities, the Triton kernel against the reference."""

from __future__ import annotations

import math

import pytest
import torch
from sparselens_kernels import flash_column_score

from tests.kernels.backends import (
    OUT_TOLERANCE,
    SCORE_TOLERANCE,
    assert_close,
    both_backends,
    call,
    needs_triton,
    per_key,
    tokens,
)
from tests.oracles import attention_probabilities


def column_score(q, k, *, decay=1.0, first_query=0, reduction="sum", weight=1.0):
    """From the whole matrix of probabilities, in float64."""
    n_queries, n_kv = q.shape[2], k.shape[1]
    p = attention_probabilities(q, k).unflatten(1, (n_kv, -1))
    rows = {"sum": p.sum(2), "mean": p.mean(2), "max": p.amax(2)}[reduction]
    decay = torch.as_tensor(decay, dtype=torch.float64).expand(k.shape[:3])
    total = torch.zeros(k.shape[:3], dtype=torch.float64)
    for i in range(first_query, n_queries):
        total += decay ** (n_queries - 1 - i) * rows[:, :, i]
    return total * weight


@pytest.mark.parametrize("reduction", ["sum", "mean", "max"])
@pytest.mark.parametrize("numbers", [{}, {"decay": 0.9}, {"decay": 0.0}, {"decay": 0.5, "first_query": 50}], ids=str)
def test_reference_column_score_is_the_decayed_sum_of_the_dense_probabilities(reduction, numbers):
    q, k, v = tokens(23, n_batch=2, n_kv=2, group=3, n=63, dim=16)
    q = q[:, :, 10:]  # ten cached keys
    weight = per_key(24, k, 0.5, 2.0)
    result = flash_column_score(q, k, v, reduction=reduction, weight=weight, **numbers)
    assert_close(result.score, column_score(q, k, reduction=reduction, weight=weight, **numbers), 1e-12)
    p = attention_probabilities(q, k)
    assert_close(result.out, p @ v.repeat_interleave(3, dim=1), 1e-12)


def test_reference_column_score_does_not_depend_on_its_blocks_of_rows():
    q, k, v = tokens(25, group=2, n=300, dim=8)
    decay = per_key(26, k)
    result = flash_column_score(q, k, v, decay=decay, first_query=30)
    assert_close(result.score, column_score(q, k, decay=decay, first_query=30), 1e-12)


@pytest.mark.parametrize("cores", [1, 2, 3, 7, 64])
def test_reference_column_score_does_not_depend_on_the_cores_that_share_its_rows(cores, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
    q, k, v = tokens(25, n_batch=2, n_kv=2, group=3, n=300, dim=8)
    q[:, :3, 200] *= 1e4  # a row beyond the exponential's range
    q = q[:, :, 7:]
    result = flash_column_score(q, k, v, decay=0.9, first_query=30, snapshot_steps=(150,))
    assert_close(result.out, attention_probabilities(q, k) @ v.repeat_interleave(3, dim=1), 1e-12)
    assert_close(result.score, column_score(q, k, decay=0.9, first_query=30), 1e-12)
    until = column_score(q[:, :, :151], k[:, :, :158], decay=0.9, first_query=30)
    assert_close(result.snapshots[:, :, 0, :158], until, 1e-12)


@pytest.mark.parametrize("first_query", [0, 50])  # before which there is nothing to show
def test_a_column_score_snapshot_is_the_score_of_the_shorter_prompt(first_query):
    q, k, v = tokens(27, group=3, n=63, dim=16)
    result = flash_column_score(q, k, v, decay=0.7, first_query=first_query, snapshot_steps=(40, 62, 3))
    for slot, step in enumerate((40, 62, 3)):
        shorter = flash_column_score(*(x[:, :, : step + 1] for x in (q, k, v)), decay=0.7, first_query=first_query)
        assert_close(result.snapshots[:, :, slot, : step + 1], shorter.score, 1e-12)
        assert result.snapshots[:, :, slot, step + 1 :].isnan().all()


@needs_triton
@pytest.mark.parametrize(
    ("shape", "past", "dtype", "numbers"),
    [
        ({"n_kv": 2, "group": 1, "n": 63, "dim": 64}, 0, torch.float32, {}),
        ({"n_batch": 2, "group": 3, "n": 63, "dim": 80}, 0, torch.float16, {"decay": 0.9, "reduction": "mean"}),
        ({"group": 4, "n": 123, "dim": 64}, 60, torch.bfloat16, {"decay": 0.3, "first_query": 40}),
        ({"group": 8, "n": 63, "dim": 128}, 1, torch.float32, {"decay": 0.0}),
        ({"group": 3, "n": 123, "dim": 64, "dim_v": 80}, 7, torch.float16, {"first_query": 115}),
        ({"group": 1, "n": 123, "dim": 80}, 122, torch.bfloat16, {"decay": 0.5}),
        ({"group": 3, "n": 123, "dim": 64}, 0, torch.float32, {"decay": 1e-9, "first_query": 70}),
    ],
    ids=str,
)
def test_triton_column_score_matches_the_float64_reference(shape, past, dtype, numbers):
    q, k, v = (x.to(dtype) for x in tokens(28, **shape))
    q = q[:, :, past:]
    result = call(flash_column_score, "triton", q, k, v, dtype=dtype, **numbers)
    expected = call(flash_column_score, "reference", q, k, v, **numbers)
    assert result.out.dtype == dtype
    assert result.score.dtype == torch.float32
    assert result.snapshots.shape == expected.snapshots.shape
    assert_close(result.out, expected.out, OUT_TOLERANCE[dtype])
    assert_close(result.score, expected.score, SCORE_TOLERANCE[dtype])


@needs_triton
def test_triton_column_score_takes_decay_and_weight_per_key():
    q, k, v = tokens(29, n_batch=2, n_kv=2, group=3, n=63)
    decay = per_key(30, k)
    decay[..., ::5], decay[..., 1::5] = 0.0, 1.0
    for numbers in ({"decay": decay, "weight": per_key(31, k, 0.5, 2.0)}, {"decay": decay[:, :, :1]}):
        expected = call(flash_column_score, "reference", q, k, v, **numbers)
        assert_close(call(flash_column_score, "triton", q, k, v, **numbers).score, expected.score, 5e-6)


@both_backends
def test_a_decay_of_zero_scores_the_last_query_alone(backend):
    q, k, v = tokens(32, group=3, n=63)
    result = call(flash_column_score, backend, q, k, v, decay=0.0)
    assert_close(result.score, attention_probabilities(q, k)[:, :, -1].sum(1, keepdim=True), 5e-6)


@both_backends
def test_a_later_token_never_changes_an_earlier_output(backend):
    q, k, v = tokens(33, n=63)
    before = call(flash_column_score, backend, q, k, v)
    for x in (q, k, v):
        x[:, :, 40:] = 10.0
    after = call(flash_column_score, backend, q, k, v)
    assert torch.equal(before.out[:, :, :40], after.out[:, :, :40])
    assert not torch.equal(before.out[:, :, 40:], after.out[:, :, 40:])


@both_backends
def test_column_scores_of_a_batch_of_one_are_the_row_of_a_batch(backend):
    q, k, v = tokens(34, n_batch=2, n_kv=2, group=3, n=63)
    together = call(flash_column_score, backend, q, k, v, decay=0.9)
    for b in range(2):
        alone = call(flash_column_score, backend, q[b : b + 1], k[b : b + 1], v[b : b + 1], decay=0.9)
        assert_close(alone.out[0], together.out[b], 1e-12 if backend == "reference" else 1e-6)
        assert_close(alone.score[0], together.score[b], 1e-12 if backend == "reference" else 1e-6)


@both_backends
def test_undecayed_column_scores_add_up_to_the_number_of_rows(backend):
    q, k, v = tokens(35, group=3, n=63)
    result = call(flash_column_score, backend, q, k, v)
    assert math.isclose(result.score.sum().item(), 3 * 63, rel_tol=1e-5)


@pytest.mark.parametrize("size", [40.0, 4000.0])
def test_logits_beyond_the_range_of_the_exponential_are_still_a_softmax(size):
    """float32 overflows at 88: the rows that do are done again with their maximum subtracted, the others stay as they are."""
    q, k, v = (x.float() for x in tokens(36, group=3, n=63))
    q[:, :, 20:40] *= size
    result = flash_column_score(q, k, v, backend="reference")
    p = attention_probabilities(q.double(), k.double())
    assert_close(result.out, p @ v.double(), 2e-4)
    assert_close(result.score, p.sum((1, 2))[:, None], 2e-4)

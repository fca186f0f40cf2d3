"""The operations of `kernels/`: the references against step-by-step oracles, the Triton kernels against the references.

Without a GPU the kernels run under Triton's interpreter (TRITON_INTERPRET=1), at about 20 ms a query.
"""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys

import pytest
import torch
from sparselens_kernels import NEVER, evict_scan, flash_column_score
from sparselens_kernels.rows import decayed_sums

from tests.oracles import attention_probabilities, evict_step_by_step

NAN = float("nan")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
both_backends = pytest.mark.parametrize("backend", ["reference", pytest.param("triton", marks=needs_triton)])

# What rounding the output to the dtype costs; scores are float32 whatever the inputs.
OUT_TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
SCORE_TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6, torch.float16: 5e-6, torch.bfloat16: 5e-6}


@pytest.fixture(autouse=True)
def poisoned_memory():
    """torch.empty comes filled with nan, so that an element nobody writes shows up."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.zeros(3).new_empty(5).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def tokens(seed, *, n_batch=1, n_kv=1, group=1, n=31, dim=64, dim_v=None):
    """Random q, k, v in float64."""
    draw = torch.Generator().manual_seed(seed)
    shapes = (n_batch, n_kv * group, n, dim), (n_batch, n_kv, n, dim), (n_batch, n_kv, n, dim_v or dim)
    return tuple(torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in shapes)


def per_key(seed, k, low=0.0, high=1.0):
    draw = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(k.shape[:3], generator=draw, dtype=torch.float64)


def call(op, backend, q, k, v, *, dtype=None, **numbers):
    """The result with its tensors on the CPU. The reference runs in float64, Triton in `dtype` (float32)."""
    dtype = dtype or (torch.float64 if backend == "reference" else torch.float32)
    device = "cpu" if backend == "reference" else DEVICE

    def move(x):
        if not isinstance(x, torch.Tensor):
            return x
        return x.to(device, torch.promote_types(dtype, torch.float32) if x.is_floating_point() else x.dtype)

    numbers = {name: move(value) for name, value in numbers.items()}
    result = op(*(x.to(device, dtype) for x in (q, k, v)), backend=backend, **numbers)
    assert result.backend == backend
    return result._replace(**{f: x.cpu() for f, x in result._asdict().items() if isinstance(x, torch.Tensor)})


def assert_close(actual, expected, tolerance):
    torch.testing.assert_close(actual.double(), expected.double(), rtol=tolerance, atol=tolerance, equal_nan=True)


def assert_same_scan(actual, expected, dtype):
    """Decisions equal exactly, numbers to the dtype's tolerance."""
    assert torch.equal(actual.evicted_at, expected.evicted_at)
    assert_close(actual.out, expected.out, OUT_TOLERANCE[dtype])
    assert_close(actual.score, expected.score, SCORE_TOLERANCE[dtype])
    assert_close(actual.threshold, expected.threshold, SCORE_TOLERANCE[dtype])
    assert_close(actual.snapshots, expected.snapshots, SCORE_TOLERANCE[dtype])


def realise(rows):
    """q, k, v such that at scale 1 query i gives key j the weight rows[i][j], and the output is the weights."""
    weights = torch.tensor(rows, dtype=torch.float64)
    n_queries, n_keys = weights.shape
    k = weights.clamp_min(1e-30).log().T
    return torch.eye(n_queries).double()[None, None], k[None, None].contiguous(), torch.eye(n_keys).double()[None, None]


# ---- evict_scan: the reference is the oracle's recurrence


A2SF, H2O, TOVA = {"decay": 0.3}, {"recent": 10}, {"decay": 0.0}
STREAMING, WINDOW = {"scored": False, "n_sink": 4, "recent": 17}, {"scored": False, "recent": 21}


@pytest.mark.parametrize(
    "numbers",
    [
        A2SF,
        H2O,
        TOVA,
        STREAMING,
        WINDOW,
        {"decay": 0.9, "n_sink": 3, "recent": 5, "reduction": "mean"},
        {"decay": 0.6, "n_sink": 4, "recent": 17},
        {"decay": 0.8, "reduction": "max"},
    ],
    ids=str,
)
@pytest.mark.parametrize("n", [63, 150])  # a block of the reference is 128 rows
def test_reference_drops_what_the_step_by_step_oracle_drops(numbers, n):
    q, k, v = tokens(1, n_kv=2, group=3, n=n, dim=16)
    result = evict_scan(q, k, v, budget=21, **numbers)
    out, evicted_at, threshold, score = evict_step_by_step(q, k, v, budget=21, **numbers)
    if numbers.get("n_sink", 0) + numbers.get("recent", 0) == 21:
        threshold = torch.full_like(threshold, NAN)  # no choice, so no score decided
    assert torch.equal(result.evicted_at.long(), evicted_at)
    assert_close(result.out, out, 1e-12)
    assert_close(result.score, score, 1e-12)
    assert_close(result.threshold, threshold, 1e-12)


@both_backends
@pytest.mark.parametrize("names", [("decay", "weight"), ("initial",)], ids=str)
def test_decay_weight_and_initial_may_differ_by_key(backend, names):
    q, k, v = tokens(2, n_batch=2, n_kv=2, group=2, n=17, dim=16)
    decay = per_key(3, k)[:, :1].clone()  # one for the heads of a row
    decay[..., ::3] = 0.0
    numbers = {"decay": decay, "weight": per_key(4, k, 0.5, 2.0), "initial": per_key(5, k)[:1]}
    numbers = {name: numbers[name] for name in names} | {"scored": "initial" not in names}
    result = call(evict_scan, backend, q, k, v, budget=7, **numbers)
    out, evicted_at, threshold, score = evict_step_by_step(q, k, v, budget=7, **numbers)
    assert torch.equal(result.evicted_at.long(), evicted_at)
    tolerance = 1e-12 if backend == "reference" else 5e-6
    assert_close(result.out, out, tolerance)
    assert_close(result.score, score, tolerance)
    assert_close(result.threshold, threshold, tolerance)


@both_backends
@pytest.mark.parametrize("shape", [(), (1,), (17,), (2, 1), (1, 2, 17)], ids=str)
def test_whatever_broadcasts_to_the_keys_is_taken(backend, shape):
    q, k, v = tokens(2, n_kv=2, group=2, n=17, dim=16)
    values = torch.rand(shape, generator=torch.Generator().manual_seed(6))
    full = values.broadcast_to(k.shape[:3]).contiguous()
    for operation, numbers in ((evict_scan, {"budget": 7}), (flash_column_score, {})):
        short = call(operation, backend, q, k, v, decay=values, weight=1 + values, **numbers)
        long = call(operation, backend, q, k, v, decay=full, weight=1 + full, **numbers)
        assert_close(short.score, long.score, 1e-5)
        with pytest.raises(ValueError, match="broadcasts to"):
            call(operation, backend, q, k, v, decay=torch.ones(5), **numbers)


def test_a_scored_key_takes_no_initial_score():
    q, k, v = tokens(2, n=9)
    with pytest.raises(ValueError, match="initial score needs scored=False"):
        evict_scan(q, k, v, budget=3, initial=0.5)


# ---- evict_scan: worked out by hand


ROWS = [[1.0, 0, 0, 0], [0.9, 0.1, 0, 0], [0.1, 0.3, 0.6, 0], [0.4, 0.2, 0.2, 0.2]]


@both_backends
def test_h2o_by_hand_keeps_what_was_attended_most_so_far(backend):
    # query 2: scores 1 + .9 + .1 = 2, .1 + .3 = .4, .6: key 1 goes. Query 3 sees 0, 2, 3: .4, .2, .2 over .8.
    result = call(evict_scan, backend, *realise(ROWS), budget=2, decay=1.0, scale=1.0)
    assert result.evicted_at.tolist() == [[[NEVER, 3, NEVER, 4]]]
    assert_close(result.out[0, 0, 3], torch.tensor([0.5, 0, 0.25, 0.25]), 1e-6)
    assert_close(result.score[0, 0], torch.tensor([2.5, NAN, 0.85, NAN]), 1e-6)
    assert_close(result.threshold[0, 0], torch.tensor([NAN, NAN, 0.4, 0.25]), 1e-6)


@both_backends
def test_a2sf_by_hand_forgets_the_first_key(backend):
    # query 2: .1 · 1 + .1 = .2, .1 · .1 + .3 = .31, .6: key 0 goes. Query 3 sees 1, 2, 3, a third each.
    result = call(evict_scan, backend, *realise(ROWS), budget=2, decay=0.1, scale=1.0)
    assert result.evicted_at.tolist() == [[[3, NEVER, NEVER, 4]]]
    assert_close(result.out[0, 0, 3], torch.tensor([0, 1 / 3, 1 / 3, 1 / 3]), 1e-6)
    assert_close(result.score[0, 0], torch.tensor([NAN, 0.031 + 1 / 3, 0.06 + 1 / 3, NAN]), 1e-6)
    assert_close(result.threshold[0, 0], torch.tensor([NAN, NAN, 0.2, 1 / 3]), 1e-6)


@both_backends
def test_streaming_by_hand_keeps_the_sink_and_the_last_and_has_no_threshold(backend):
    result = call(evict_scan, backend, *realise(ROWS), budget=2, n_sink=1, recent=1, scored=False, scale=1.0)
    assert result.evicted_at.tolist() == [[[NEVER, 3, 4, NEVER]]]
    assert_close(result.out[0, 0, 3], torch.tensor([0.5, 0, 0.25, 0.25]), 1e-6)
    assert_close(result.score[0, 0], torch.tensor([0, NAN, NAN, 0]), 0)
    assert result.threshold.isnan().all()


@both_backends
def test_the_oldest_key_goes_where_scores_tie(backend):
    # Key 4 takes key 1's place in the buffer, ahead of key 3; query 4 still drops key 3, the older of the two.
    q, k, v = tokens(6, n=7)
    initial = torch.tensor([3.0, 1, 2, 1, 1, 3, 1]).expand(1, 1, 7)
    result = call(evict_scan, backend, q, k, v, budget=3, scored=False, initial=initial)
    assert result.evicted_at.tolist() == [[[NEVER, 4, NEVER, 5, 6, NEVER, 7]]]
    assert_close(result.threshold[0, 0], torch.tensor([NAN, NAN, NAN, 1, 1, 1, 1]), 0)
    assert_close(result.score[0, 0], torch.tensor([3, NAN, 2, NAN, NAN, 3, NAN]), 0)


NOTES_ROWS = [[0.4, 0.3, 0.2, 0.1], [0.5, 0.2, 0.1, 0.2], [0.3, 0.1, 0.4, 0.2]]
NOTES_SCORE = torch.tensor([0.956, 0.452, 0.608, 0.424])  # .64 · first + .8 · second + third


def test_decayed_sum_gives_the_numbers_of_the_a2sf_notes():
    p = torch.tensor(NOTES_ROWS)[None, None, None, None]
    for decay in (0.8, torch.full((1, 1, 4), 0.8)):
        for stops in ([3], [1, 2, 3]):
            scores = decayed_sums(torch.zeros(1, 1, 4), p, stops, decay=decay, reduction="sum", weight=None)
            assert_close(scores[0, 0, -1], NOTES_SCORE, 1e-6)


@both_backends
@pytest.mark.parametrize("op", [evict_scan, flash_column_score])
def test_both_operations_give_the_numbers_of_the_a2sf_notes(op, backend):
    # Four cached keys; the three queries' own keys get no weight.
    q, k, v = realise([row + [0.0] * 3 for row in NOTES_ROWS])
    numbers = {"decay": 0.8, "scale": 1.0}
    if op is evict_scan:
        state = {"positions": torch.arange(4).expand(1, 1, 4), "score": torch.zeros(1, 1, 4), "start": 4}
        numbers |= {"budget": 7} | state
    result = call(op, backend, q, k, v, **numbers)
    assert_close(result.score[0, 0, :4], NOTES_SCORE, 1e-6)
    assert_close(result.out[0, 0, :, :4], torch.tensor(NOTES_ROWS), 1e-6)


# ---- evict_scan: Triton against the reference


@needs_triton
@pytest.mark.parametrize(
    ("shape", "dtype", "numbers"),
    [
        ({"group": 1, "n": 63, "dim": 64}, torch.bfloat16, {"budget": 21} | A2SF),
        ({"n_batch": 2, "group": 3, "n": 31, "dim": 80}, torch.float16, {"budget": 13, "decay": 0.5, "n_sink": 1}),
        ({"group": 4, "n": 123, "dim": 64}, torch.float32, {"budget": 50, "recent": 25, "reduction": "max"}),
        ({"group": 8, "n": 63, "dim": 128}, torch.float32, {"budget": 37, "recent": 2, "reduction": "mean"}),
        ({"group": 3, "n": 31, "dim": 80}, torch.bfloat16, {"budget": 19} | TOVA),
        ({"group": 3, "n": 31, "dim": 64, "dim_v": 80}, torch.float32, {"budget": 21} | STREAMING),
        ({"group": 4, "n": 31, "dim": 80}, torch.float16, {"budget": 11, "decay": 0.9, "n_sink": 4, "recent": 7}),
    ],
    ids=str,
)
def test_triton_scan_matches_the_float64_reference(shape, dtype, numbers):
    inputs = [x.to(dtype) for x in tokens(7, **shape)]
    numbers = numbers | ({} if numbers.get("scored") is False else {"snapshot_steps": (20, 3)})
    result = call(evict_scan, "triton", *inputs, dtype=dtype, **numbers)
    assert result.out.dtype == dtype
    assert result.score.dtype == result.threshold.dtype == result.snapshots.dtype == torch.float32
    assert_same_scan(result, call(evict_scan, "reference", *inputs, **numbers), dtype)


@needs_triton
def test_triton_scan_reads_strided_views():
    shuffled = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in tokens(12, n_kv=2, group=3, n=17)]
    assert not shuffled[0].is_contiguous()
    shuffled[2] = shuffled[2].transpose(2, 3).contiguous().transpose(2, 3)  # channels far apart
    expected = call(evict_scan, "reference", *shuffled, budget=7, decay=0.3)
    assert_same_scan(call(evict_scan, "triton", *shuffled, budget=7, decay=0.3), expected, torch.float32)


@needs_triton
def test_triton_scan_does_not_depend_on_its_tile_size(monkeypatch):
    from sparselens_kernels.evict_scan import kernel

    monkeypatch.setattr(kernel, "_TILE_ELEMENTS", 1)  # 4 slots a tile
    q, k, v = tokens(13, group=3, n=31)
    initial = torch.randint(0, 3, (1, 1, 31), generator=torch.Generator().manual_seed(14)).double()  # ties across tiles
    for numbers in ({"decay": 0.3}, {"scored": False, "initial": initial}):
        expected = call(evict_scan, "reference", q, k, v, budget=13, **numbers)
        assert_same_scan(call(evict_scan, "triton", q, k, v, budget=13, **numbers), expected, torch.float32)


@needs_triton
@pytest.mark.filterwarnings("ignore:invalid value")  # of numpy, inside the interpreter
def test_triton_scan_keeps_its_budget_after_a_nan_query():
    q, k, v = tokens(15, n=15)
    q[:, :, 9] = NAN
    result = call(evict_scan, "triton", q, k, v, budget=5)
    assert (result.evicted_at == NEVER).sum() == 5
    assert sorted(result.evicted_at[result.evicted_at != NEVER].tolist()) == list(range(6, 16))  # one by each query


# ---- evict_scan: laws of both backends


@both_backends
@pytest.mark.parametrize("budget", [23, NEVER])
def test_a_budget_of_the_length_or_more_is_dense_attention(backend, budget):
    q, k, v = tokens(16, n_kv=2, group=3, n=23)
    result = call(evict_scan, backend, q, k, v, budget=budget, decay=0.5)
    repeated = (x.repeat_interleave(3, dim=1) for x in (k, v))
    dense = torch.nn.functional.scaled_dot_product_attention(q, *repeated, is_causal=True)
    assert_close(result.out, dense, 1e-12 if backend == "reference" else 5e-6)
    assert (result.evicted_at == NEVER).all()
    assert result.threshold.isnan().all()


@both_backends
def test_a_later_token_never_changes_an_earlier_decision(backend):
    q, k, v = tokens(17, group=3, n=31)
    before = call(evict_scan, backend, q, k, v, budget=9, decay=0.3, snapshot_steps=(19,))
    for x in (q, k, v):
        x[:, :, 20:] = 10 * torch.randn(x[:, :, 20:].shape, generator=torch.Generator().manual_seed(18)).double()
    after = call(evict_scan, backend, q, k, v, budget=9, decay=0.3, snapshot_steps=(19,))
    assert not torch.equal(before.evicted_at, after.evicted_at)
    assert torch.equal(before.out[:, :, :20], after.out[:, :, :20])
    assert torch.equal(before.evicted_at.clamp(max=21)[..., :20], after.evicted_at.clamp(max=21)[..., :20])
    assert_close(after.threshold[..., :20], before.threshold[..., :20], 0)
    assert_close(after.snapshots, before.snapshots, 0)


@both_backends
def test_a_batch_of_one_is_the_row_of_a_batch(backend):
    q, k, v = tokens(19, n_batch=2, group=3, n=13)
    together = call(evict_scan, backend, q, k, v, budget=7, decay=0.5, recent=2)
    for b in range(2):
        alone = call(evict_scan, backend, q[b : b + 1], k[b : b + 1], v[b : b + 1], budget=7, decay=0.5, recent=2)
        assert torch.equal(alone.evicted_at[0], together.evicted_at[b])
        assert_close(alone.out[0], together.out[b], 1e-12 if backend == "reference" else 1e-6)
        assert_close(alone.score[0], together.score[b], 1e-12 if backend == "reference" else 1e-6)


@both_backends
@pytest.mark.parametrize("numbers", [{"n_sink": 2, "recent": 4, "decay": 0.8}, {"scored": False, "recent": 9}])
def test_calls_that_hand_on_their_state_are_the_one_shot_call(backend, numbers):
    q, k, v = tokens(20, n_kv=2, n=23)
    weight = per_key(21, k, 0.5, 2.0)
    whole = call(evict_scan, backend, q, k, v, budget=9, weight=weight, **numbers)
    cached = torch.zeros(1, 2, 0, dtype=torch.int64)
    score = torch.zeros(1, 2, 0, dtype=torch.float64)
    evicted_at = torch.full((1, 2, 23), NEVER, dtype=torch.int32)
    outs, thresholds = [], []
    for start, end in [(0, 5), (5, 17), (17, 18), (18, 23)]:  # filling, full on the way, one token, full
        positions = torch.cat([cached, torch.arange(start, end).expand(1, 2, -1)], dim=2)
        rows = positions[..., None].expand(*positions.shape, 64)
        part = call(
            evict_scan,
            backend,
            q[:, :, start:end],
            k.gather(2, rows),
            v.gather(2, rows),
            budget=9,
            weight=weight.gather(2, positions),
            positions=cached,
            score=score,
            start=start,
            **numbers,
        )
        evicted_at.scatter_(2, positions, part.evicted_at)
        alive = part.evicted_at == NEVER
        cached = positions[alive].view(1, 2, -1)
        score = part.score[alive].view(1, 2, -1)
        outs.append(part.out)
        thresholds.append(part.threshold)
    tolerance = 1e-12 if backend == "reference" else 2e-6
    assert torch.equal(evicted_at, whole.evicted_at)
    assert_close(torch.cat(outs, dim=2), whole.out, tolerance)
    assert_close(torch.cat(thresholds, dim=2), whole.threshold, tolerance)
    assert_close(score, whole.score[whole.evicted_at == NEVER].view(1, 2, -1), tolerance)


@both_backends
@pytest.mark.parametrize("recent", [3, 9])  # 9 leaves no choice
def test_a_snapshot_is_the_score_of_the_shorter_prompt(backend, recent):
    q, k, v = tokens(22, group=3, n=23)
    numbers = {"budget": 9, "decay": 0.6, "recent": recent}
    result = call(evict_scan, backend, q, k, v, snapshot_steps=(22, 4, 12), **numbers)
    for slot, step in enumerate((22, 4, 12)):
        shorter = call(evict_scan, backend, *(x[:, :, : step + 1] for x in (q, k, v)), **numbers)
        assert_close(result.snapshots[:, :, slot, : step + 1], shorter.score, 1e-12 if backend == "reference" else 2e-6)
        assert result.snapshots[:, :, slot, step + 1 :].isnan().all()


@both_backends
def test_a_snapshot_without_scores_is_the_initial_value_of_the_kept(backend):
    q, k, v = tokens(22, n=9)
    numbers = {"budget": 3, "scored": False, "initial": 0.5, "n_sink": 1, "recent": 2}
    result = call(evict_scan, backend, q, k, v, snapshot_steps=(1, 4), **numbers)
    assert_close(result.snapshots[0, 0, 0], torch.tensor([0.5] * 2 + [NAN] * 7), 0)
    assert_close(result.snapshots[0, 0, 1], torch.tensor([0.5, NAN, NAN, 0.5, 0.5] + [NAN] * 4), 0)


# ---- flash_column_score


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


# ---- arguments


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
        ({"budget": 10, "backend": "triton", "softcap": 30.0}, "soft-capping.* backend='reference'"),
        ({"budget": 10, "backend": "triton", "window": 8}, "sliding-window.* backend='reference'"),
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


# ---- backends


@needs_triton
@pytest.mark.skipif(DEVICE == "cuda", reason="needs a machine without CUDA")
@pytest.mark.parametrize("op", ["evict_scan", "flash_column_score"])
def test_a_kernel_on_the_cpu_without_the_interpreter_says_what_it_needs(op, monkeypatch):
    importlib.import_module(f"sparselens_kernels.{op}.kernel")  # with the interpreter, for the tests that come after
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    q, k, v = (x.float() for x in tokens(39, n=8))
    numbers = {"budget": 4} if op == "evict_scan" else {}
    with pytest.raises(ValueError, match="needs a CUDA tensor, or TRITON_INTERPRET=1 to run on the CPU"):
        {"evict_scan": evict_scan, "flash_column_score": flash_column_score}[op](q, k, v, backend="triton", **numbers)


def test_auto_takes_the_reference_on_the_cpu():
    q, k, v = (x.float() for x in tokens(40, n=8))
    assert evict_scan(q, k, v, budget=4).backend == "reference"
    assert flash_column_score(q, k, v).backend == "reference"


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from sparselens_kernels.evict_scan import kernel as scan
from sparselens_kernels.flash_column_score import kernel as flash
from sparselens_kernels.gated_attention import kernel as gate

HALF = {"q", "k", "v", "out", "gate_q", "gate_k"}
INTEGER = {"snapshot_of", "column", "evicted_at", "until", "dropped_at"}
FLOAT = {"decay", "weight", "initial", "score", "logit", "final", "threshold", "snapshots", "lse", "log2_decay"}
KIND = {"scale": "fp32", "bias": "fp32"}
KIND |= dict.fromkeys(HALF, "*fp16") | dict.fromkeys(INTEGER, "*i32") | dict.fromkeys(FLOAT, "*fp32")
blocks = dict(DIM=80, DIM_V=64, GROUP=3, BLOCK_D=128, BLOCK_V=64)
for kernel, constants in [
    (scan._scan, blocks | dict(SCORED=True, FORCED=False, REDUCTION="sum", BLOCK_G=4, BLOCK_S=32)),
    (flash._rows, blocks | dict(BLOCK=64, UNTIL=False)),
    (flash._rows, blocks | dict(BLOCK=64, UNTIL=True)),
    (flash._columns, dict(DIM=80, GROUP=3, MEAN=True, BLOCK=64, BLOCK_D=128, UNTIL=False)),
    (flash._columns, dict(DIM=80, GROUP=3, MEAN=True, BLOCK=64, BLOCK_D=128, UNTIL=True)),
    (gate._drops, dict(RANK=24, BLOCK=64, BLOCK_R=32, LAST=2**31 - 1)),
]:
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else KIND.get(name, "i32") for name in names}
    source = ASTSource(kernel, signature, constexprs={(names.index(name),): x for name, x in constants.items()})
    triton.compile(source, target=GPUTarget("cuda", 90, 32), options=dict(num_warps=8, num_stages=1))
"""


@needs_triton
def test_the_kernels_compile_for_a_gpu(tmp_path):
    """The interpreter runs what the compiler refuses; compiling for sm_90 needs no GPU."""
    env = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_references_import_no_triton_kernel():
    code = (
        "import sys, torch, sparselens_kernels; x = torch.ones(1, 1, 3, 4)\n"
        "sparselens_kernels.evict_scan(x, x, x, budget=2); sparselens_kernels.flash_column_score(x, x, x)\n"
        "print([name for name in sys.modules if name.endswith('.kernel') and name.startswith('sparselens_kernels.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("size", [40.0, 4000.0])
def test_logits_beyond_the_range_of_the_exponential_are_still_a_softmax(size):
    """float32 overflows at 88: the rows that do are done again with their maximum subtracted, the others stay as they are."""
    q, k, v = (x.float() for x in tokens(36, group=3, n=63))
    q[:, :, 20:40] *= size
    result = flash_column_score(q, k, v, backend="reference")
    p = attention_probabilities(q.double(), k.double())
    assert_close(result.out, p @ v.double(), 2e-4)
    assert_close(result.score, p.sum((1, 2))[:, None], 2e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_what_is_left_is_a_softmax_after_a_key_that_held_all_attention_is_dropped(dtype):
    q, k, v = (x.to(dtype) for x in tokens(37, n=9))
    q[..., 0], k[:, :, 0, 0] = 8.0, 1000.0
    weight = torch.ones(1, 1, 9, dtype=dtype)
    weight[..., 0] = 0.0  # so that it is the first to go, when the fourth query comes
    result = evict_scan(q, k, v, budget=3, weight=weight, backend="reference")
    assert result.evicted_at[0, 0, 0] == 4
    left = result.evicted_at[0, 0, :5] > 4
    p = torch.softmax((q[0, 0, 4] @ k[0, 0, :5].T / 8).masked_fill(~left, float("-inf")), dim=-1)
    assert_close(result.out[0, 0, 4], p @ v[0, 0, :5], 1e-5)

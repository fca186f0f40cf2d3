"""`evict_scan`: the reference against a step-by-step oracle and by hand, the Triton kernel against the reference."""

from __future__ import annotations

import pytest
import torch
from sparselens_kernels import NEVER, KeyMask, Window, evict_scan, flash_column_score
from sparselens_kernels.rows import decayed_sums

from tests.kernels.backends import (
    NAN,
    assert_close,
    assert_same_scan,
    both_backends,
    call,
    needs_triton,
    per_key,
    realise,
    tokens,
)
from tests.oracles import evict_step_by_step

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


# ---- worked out by hand


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


# ---- Triton against the reference


@pytest.fixture(params=["scan", "walk"])
def each_kernel(request, monkeypatch):
    """One launch for all queries, or one for a block of rows: which of them runs goes by the number of queries."""
    from sparselens_kernels.evict_scan import kernel

    monkeypatch.setattr(kernel, "_FEW_QUERIES", 10**9 if request.param == "scan" else 0)


@needs_triton
@pytest.mark.usefixtures("each_kernel")
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
@pytest.mark.usefixtures("each_kernel")
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
    monkeypatch.setattr(kernel, "_FEW_QUERIES", 31)
    q, k, v = tokens(13, group=3, n=31)
    initial = torch.randint(0, 3, (1, 1, 31), generator=torch.Generator().manual_seed(14)).double()  # ties across tiles
    for numbers in ({"decay": 0.3}, {"scored": False, "initial": initial}):
        expected = call(evict_scan, "reference", q, k, v, budget=13, **numbers)
        assert_same_scan(call(evict_scan, "triton", q, k, v, budget=13, **numbers), expected, torch.float32)


@needs_triton
@pytest.mark.usefixtures("each_kernel")
@pytest.mark.filterwarnings("ignore:invalid value")  # of numpy, inside the interpreter
def test_triton_scan_keeps_its_budget_after_a_nan_query():
    q, k, v = tokens(15, n=15)
    q[:, :, 9] = NAN
    result = call(evict_scan, "triton", q, k, v, budget=5)
    assert (result.evicted_at == NEVER).sum() == 5
    assert sorted(result.evicted_at[result.evicted_at != NEVER].tolist()) == list(range(6, 16))  # one by each query


@needs_triton
def test_a_walk_over_several_blocks_matches_the_float64_reference():
    q, k, v = tokens(38, n_batch=2, n_kv=2, group=3, n=290, dim=16)
    numbers = {"budget": (40, 130), "decay": 0.6, "n_sink": 2, "recent": 5, "snapshot_steps": (289, 50, 140)}
    assert_same_scan(
        call(evict_scan, "triton", q, k, v, **numbers), call(evict_scan, "reference", q, k, v, **numbers), torch.float32
    )


@needs_triton
@pytest.mark.parametrize(
    "hides", [{"window": 11}, {"softcap": 2.0}, {"mask": KeyMask([Window(7)], 1, 31)}, {"sink_q": True}], ids=str
)
def test_a_walk_takes_all_that_changes_the_logits(hides):
    q, k, v = tokens(39, group=2, n=31, dim=16)
    hides = {"sink_q": q.flip(3).contiguous()} if "sink_q" in hides else hides
    numbers = {"budget": 9, "decay": 0.6, "n_sink": 2, "recent": 3} | hides
    assert_same_scan(
        call(evict_scan, "triton", q, k, v, **numbers), call(evict_scan, "reference", q, k, v, **numbers), torch.float32
    )


# ---- laws of both backends


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


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        ("reference", torch.float32),
        ("reference", torch.float64),
        pytest.param("triton", torch.float32, marks=needs_triton),
    ],
)
@pytest.mark.usefixtures("each_kernel")
def test_what_is_left_is_a_softmax_after_a_key_that_held_all_attention_is_dropped(backend, dtype):
    q, k, v = tokens(37, n=9)
    q[..., 0], k[:, :, 0, 0] = 8.0, 1000.0
    weight = torch.ones(1, 1, 9, dtype=dtype)
    weight[..., 0] = 0.0  # so that it is the first to go, when the fourth query comes
    result = call(evict_scan, backend, q, k, v, dtype=dtype, budget=3, weight=weight)
    assert result.evicted_at[0, 0, 0] == 4
    left = result.evicted_at[0, 0, :5] > 4
    p = torch.softmax((q[0, 0, 4] @ k[0, 0, :5].T / 8).masked_fill(~left, float("-inf")), dim=-1)
    assert_close(result.out[0, 0, 4], p @ v[0, 0, :5], 1e-5)

"""evict_scan where heads keep unequal numbers of keys: each head decides as it does alone, and sees no empty slot."""

from __future__ import annotations

import pytest
import torch
from sparselens_kernels import NEVER, KeyMask, Window, evict_scan, staying

from tests.kernels.backends import assert_close, both_backends, call, per_key, tokens

BUDGETS = (9, 16, NEVER, 12)
NUMBERS = [
    {"decay": 0.3},
    {"decay": 0.0},
    {"decay": 0.8, "n_sink": 2, "recent": 3, "reduction": "max"},
    {"scored": False, "n_sink": 4, "recent": 5},  # one head has no choice
    {"decay": 0.9, "recent": 9},
]


def by_head(result, head: int):
    """One KV head's part of a scan."""
    group = result.out.shape[1] // result.score.shape[1]
    parts = {name: getattr(result, name)[:, [head]] for name in ("evicted_at", "score", "threshold", "snapshots")}
    return result._replace(out=result.out[:, head * group : (head + 1) * group], **parts)


def assert_same(one, other, tolerance: float) -> None:
    assert torch.equal(one.evicted_at, other.evicted_at)
    for name in ("out", "score", "threshold", "snapshots"):
        assert_close(getattr(one, name), getattr(other, name), tolerance)


def check_each_head_alone(backend, n, budgets, tolerance, snapshot_steps=(20, 3), **numbers):
    q, k, v = tokens(51, n_batch=2, n_kv=len(budgets), group=2, n=n, dim=16)
    extra = {"weight": per_key(52, k, 0.5, 2.0), "snapshot_steps": snapshot_steps}
    if not numbers.get("scored", True):
        extra |= {"initial": per_key(53, k)}
    together = call(evict_scan, backend, q, k, v, budget=budgets, **extra, **numbers)
    for head, budget in enumerate(budgets):
        alone = {
            name: x[:, [head]] if isinstance(x, torch.Tensor) and x.shape[1] > 1 else x
            for name, x in (extra | numbers).items()
        }
        queries = q[:, 2 * head : 2 * head + 2]
        one = call(evict_scan, backend, queries, k[:, [head]], v[:, [head]], budget=budget, **alone)
        assert_same(by_head(together, head), one, tolerance)
        dropped = (together.evicted_at[:, head] != NEVER).sum(-1)
        assert (dropped == max(0, n - budget)).all()


@both_backends
@pytest.mark.parametrize("numbers", NUMBERS, ids=str)
def test_each_head_drops_by_its_own_budget_as_it_does_alone(backend, numbers):
    check_each_head_alone(backend, 31, BUDGETS, 1e-12 if backend == "reference" else 2e-6, **numbers)


@pytest.mark.parametrize("numbers", [*NUMBERS, {"scored": False, "n_sink": 4, "recent": 36}], ids=str)
def test_so_it_is_over_several_blocks_of_rows(numbers):
    check_each_head_alone("reference", 300, (40, 131, NEVER, 200), 1e-12, (299, 50, 140), **numbers)


@pytest.mark.parametrize(
    "limits",
    [{"window": 11}, {"softcap": 2.0}, {"mask": KeyMask([Window(7)], 1, 31)}, {"until": True}, {"protected": True}],
    ids=lambda limits: next(iter(limits)),
)
def test_so_it_is_under_all_that_hides_or_protects(limits):
    if "until" in limits:
        hidden = torch.full((2, 1, 31), NEVER, dtype=torch.int32)
        hidden[..., 3::5] = torch.arange(3, 31, 5).int() + 4
        limits = {"until": hidden}
    if "protected" in limits:
        limits = {"protected": torch.arange(31).expand(2, 1, 31) % 9 == 4}
    if "mask" in limits:  # of one text
        q, k, v = tokens(54, n_kv=2, group=2, n=31, dim=16)
        together = call(evict_scan, "reference", q, k, v, budget=(9, 16), mask=KeyMask([Window(7)], 2, 31))
        for head, budget in enumerate((9, 16)):
            own = q[:, 2 * head : 2 * head + 2], k[:, [head]], v[:, [head]]
            assert_same(by_head(together, head), call(evict_scan, "reference", *own, budget=budget, **limits), 1e-12)
        return
    check_each_head_alone("reference", 31, BUDGETS, 1e-12, decay=0.6, n_sink=1, recent=2, **limits)


def test_re_rotated_sinks_are_each_heads_first_keys():
    q, k, v = tokens(55, n_kv=3, group=2, n=40, dim=16)
    sink_q = q.flip(3).contiguous()
    numbers = {"n_sink": 3, "recent": 6, "scored": False}
    budgets = (9, 20, NEVER)
    together = call(evict_scan, "reference", q, k, v, budget=budgets, sink_q=sink_q, **numbers)
    for head, budget in enumerate(budgets):
        heads = slice(2 * head, 2 * head + 2)
        own = q[:, heads], k[:, [head]], v[:, [head]]
        alone = call(evict_scan, "reference", *own, budget=budget, sink_q=sink_q[:, heads], **numbers)
        assert_same(by_head(together, head), alone, 1e-12)


@both_backends
@pytest.mark.parametrize("numbers", [{"decay": 0.8, "n_sink": 2, "recent": 4}, {"scored": False, "recent": 8}], ids=str)
def test_calls_that_hand_on_a_cache_with_empty_slots_are_the_one_shot_call(backend, numbers):
    n, n_kv, budgets = 26, 3, (8, 14, NEVER)
    q, k, v = tokens(56, n_batch=2, n_kv=n_kv, group=2, n=n, dim=16)
    whole = call(evict_scan, backend, q, k, v, budget=budgets, **numbers)
    cached, score = torch.zeros(2, n_kv, 0, dtype=torch.int64), torch.zeros(2, n_kv, 0)
    evicted_at = torch.full((2, n_kv, n), NEVER, dtype=torch.int32)
    outs, widths = [], []
    for start, end in [(0, 5), (5, 12), (12, 13), (13, 21), (21, 22), (22, n)]:
        positions = torch.cat([cached, torch.arange(start, end).expand(2, n_kv, -1)], dim=2)
        rows = positions.clamp_min(0)[..., None].expand(-1, -1, -1, 16)
        own_k, own_v = k.gather(2, rows), v.gather(2, rows)
        empty = (positions < 0)[..., None]
        own_k, own_v = (
            own_k.masked_fill(empty, 30.0),
            own_v.masked_fill(empty, 1e3),
        )  # what an empty slot holds is nothing
        queries = q[:, :, start:end]
        part = call(
            evict_scan, backend, queries, own_k, own_v, budget=budgets,
            positions=cached, score=score, start=start, **numbers,
        )  # fmt: skip
        assert (part.evicted_at[positions < 0] == 0).all()
        assert part.score[positions < 0].isnan().all()
        going = part.evicted_at[positions >= 0]
        evicted_at.view(-1)[(torch.arange(2 * n_kv).view(2, n_kv, 1) * n + positions)[positions >= 0]] = going
        alive = part.evicted_at == NEVER
        stay = staying(alive)
        cached = positions.gather(2, stay).where(alive.gather(2, stay), -1)
        score = part.score.gather(2, stay)  # nan where empty, as a cache may hold
        outs.append(part.out)
        widths.append(cached.shape[2])
        assert (cached >= 0).sum(2).tolist() == [[min(end, budget) for budget in budgets]] * 2
    assert widths == [5, 12, 13, 21, 22, 26]
    assert torch.equal(evicted_at, whole.evicted_at)
    tolerance = 1e-12 if backend == "reference" else 2e-6
    assert_close(torch.cat(outs, dim=2), whole.out, tolerance)


@both_backends
def test_rows_of_a_batch_may_hold_unequal_numbers_too(backend):
    """As a cut leaves them that gives each head of each text what it needs."""
    q, k, v = tokens(57, n_batch=2, n_kv=2, group=2, n=20, dim=16)
    held = [[5, 9], [12, 2]]
    positions = torch.stack(
        [torch.stack([torch.arange(12).where(torch.arange(12) >= 12 - n, -1) for n in row]) for row in held]
    )
    state = {"positions": positions, "score": per_key(58, k[:, :, :12]), "start": 12}
    for budget in (13, NEVER):
        together = call(evict_scan, backend, q[:, :, 12:], k, v, budget=budget, decay=0.7, recent=2, **state)
        for text in range(2):
            for head in range(2):
                n = held[text][head]
                own_k, own_v = (x[[text]][:, [head], 12 - n :] for x in (k, v))
                alone = call(
                    evict_scan, backend, q[[text], 2 * head : 2 * head + 2, 12:], own_k, own_v, budget=budget,
                    decay=0.7, recent=2, positions=positions[[text]][:, [head], 12 - n :],
                    score=state["score"][[text]][:, [head], 12 - n :], start=12,
                )  # fmt: skip
                mine = by_head(together, head)
                tolerance = 1e-12 if backend == "reference" else 2e-6
                assert torch.equal(mine.evicted_at[[text], :, 12 - n :], alone.evicted_at)
                assert_close(mine.out[[text]], alone.out, tolerance)
                assert_close(mine.score[[text], :, 12 - n :], alone.score, tolerance)
                assert_close(mine.threshold[[text]], alone.threshold, tolerance)


def test_staying_columns_are_in_order_and_at_the_end():
    alive = torch.tensor([[1, 0, 1, 0, 1], [0, 0, 0, 1, 0]]).bool()
    assert staying(alive)[0].tolist() == [0, 2, 4]
    assert staying(alive)[1, -1] == 3
    assert alive[1, staying(alive)[1]].tolist() == [False, False, True]
    assert staying(alive[:1]).tolist() == [[0, 2, 4]]
    assert staying(torch.zeros(2, 3, dtype=torch.bool)).shape == (2, 0)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"budget": (3, 4, 5)}, "one number, or one for each of 2 KV heads; got 3"),
        ({"budget": (3, 0)}, "at least 1 key; got 0"),
        ({"budget": (3, 9), "n_sink": 4}, r"between 0 and the budget of 3; got 4 \+ 0"),
    ],
)
def test_budgets_that_do_not_fit_are_named(numbers, message):
    with pytest.raises(ValueError, match=message):
        evict_scan(*tokens(59, n_kv=2, n=8), **numbers)


def test_a_head_that_holds_more_than_its_own_budget_is_named():
    q, k, v = tokens(59, n_kv=2, n=8)
    positions = torch.arange(6).expand(1, 2, 6).clone()
    state = {"score": torch.zeros(1, 2, 6), "start": 6}
    with pytest.raises(ValueError, match="the cache holds 6 keys, more than the budget of 4"):
        evict_scan(q[:, :, 6:], k, v, budget=(4, 9), positions=positions, **state)
    positions[0, 0, :2] = -1
    evict_scan(q[:, :, 6:], k, v, budget=(4, 9), positions=positions, **state)

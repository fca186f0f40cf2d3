"""evict_scan with a memory: queries read the mean key and value of what was evicted, as so many keys."""

from __future__ import annotations

import pytest
import torch
from sparselens_kernels import EMPTY, NEVER, Memory, evict_scan, staying

from tests.kernels.backends import assert_close, realise, tokens
from tests.oracles import attention_probabilities, evict_step_by_step


@pytest.mark.parametrize(
    "numbers",
    [
        {"decay": 0.3},
        {"recent": 10, "reduction": "mean"},
        {"n_sink": 4, "recent": 17},  # no choice
        {"scored": False, "recent": 5},
        {"decay": 0.5, "reduction": "max", "softcap": 1.5},
    ],
    ids=str,
)
@pytest.mark.parametrize("n", [63, 150])  # a block of the reference is 128 rows
def test_it_is_what_the_step_by_step_oracle_reads_and_drops(numbers, n):
    q, k, v = tokens(61, n_batch=2, n_kv=2, group=3, n=n, dim=16, dim_v=8)
    result = evict_scan(q, k, v, budget=21, memory=Memory.empty(k, v), **numbers)
    out, evicted_at, _, score = evict_step_by_step(q, k, v, budget=21, remembers=True, **numbers)
    assert torch.equal(result.evicted_at.long(), evicted_at)
    assert_close(result.out, out, 1e-12)
    assert_close(result.score, score, 1e-12)
    gone = (evicted_at < NEVER).double()
    assert_close(result.memory.key, (gone[..., None] * k).sum(2), 1e-12)
    assert_close(result.memory.value, (gone[..., None] * v).sum(2), 1e-12)
    assert (result.memory.n_evicted == n - 21).all()


def test_by_hand():
    # Query 2 drops key 1 (tests/kernels/test_evict_scan.py). Query 3 then sees keys 0, 2, 3 and the memory, which is key 1:
    # all four, as the dense model does. Its scores are 2 + .4, .6 + .2, .2: key 3 goes.
    rows = [[1.0, 0, 0, 0], [0.9, 0.1, 0, 0], [0.1, 0.3, 0.6, 0], [0.4, 0.2, 0.2, 0.2]]
    q, k, v = realise(rows)
    result = evict_scan(q, k, v, budget=2, scale=1.0, memory=Memory.empty(k, v))
    assert result.evicted_at.tolist() == [[[NEVER, 3, NEVER, 4]]]
    assert_close(result.out[0, 0, 3], torch.tensor(rows[3]), 1e-6)
    assert_close(result.score[0, 0, ::2], torch.tensor([2.4, 0.8]), 1e-6)


def test_of_equal_keys_it_is_what_the_dense_model_reads():
    q, k, v = tokens(62, n_kv=2, group=2, n=40, dim=16)
    k[:, :, 2:30], v[:, :, 2:30] = k[:, :, 2:3], v[:, :, 2:3]
    result = evict_scan(q, k, v, budget=12, n_sink=2, recent=10, scored=False, memory=Memory.empty(k, v))
    assert (result.evicted_at[..., 2:30] < NEVER).all()  # and no other
    dense = attention_probabilities(q, k) @ v.repeat_interleave(2, 1)
    assert_close(result.out, dense, 1e-12)


def test_it_takes_no_more_attention_than_the_evicted_keys_would():
    """The mean of exponentials is at least the exponential of the mean."""
    q, k, _ = tokens(63, n_kv=1, group=2, n=60, dim=16)
    at = torch.eye(60, dtype=torch.float64)[None, None]  # the output is then the attention itself
    result = evict_scan(q, k, at, budget=12, recent=6, memory=Memory.empty(k, at))
    gone = (torch.arange(60)[:, None] >= result.evicted_at[0, 0].long()).double()
    remembered, dense = ((p[0] * gone).sum(-1) for p in (result.out, attention_probabilities(q, k)))
    assert (remembered <= dense + 1e-12).all() and (remembered[:, 20:] > 0).all()


@pytest.mark.parametrize("cuts", [[31], [13, 14, 15, 40], range(20, 50)], ids=str)
def test_calls_one_after_another_are_one_call(cuts):
    q, k, v = tokens(64, n_kv=2, group=2, n=50, dim=16)
    numbers = {"budget": (9, 14), "decay": 0.7}
    whole = evict_scan(q, k, v, **numbers, memory=Memory.empty(k, v))
    held = torch.zeros(1, 2, 0, dtype=torch.int64)
    score, memory, parts, begin = torch.zeros(1, 2, 0, dtype=torch.float64), Memory.empty(k, v), [], 0
    for end in [*cuts, 50]:
        if begin == end:
            continue
        new = torch.arange(begin, end).expand(1, 2, -1)
        every = torch.cat([held, new], 2)
        columns = every.clamp_min(0)[..., None].expand(-1, -1, -1, 16)
        part = evict_scan(
            q[:, :, begin:end],
            k.gather(2, columns),
            v.gather(2, columns),
            positions=held,
            score=score,
            start=begin,
            memory=memory,
            **numbers,
        )
        alive = part.evicted_at == NEVER
        left = staying(alive)
        held = every.gather(2, left).masked_fill_(~alive.gather(2, left), EMPTY)
        score, memory, begin = part.score.gather(2, left), part.memory, end
        parts.append(part.out)
    assert_close(torch.cat(parts, 2), whole.out, 1e-12)
    for one, other in zip(memory, whole.memory, strict=True):
        assert_close(one, other, 1e-12)


def test_what_a_gate_has_hidden_does_not_enter():
    q, k, v = tokens(65, n_kv=2, group=1, n=30, dim=16)
    until = torch.full((1, 1, 30), NEVER, dtype=torch.int32)
    until[..., 3:9] = 10
    result = evict_scan(q, k, v, budget=12, recent=6, until=until, memory=Memory.empty(k, v))
    assert (result.evicted_at[..., 3:9] < NEVER).all()  # their slots went first
    entered = (result.evicted_at < NEVER) & (until == NEVER)
    assert_close(result.memory.key, (entered[..., None] * k).sum(2), 1e-12)
    assert (result.memory.n_evicted == 12).all()  # 18 went, 6 of them hidden


def test_the_triton_kernel_says_why_it_cannot():
    q, k, v = (x.float() for x in tokens(66, n=9))
    with pytest.raises(ValueError, match="cannot run this call: a memory of what was evicted"):
        evict_scan(q, k, v, budget=3, memory=Memory.empty(k, v), backend="triton")

"""What a gate drops, and attention, column scores and scans over what it left, against loops and by hand."""

from __future__ import annotations

import pytest
import torch
from sparselens_kernels import NEVER, evict_scan, flash_column_score, gate_drops, gated_attention

from tests import oracles
from tests.kernels.backends import DEVICE, both_backends


@both_backends
@pytest.mark.parametrize("past", [0, 5])
@pytest.mark.parametrize(("n", "rank"), [(1, 4), (63, 16), (123, 24)])
def test_drops_are_those_of_one_pair_at_a_time(backend, n, rank, past):
    draw = torch.Generator().manual_seed(n)
    gate_q, gate_k = (torch.randn(2, n + past, rank, generator=draw) for _ in range(2))
    gate_q = gate_q / rank**0.5
    device = "cpu" if backend == "reference" else DEVICE
    found = gate_drops(
        gate_q[:, past:].to(device), gate_k.to(device), bias=2.0, start=past + 100, backend=backend
    ).cpu()
    for row in range(2):
        x = gate_q[row].double() @ gate_k[row].double().T + 2.0
        x[:past] = 1.0  # what came before drops nothing here
        expected = oracles.gate_step_by_step(x)
        shifted = torch.where(expected == NEVER, expected, expected + 100)
        assert (found[row] == shifted).all()
    assert n == 1 or ((found < NEVER).any() and (found == NEVER).any())


@both_backends
@pytest.mark.parametrize(("group", "dim", "n"), [(1, 64, 63), (3, 80, 123), (4, 128, 33)])
def test_gated_attention_is_a_softmax_over_what_is_left_under_padding_too(backend, group, dim, n):
    draw = torch.Generator().manual_seed(dim)
    q = torch.randn(2, 2 * group, n, dim, generator=draw)
    k, v = (torch.randn(2, 2, n, dim, generator=draw) for _ in range(2))
    gate_q, gate_k = (torch.randn(2, n, 16, generator=draw) for _ in range(2))
    first = torch.tensor([0, 11])
    device = "cpu" if backend == "reference" else DEVICE
    given = [t.to(device) for t in (q, k, v, gate_q / 4, gate_k)]
    result = gated_attention(*given, bias=1.5, first_key=first.to(device), backend=backend)
    assert result.backend == backend
    for row, start in enumerate(first.tolist()):
        own = [t[row : row + 1, ..., start:, :] for t in (q, k, v)]
        x = gate_q[row, start:].double() / 4 @ gate_k[row, start:].double().T + 1.5
        dropped_at = oracles.gate_step_by_step(x)
        hidden = torch.arange(n - start)[:, None] >= dropped_at
        p = oracles.attention_probabilities(own[0], own[1])
        p = p.masked_fill(hidden, 0.0)
        expected = (p / p.sum(-1, keepdim=True)) @ own[2].double().repeat_interleave(group, 1)
        torch.testing.assert_close(result.out[row : row + 1, :, start:].cpu().double(), expected, rtol=0, atol=2e-5)
        alone = gated_attention(*(t[row : row + 1, ..., start:, :] for t in given), bias=1.5, backend=backend)
        torch.testing.assert_close(result.out[row, :, start:], alone.out[0], rtol=0, atol=1e-5)


@both_backends
def test_column_scores_count_what_a_key_is_given_while_it_is_seen(backend):
    draw = torch.Generator().manual_seed(5)
    q = torch.randn(1, 6, 63, 64, generator=draw)
    k, v = (torch.randn(1, 2, 63, 64, generator=draw) for _ in range(2))
    until = torch.randint(1, 80, (1, 2, 63), generator=draw).maximum(torch.arange(1, 64)).int()
    device = "cpu" if backend == "reference" else DEVICE
    result = flash_column_score(
        q.to(device), k.to(device), v.to(device), until=until.to(device), decay=0.9, backend=backend
    )
    hidden = torch.arange(63)[:, None] >= until[0, :, None, :]  # [Hkv, T, T]
    p = oracles.attention_probabilities(q, k).view(1, 2, 3, 63, 63).masked_fill(hidden[:, None], 0.0)
    p = p / p.sum(-1, keepdim=True)
    age = 0.9 ** torch.arange(62, -1, -1, dtype=torch.float64)
    torch.testing.assert_close(result.score.cpu().double(), (p.sum(2) * age[:, None]).sum(2), rtol=0, atol=2e-5)


def test_a_scan_with_hidden_and_protected_keys_by_hand():
    """Uniform attention, unscored, budget 3: the oldest goes. Key 2 is hidden from query 4 on, key 0 is protected.

    query 3  holds 0 1 2 3: 1 is the oldest that may go
    query 4  holds 0 2 3 4: 2 is hidden, so it goes first
    query 5  holds 0 3 4 5: 3 goes
    """
    q = k = torch.zeros(1, 1, 6, 4, dtype=torch.float64)
    v = torch.eye(6, dtype=torch.float64)[None, None]
    until = torch.full((1, 1, 6), NEVER, dtype=torch.int32)
    until[..., 2] = 4
    protected = torch.zeros(1, 1, 6, dtype=torch.bool)
    protected[..., 0] = True
    found = evict_scan(q, k, v, budget=3, recent=3, scored=False, until=until, protected=protected)
    assert found.evicted_at[0, 0].tolist() == [NEVER, 4, 5, 6, NEVER, NEVER]
    third, half = 1 / 3, 1 / 4
    assert found.out[0, 0, 4].tolist() == pytest.approx([third, 0, 0, third, third, 0])
    assert found.out[0, 0, 5].tolist() == pytest.approx([half, 0, 0, half, half, half])

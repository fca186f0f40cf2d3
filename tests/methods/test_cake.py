"""CAKE: votes with their variance, and layers that keep keys by how wide and how unsteady their attention is."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsity_core import generate, methods, run
from sparsity_core.kinds import LayerShape
from sparsity_core.methods.eviction.cake.preferences import Spread, measure, shared_out
from tests import tiny
from tests.inference.every import pipeline, same_traces
from tests.methods.qkv import Layer, best, dense_qkv, kept_after
from tests.methods.test_ranked_evictions import held

PROMPT, N, BUDGET, WINDOW = 40, 56, 14, 4
IDS = tiny.ids(N)
METHOD = f"cake(budget={BUDGET}, observation_window={WINDOW}, pool=3)"


def test_a_key_counts_by_the_mean_and_the_variance_of_its_attention():
    """Queries 2 and 3 give key 0 the shares 1/3 and 3/6, key 1 the shares 1/3 and 1/6: means 5/12 and 3/12, variances 1/72."""
    found = held([[1], [0], [0], [0]], [[0.0], [math.log(3)]])
    how = {"budget": 12, "observation_window": 2}
    assert methods.CAKE(**how, pool=1, gamma=0.0).rank(found)[0, 0].tolist() == pytest.approx([5 / 12, 3 / 12, 0, 0])
    assert methods.CAKE(**how, pool=1, gamma=36.0).rank(found)[0, 0].tolist() == pytest.approx([11 / 12, 9 / 12, 0, 0])
    pooled = methods.CAKE(**how, pool=3, gamma=36.0).rank(found)[0, 0]
    assert pooled[:2].tolist() == pytest.approx([20 / 36, 20 / 36])  # the window's own keys lend nothing


def test_preferences_are_the_product_of_two_powers():
    """√1 · √9 against √4 · √1: 3 to 2; with τ₁ = 1 and τ₂ = ½: 1 · 81 against 4 · 1."""
    spread = Spread(np.array([1.0, 4.0]), np.array([9.0, 1.0]))
    one, two = spread.preferences(2.0, 2.0)
    assert one / two == pytest.approx(3 / 2)
    one, two = spread.preferences(1.0, 0.5)
    assert one / two == pytest.approx(81 / 4)


def test_budgets_are_shared_out_by_preference():
    """30 keys by 1 : 2 : 5 are 3.75, 7.5 and 18.75. With room for 12 the last has 12, and 18 by 1 : 2 are 6 and 12."""
    wanted = np.array([1.0, 2.0, 5.0])
    assert shared_out(wanted, 10, 100) == [4, 7, 19]
    assert shared_out(wanted, 10, 12) == [6, 12, 12]
    assert shared_out(wanted, 10, 10) == [10, 10, 10]
    assert shared_out(np.zeros(3), 10, 100) == [10, 10, 10]
    assert shared_out(np.array([0.0, 0.0, 1.0]), 10, 16) == [7, 7, 16]


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=40), st.integers(0, 300), st.integers(1, 300))
def test_the_budgets_add_up_and_fit(wanted, each, more):
    shares = shared_out(np.array(wanted), each, each + more)
    assert sum(shares) == each * len(wanted)
    assert min(shares) >= 0 and max(shares) <= each + more


def shares_of(layer: Layer, head: int, window: int = WINDOW) -> list[list[float]]:
    """One query head's attention of the last queries to each key of the prompt, a row each."""
    q, k, _ = layer
    rows = []
    for query in range(PROMPT - window, PROMPT):
        weight = [math.exp(float(q[head, query] @ k[head // 2, key]) / 4) for key in range(query + 1)]
        rows.append([w / sum(weight) for w in weight] + [0.0] * (PROMPT - 1 - query))
    return rows


def spread(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return sum((x - mean) ** 2 for x in values) / (len(values) - 1)


def naive() -> tuple[list[float], list[list[dict[int, float]]]]:
    """(the preference of each layer, the pooled votes of each layer and KV head for the keys before the window)."""
    wanted, votes = [], []
    before = range(PROMPT - WINDOW)
    for layer in dense_qkv(tiny.model(), IDS[:PROMPT]):
        heads = [shares_of(layer, head) for head in range(4)]
        entropy = sum(-p * math.log(p) for rows in heads for row in rows for p in row[: PROMPT - WINDOW])
        variance = sum(spread([row[key] for row in rows]) for rows in heads for key in before)
        wanted.append(entropy * variance)
        own = []
        for kv in range(2):
            raw = {
                key: sum(
                    sum(row[key] for row in heads[h]) / WINDOW + 200 * spread([row[key] for row in heads[h]])
                    for h in (2 * kv, 2 * kv + 1)
                )
                for key in before
            }
            own.append({key: (raw.get(key - 1, 0.0) + raw[key] + raw.get(key + 1, 0.0)) / 3 for key in before})
        votes.append(own)
    return wanted, votes


def test_layers_and_keys_are_those_of_a_naive_count():
    wanted, votes = naive()
    measured = measure(tiny.model(), tuple(IDS[:PROMPT]), WINDOW).preferences(1.0, 1.0)
    np.testing.assert_allclose(measured / measured.sum(), np.array(wanted) / sum(wanted), rtol=1e-5)
    trace = run(tiny.model(), IDS, pipeline(METHOD), n_prefill=PROMPT)
    assert trace.budgets.sum() == 3 * 2 * BUDGET
    shares = [(BUDGET - WINDOW) * 3 * w / sum(wanted) for w in wanted]
    for layer in range(3):
        assert abs(trace.budgets[layer, 0] - WINDOW - shares[layer]) < 1  # rounded
        for head in range(2):
            kept = best(votes[layer][head], int(trace.budgets[layer, head]) - WINDOW)
            assert kept_after(trace, layer, head, PROMPT - 1) == [*kept, *range(PROMPT - WINDOW, PROMPT)]
            assert kept_after(trace, layer, head, N - 2)[-(N - 1 - PROMPT) :] == list(range(PROMPT, N - 1))
    assert len(set(trace.budgets[:, 0].tolist())) > 1


def test_masked_simulation_equals_physical_eviction():
    with tiny.hidden_states(tiny.model().hf) as seen:
        real = generate(tiny.model(), IDS[:PROMPT], pipeline(METHOD), max_new_tokens=10, stop_at_eos=False).trace
        physical = torch.cat(seen[-11:-1])  # the prompt and 9 steps; a measure may come before, a dense pass comes last
        masked = run(tiny.model(), real.token_ids.tolist(), pipeline(METHOD), n_prefill=PROMPT)
    torch.testing.assert_close(seen[-2], physical, rtol=0, atol=1e-9)
    same_traces(masked, real, rtol=2e-6, atol=1e-8)
    assert masked.kv_bytes == real.kv_bytes == (3 * 2 * (BUDGET + 9)) * 2 * 16 * 8


def test_no_token_after_the_prompt_changes_a_budget():
    one = run(tiny.model(), IDS, pipeline(METHOD), n_prefill=PROMPT)
    two = run(tiny.model(), [*IDS[:PROMPT], *tiny.ids(N - PROMPT, seed=9)], pipeline(METHOD), n_prefill=PROMPT)
    np.testing.assert_array_equal(one.budgets, two.budgets)
    np.testing.assert_array_equal(one.evicted_at[..., :PROMPT] == PROMPT, two.evicted_at[..., :PROMPT] == PROMPT)


def test_dense_layers_keep_everything_and_take_nothing_of_the_others():
    trace = run(tiny.model(), IDS, pipeline(METHOD.replace("pool=3", "pool=3, dense_layers=1")), n_prefill=PROMPT)
    assert (trace.budgets[0] == N).all() and trace.budgets[1:].sum() == 2 * 2 * BUDGET


def test_a_budget_of_the_whole_prompt_is_the_dense_model():
    trace = run(tiny.model(), IDS, pipeline(f"cake(budget={PROMPT}, observation_window=4)"), n_prefill=PROMPT)
    assert (trace.evicted_at == N).all() and trace.kl_to_dense.max() < 1e-12


def test_ada_kv_shares_out_each_layer_s_own_budget():
    method = "ada_kv(budget=14, base='cake(observation_window=4, pool=3)')"
    alone, both = (run(tiny.model(), IDS, pipeline(m), n_prefill=PROMPT) for m in (METHOD, method))
    np.testing.assert_array_equal(alone.budgets.sum(1), both.budgets.sum(1))
    assert (both.budgets[:, 0] != both.budgets[:, 1]).any()


def test_without_a_prompt_every_layer_has_as_much():
    assert methods.CAKE(budget=64).rule(LayerShape(1, 3, 2)).budget == 64
    assert methods.CAKE(budget=64).cuts_once


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("cake(budget=12)", "cake: observation_window = 32 is above the budget of 12"),
        ("cake(budget=12, observation_window=1)", "observation_window is at least 2; got 1"),
        ("cake(budget=64, pool=4)", "cake: pool is an odd number of keys; got 4"),
        ("cake(budget=64, tau1=0.0)", "cake: tau1 is at least 0.01; got 0.0"),
        ("cake(budget=64, gamma=-1.0)", "cake: gamma is at least 0; got -1.0"),
        ("cake(budget=64, layer_budget=pyramid)", "layer_budget is one of cake, uniform; got 'pyramid'"),
    ],
)
def test_what_does_not_fit_is_refused(method, said):
    with pytest.raises(ValueError, match=said):
        pipeline(method)

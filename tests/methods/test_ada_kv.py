"""Ada-KV: the heads of a layer share its budget by need, whatever method votes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparsity_core import methods, run
from tests import tiny
from tests.inference.every import pipeline
from tests.methods.qkv import dense_qkv, kept_after

N, PROMPT, BUDGET = 60, 40, 10


def test_heads_share_a_budget_by_hand():
    """Two heads of four keys under a budget of two: four stay of all eight, the highest of both: 9, 8, 7 of one, 6 of the other.

    With a safeguard of a whole budget each keeps its own two.
    """
    ranked = torch.tensor([[[9.0, 1.0, 8.0, 7.0], [2.0, 6.0, 0.0, 5.0]]])
    assert methods.AdaKV(budget=32, safeguard=0.0).allot(ranked, 2).tolist() == [[3, 1]]
    assert methods.AdaKV(budget=32, safeguard=0.5).allot(ranked * torch.tensor([1.0, -1.0])[:, None], 2).tolist() == [
        [3, 1]
    ]
    assert methods.AdaKV(budget=32, safeguard=1.0).allot(ranked, 2).tolist() == [[2, 2]]


@pytest.mark.parametrize("safeguard", [0.0, 0.5])
def test_what_stays_is_the_highest_of_all_heads_together(safeguard):
    """With knorm's votes, beside a plain sort over (head, key)."""
    ids = tiny.ids(N)
    trace = run(
        tiny.model(), ids, pipeline(f"ada_kv(budget={BUDGET}, base=knorm, safeguard={safeguard})"), n_prefill=PROMPT
    )
    lengths = set()
    for layer, (_, k, _) in enumerate(dense_qkv(tiny.model(), ids[:PROMPT])):
        vote = {(head, key): -float(k[head, key].norm()) for head in range(2) for key in range(PROMPT)}
        order = sorted(vote, key=lambda pair: vote[pair], reverse=True)
        safe = [pair for head in range(2) for pair in [p for p in order if p[0] == head][: int(safeguard * BUDGET)]]
        chosen = {*safe, *[pair for pair in order if pair not in safe][: 2 * BUDGET - len(safe)]}
        for head in range(2):
            wanted = sorted(key for own, key in chosen if own == head)
            assert kept_after(trace, layer, head, PROMPT - 1) == wanted
            assert trace.budgets[layer, head] == len(wanted) >= safeguard * BUDGET
            lengths.add(len(wanted))
    assert len(lengths) > 1


def test_a_safeguard_of_the_whole_budget_is_the_base_itself():
    ids = tiny.ids(N)
    inner = "snapkv(budget=10, observation_window=4, pool=3)"
    base = run(tiny.model(), ids, pipeline(inner), n_prefill=PROMPT)
    ada = "ada_kv(budget=10, base='snapkv(observation_window=4, pool=3)', safeguard=1.0)"
    np.testing.assert_array_equal(run(tiny.model(), ids, pipeline(ada), n_prefill=PROMPT).evicted_at, base.evicted_at)


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        (
            "base=h2o",
            "ada_kv: base is a method that cuts once, when the prompt ends, and drops nothing else, as snapkv",
        ),
        ("base='a2sf(variant=prefill, forgetting_factor=1.0)'", "drops nothing else"),
        ("base=keydiff", r"'keydiff\(every=0\)'; got keydiff"),
        ("base='ada_kv(base=knorm)'", "drops nothing else"),
        ("base='snapkv(budget=8, observation_window=4)'", "ada_kv: give budget to ada_kv itself, not to its base"),
        ("base='knorm(dense_layers=1)'", "ada_kv: give dense_layers to ada_kv itself"),
        ("base=snapkvv", "snapkv"),
        ("base='snapkv(observation_window=64)'", "observation_window = 64 is above the budget of 40"),
        ("safeguard=1.5", "ada_kv: safeguard is at most 1; got 1.5"),
    ],
)
def test_what_does_not_fit_is_refused(knobs, said):
    with pytest.raises(ValueError, match=said):
        pipeline(f"ada_kv(budget=40, {knobs})")

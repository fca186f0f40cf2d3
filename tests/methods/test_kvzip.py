"""KVzip: keys that the model attends to while it repeats its prompt stay, the highest of all heads together."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparsity_core import generate, methods, run
from sparsity_core.kinds import LayerShape
from sparsity_core.methods.eviction.kvzip.repeating import INSTRUCTION, counts, measure
from tests import tiny
from tests.inference.every import pipeline, same_traces
from tests.methods.qkv import dense_qkv, kept_after
from tests.methods.test_ranked_evictions import held

PROMPT, N, BUDGET = 30, 44, 12
IDS = tiny.ids(N)
METHOD = f"kvzip(budget={BUDGET}, n_sink=2)"


def test_heads_share_the_budget_by_their_highest_scores():
    """Of two heads' .9 .1 .8 .7 and .2 .3 .05 .01 the best four are three of the first; with a sink each, two and one more."""
    scores = torch.tensor([[[0.9, 0.1, 0.8, 0.7], [0.2, 0.3, 0.05, 0.01]]])
    assert counts(scores, 2, 0).tolist() == [[3, 1]]
    assert counts(scores, 1, 0).tolist() == [[2, 0]]
    assert counts(scores, 2, 1).tolist() == [[3, 1]]
    assert counts(scores, 4, 1).tolist() == [[4, 4]]


def naive() -> np.ndarray:
    """float64 [L, Hkv, T]: one query after the prompt, one head at a time."""
    said = tiny.tokenizer()(INSTRUCTION, add_special_tokens=False)["input_ids"]
    ids = [*IDS[:PROMPT], *said, *IDS[:PROMPT]]
    found = np.zeros((3, 2, PROMPT))
    for layer, (q, k, _) in enumerate(dense_qkv(tiny.model(), ids)):
        for head in range(4):
            for query in range(PROMPT, len(ids)):
                share = torch.softmax(k[head // 2, : query + 1] @ q[head, query] / 4, 0)[:PROMPT].numpy()
                found[layer, head // 2] = np.maximum(found[layer, head // 2], share)
    return found


def test_the_keys_are_those_that_a_naive_repetition_attends_to():
    scores = naive()
    np.testing.assert_allclose(measure(tiny.model(), tuple(IDS[:PROMPT])).numpy(), scores, rtol=1e-5)
    trace = run(tiny.model(), IDS, pipeline(METHOD), n_prefill=PROMPT)
    ranked = scores.copy()
    ranked[..., :2] = np.inf
    places = sorted(np.ndindex(ranked.shape), key=lambda at: ranked[at], reverse=True)[: 3 * 2 * BUDGET]
    for layer in range(3):
        for head in range(2):
            wanted = sorted(key for one, other, key in places if (one, other) == (layer, head))
            assert kept_after(trace, layer, head, PROMPT - 1) == wanted
            assert kept_after(trace, layer, head, N - 2) == [*wanted, *range(PROMPT, N - 1)]
            assert trace.budgets[layer, head] == len(wanted)
    assert trace.budgets.sum() == 3 * 2 * BUDGET and len(set(trace.budgets.ravel().tolist())) > 1


def test_masked_simulation_equals_physical_eviction():
    with tiny.hidden_states(tiny.model().hf) as seen:
        real = generate(tiny.model(), IDS[:PROMPT], pipeline(METHOD), max_new_tokens=10, stop_at_eos=False).trace
        physical = torch.cat(
            seen[-11:-1]
        )  # the prompt and 9 steps; the repetition may come before, a dense pass comes last
        masked = run(tiny.model(), real.token_ids.tolist(), pipeline(METHOD), n_prefill=PROMPT)
    torch.testing.assert_close(seen[-2], physical, rtol=0, atol=1e-9)
    same_traces(masked, real, rtol=2e-6, atol=1e-8)
    key = 2 * 16 * 8
    assert masked.kv_bytes == 3 * 2 * (BUDGET + 9) * key
    assert real.kv_bytes == sum(int(own.max()) + 9 for own in real.budgets) * 2 * key  # as wide as the longest head


def test_no_token_after_the_prompt_changes_what_stays():
    one = run(tiny.model(), IDS, pipeline(METHOD), n_prefill=PROMPT)
    two = run(tiny.model(), [*IDS[:PROMPT], *tiny.ids(N - PROMPT, seed=9)], pipeline(METHOD), n_prefill=PROMPT)
    np.testing.assert_array_equal(one.budgets, two.budgets)
    np.testing.assert_array_equal(one.evicted_at[..., :PROMPT] == PROMPT, two.evicted_at[..., :PROMPT] == PROMPT)


def test_as_many_in_each_head_and_dense_layers_apart():
    even = run(tiny.model(), IDS, pipeline("kvzip(budget=12, layer_budget=uniform)"), n_prefill=PROMPT)
    assert (even.budgets == 12).all() and (even.evicted_at == PROMPT).any()
    apart = run(tiny.model(), IDS, pipeline("kvzip(budget=12, dense_layers=1)"), n_prefill=PROMPT)
    assert (apart.budgets[0] == N).all() and apart.budgets[1:].sum() == 2 * 2 * 12
    whole = run(tiny.model(), IDS, pipeline(f"kvzip(budget={PROMPT})"), n_prefill=PROMPT)
    assert (whole.evicted_at == N).all() and whole.kl_to_dense.max() < 1e-12


def test_ada_kv_takes_its_votes():
    trace = run(tiny.model(), IDS, pipeline("ada_kv(budget=12, base='kvzip(layer_budget=uniform)')"), n_prefill=PROMPT)
    assert (trace.budgets.sum(1) == 24).all() and (trace.evicted_at[..., :4] == N).all()
    with pytest.raises(ValueError, match="ada_kv: kvzip gives heads budgets of their own: choose layer_budget=uniform"):
        run(tiny.model(), IDS, pipeline("ada_kv(budget=12, base=kvzip)"), n_prefill=PROMPT)


def test_a_prompt_that_does_not_fit_twice_is_a_sentence():
    with pytest.raises(
        ValueError, match=r"reads the prompt twice, \d{3} tokens with its instruction, and tiny-llama has 320"
    ):
        run(tiny.model(), tiny.ids(310), pipeline("kvzip(budget=12)"), n_prefill=160)
    with pytest.raises(ValueError, match="no prompt is known here"):
        methods.KVzip(budget=12).rule(LayerShape(0, 3, 2)).rank(held([[1.0], [2.0]]))
    with pytest.raises(ValueError, match="kvzip: n_sink = 13 is above the budget of 12"):
        pipeline("kvzip(budget=12, n_sink=13)")

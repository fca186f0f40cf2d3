"""What holds for every eviction method, whatever it scores by, tested over the registry and on variants of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparsity_core import Pipeline, run
from sparsity_core.kinds.eviction import PrefillRule, ScanRule
from tests import tiny
from tests.inference.every import (
    EVERY,
    NEW,
    PROMPT,
    held_after,
    memory_bytes,
    one_cut,
    pipeline,
    resized,
    rules,
    same,
    same_traces,
    text,
    traced,
)


@pytest.mark.parametrize("method", [m for m in EVERY if "re_rotate" not in m])
@pytest.mark.parametrize("more", [0, 5])
def test_a_budget_of_the_whole_text_is_the_dense_model(method, more):
    ids = text()
    enough = 25 * len(ids) if "pyramid" in method else len(ids)  # a pyramid's top layer has a half, or a twentieth
    with tiny.hidden_states(tiny.model().hf) as seen:
        pruned = run(tiny.model(), ids, resized(method, enough + more), n_prefill=PROMPT)
        dense = run(tiny.model(), ids)
    assert (pruned.evicted_at == len(ids)).all()
    torch.testing.assert_close(seen[0], seen[-1], rtol=0, atol=1e-12)
    same(pruned.nll, dense.nll, rtol=2e-7)
    assert pruned.kl_to_dense.max() < 1e-12
    assert (pruned.regret == 0).all()
    assert (pruned.ideal_recall == 1).all()
    assert "Nothing was dropped" in pruned.notes[0]


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("h2o(budget=8, dense_layers=3)", "every layer is left dense. Lower dense_layers"),
        ("tova(budget=15)", "so no query missed what was dropped"),
        ("snapkv(budget=12, observation_window=4)", "the cut comes after the first 8 tokens"),
        ("tova(budget=16)", "the text has 16 tokens and the budget is 16"),
    ],
)
def test_why_nothing_was_dropped(method, said):
    trace = run(tiny.model(), tiny.ids(16), Pipeline.parse(f"eviction={method}"))
    assert (trace.evicted_at == 16).all()
    assert said in trace.notes[0]


SEVERAL = ("pyramid", "dense_layers", "ada_kv", "every=3", "every=4")  # another number of keys goes, or none


@pytest.mark.parametrize("method", [m for m in EVERY if not any(word in m for word in SEVERAL)])
def test_one_key_too_many_and_one_goes(method):
    """At a budget of one below what is read before the cut, each KV head drops one key."""
    n = PROMPT if one_cut(method) else 20
    trace = run(tiny.model(), text()[: n + 1], resized(method, n - 1), n_prefill=n)
    assert ((trace.evicted_at[..., :n] == n).sum(-1) == 1).all()
    if "memory=mean" in method:  # the mean of one key is the key
        assert trace.kl_to_dense[n] < 1e-12
    else:
        assert trace.kl_to_dense[n] > 0


@pytest.mark.parametrize("method", EVERY)
def test_after_every_query_exactly_the_budget_is_kept(method):
    trace = traced(method, text(), against_dense=False)
    n = trace.n_tokens
    query = np.arange(n)
    for layer, rule in enumerate(rules(method)):
        shared = isinstance(rule, PrefillRule) and rule.allot is not None
        whole = n if rule.budget is None else rule.budget
        assert (trace.budgets[layer].sum() == 2 * whole) if shared else (trace.budgets[layer] == whole).all()
        visible = trace.keep(layer).sum(-1)  # [Hkv, T]
        kept = np.stack([(trace.evicted_at[layer] > q + 1)[:, : q + 1].sum(-1) for q in range(n - 1)], -1)
        if isinstance(rule, PrefillRule):
            allowed = np.where(query < PROMPT - 1, query + 1, (rule.budget or n))
            if rule.then.budget is None and rule.budget is not None:
                allowed = np.where(query < PROMPT, allowed, rule.budget + query - PROMPT + 1)
            expected = np.minimum(query + 1, allowed)
        else:
            expected = held_after(rule, n)
        if shared:  # by the layer's two heads
            kept, visible = kept.mean(0), visible.mean(0, keepdims=True)
        assert (kept == expected[:-1]).all()
        assert (visible[:, 1:] == expected[:-1] + 1).all()  # what was kept, and the query itself
    last = [expected_last(rule) for rule in rules(method)]
    keys = sum(last) * tiny.model().arch.n_kv_heads * 2 * 16 * 8  # keys and values of 16 float64
    assert trace.kv_bytes == keys + memory_bytes(method)


def expected_last(rule) -> int:
    """Keys per KV head that the cache holds after the text."""
    n = PROMPT + NEW
    if rule.budget is None:
        return n
    if isinstance(rule, ScanRule):
        return int(held_after(rule, n)[-1])
    return min(n, rule.budget + n - PROMPT) if rule.then.budget is None else rule.budget


@pytest.mark.parametrize("method", EVERY)
def test_what_is_dropped_never_returns(method):
    trace = traced(method, text(), against_dense=False)
    assert (trace.evicted_at > np.arange(trace.n_tokens)).all()
    assert (trace.evicted_at <= trace.n_tokens).all()
    for layer in range(trace.n_layers):
        keep = trace.keep(layer)  # [Hkv, query, key]
        for key in range(trace.n_tokens):
            after = keep[:, key:, key]
            assert after[:, 0].all()  # a query always sees itself
            assert (np.diff(after.astype(int)) <= 0).all()


@pytest.mark.parametrize("method", EVERY)
def test_the_protected_keys_stay(method):
    trace = traced(method, text(), against_dense=False)
    key = np.arange(trace.n_tokens)
    for layer, rule in enumerate(rules(method)):
        assert (trace.evicted_at[layer, :, : rule.n_sink] == trace.n_tokens).all()
        assert (trace.evicted_at[layer] >= np.minimum(key + 1 + rule.recent, trace.n_tokens)).all()


@pytest.mark.parametrize("method", EVERY)
def test_scores_are_recorded_of_the_kept_keys_alone(method):
    trace = traced(method, text(), snapshots=1000, against_dense=False)
    n = trace.n_tokens
    assert trace.snapshot_steps.tolist() == list(range(n))
    for layer, rule in enumerate(rules(method)):
        if isinstance(rule, PrefillRule) or rule.scored or rule.noise is not None or rule.rank is not None:
            for q in range(n - 1):
                kept = (np.arange(n) <= q) & (trace.evicted_at[layer] > q + 1)
                assert (~np.isnan(trace.snapshots[layer, :, q]) == kept).all()


@pytest.mark.parametrize("method", [m for m in EVERY if not one_cut(m) and "protect" not in m])
def test_the_lowest_score_goes(method):
    """The score of the dropped key is at most that of every key that could have gone in its place."""
    trace = traced(method, text(), snapshots=1000, against_dense=False)
    checked = 0
    for layer, rule in enumerate(rules(method)):
        if rule.budget is None:
            continue
        for q in range(rule.budget, trace.n_tokens) if rule.every == 1 else ():
            scores = trace.snapshots[layer, :, q, rule.n_sink : q + 1 - rule.recent]
            lowest = trace.threshold[layer, :, q]
            if np.isnan(lowest).any() or not scores.size:
                continue
            assert (np.isnan(scores) | (scores >= lowest[:, None])).all()
            checked += 1
    scans = [rule for rule in rules(method) if isinstance(rule, ScanRule)]
    ranked = any(
        rule.every == 1 and (rule.scored or rule.rank is not None or rule.noise is not None) for rule in scans
    )  # else the oldest goes
    assert checked > 20 or not ranked or "recent_share=1.0" in method


def decided_before(evicted_at: np.ndarray, q: int) -> np.ndarray:
    """What queries before q decided about the keys before q: a decision of query t is evicted_at = t + 1."""
    return evicted_at[..., :q].clip(max=q + 1)


@pytest.mark.parametrize("method", EVERY)
def test_a_later_token_changes_nothing_before_it(method):
    ids, at = text(), 20
    other = [*ids[:at], *tiny.ids(len(ids) - at, seed=9)]
    assert other[at] != ids[at]
    cut = {"n_prefill": 16, "against_dense": False, "snapshots": 1000}
    one, two = run(tiny.model(), ids, pipeline(method), **cut), run(tiny.model(), other, pipeline(method), **cut)
    same(decided_before(one.evicted_at, at), decided_before(two.evicted_at, at))
    same(one.threshold[..., :at], two.threshold[..., :at])
    same(one.snapshots[:, :, :at, :at], two.snapshots[:, :, :at, :at])
    same(one.nll[: at - 1], two.nll[: at - 1])
    assert (one.nll[at:-1] != two.nll[at:-1]).any()


@pytest.mark.parametrize("method", EVERY)
def test_a_longer_text_changes_nothing_before_its_added_end(method):
    ids, at = text(), 25
    cut = {"n_prefill": 16, "against_dense": False, "snapshots": 0}
    short, whole = run(tiny.model(), ids[:at], pipeline(method), **cut), run(tiny.model(), ids, pipeline(method), **cut)
    same(short.evicted_at, whole.evicted_at[..., :at].clip(max=at))
    same(short.threshold, whole.threshold[..., :at], atol=1e-7)
    same(short.nll[:-1], whole.nll[: at - 1], rtol=2e-7)


def test_random_keeps_a_uniform_sample_that_the_seed_decides():
    one, again, other = (traced("random(budget=12)", text(), seed=seed, against_dense=False) for seed in (1, 1, 2))
    same(one.evicted_at, again.evicted_at)
    assert (one.evicted_at != other.evicted_at).any()
    heads = one.evicted_at.reshape(6, -1)
    assert len({tuple(row) for row in heads.tolist()}) == 6  # each layer and head draws its own
    kept = np.mean(
        [
            traced("random(budget=12)", text(), seed=s, against_dense=False).keep(0)[:, -1, : PROMPT + NEW - 1].mean(0)
            for s in range(60)
        ],
        axis=0,
    )
    # 120 draws of 12 of 43 keys: a share of .279 with a standard deviation of .041
    assert (np.abs(kept - 12 / 43) < 5 * 0.041).all()


@pytest.mark.parametrize("method", EVERY)
def test_a_run_leaves_nothing_behind(method):
    first = traced(method, text())
    traced("h2o(budget=5)", text()[:20])
    same_traces(first, traced(method, text()))

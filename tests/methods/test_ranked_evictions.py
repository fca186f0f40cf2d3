"""Evictions with a ranking of their own, each against a naive one over the model's own q, k and v, and by hand."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from sparsity_core import generate, methods, run
from sparsity_core.kinds import HeldKeys, LayerShape
from tests import tiny
from tests.inference.every import pipeline
from tests.methods.qkv import Layer, best, dense_qkv, kept_after

N, PROMPT, BUDGET = 60, 40, 17
GROUP = 2  # query heads of a KV head of the tiny model


def held(
    k: list[list[float]], q: list[list[float]] | None = None, v: list[list[float]] | None = None, group: int = 1
) -> HeldKeys:
    """One KV head's keys at positions 0, 1, …; queries of `group` heads, head by head."""
    keys = torch.tensor(k, dtype=torch.float64)[None, None]
    n, dim = keys.shape[2:]
    queries = torch.zeros(1, group, 0, dim).double() if q is None else torch.tensor(q).double().view(1, group, -1, dim)
    values = keys if v is None else torch.tensor(v, dtype=torch.float64)[None, None]
    positions = torch.arange(n)[None, None]
    none = torch.zeros(max(1, dim // 2), dtype=torch.float64)  # turns nothing
    return HeldKeys(
        0, queries, keys, values, positions, positions >= 0, n, scale=dim**-0.5, frequencies=lambda who: none
    )


def test_knorm_by_hand():
    """3-4-5: the longest key goes first."""
    votes = methods.Knorm().rank(held([[3, 4], [1, 0], [0, 2]]))
    assert votes[0, 0].tolist() == [-5, -1, -2]


def test_keydiff_by_hand():
    """Unit keys (1, 0), (1, 0), (0, 1): the anchor is (2, 1)/3, the cosines 2/√5 twice and 1/√5. Lengths do not count."""
    votes = methods.KeyDiff().rank(held([[5, 0], [1, 0], [0, 3]]))
    assert votes[0, 0].tolist() == pytest.approx([-2 / 5**0.5, -2 / 5**0.5, -1 / 5**0.5])


def test_keydiff_does_not_count_empty_slots():
    one = held([[9, 9], [5, 0], [1, 0], [0, 3]])
    gone = replace(one, exists=torch.tensor([[[False, True, True, True]]]))
    votes = methods.KeyDiff().rank(gone)
    assert votes[0, 0, 1:].tolist() == pytest.approx([-2 / 5**0.5, -2 / 5**0.5, -1 / 5**0.5])


def test_r_kv_by_hand():
    """Keys a = (1, 0) twice, b = (0, 1) and the window's c = (0, 1); λ = ½, no pooling.

    Attention: heads look at (0, 0) and (0, √2 ln 4), so the larger logits of a, a, b are 0, 0, ln 4: shares 1/6, 1/6, 4/6.
    Cosines, 0 on the diagonal: a0–a1 1, b–c 1, the others 0. For each key the newest that it resembles is left out: a0 leaves
    out a1, a1 leaves out a0 (its newest, and only, one), b leaves out c, c leaves out b. So nothing repeats: R = ¼ each.
    """
    q = [[0.0, 0.0], [0.0, 2**0.5 * math.log(4)]]
    method = methods.RKV(recent=1, pool=1, weight=0.5)
    votes = method.rank(held([[1, 0], [1, 0], [0, 1], [0, 1]], q, group=2))
    assert votes[0, 0, :3].tolist() == pytest.approx([1 / 12 - 1 / 8, 1 / 12 - 1 / 8, 4 / 12 - 1 / 8])


def test_r_kv_lets_the_oldest_of_three_equal_keys_go():
    """Keys a, a, a, b and the window's c, all but the a's at right angles: of a's two like ones the newer is left out.

    a0 leaves out a2 and counts against a1; a1 leaves out a2 and counts against a0; a2 leaves out a1 and counts against a0.
    Means over 5 keys: a0 2/5, a1 1/5, the others 0, of which R is the softmax.
    """
    keys = [[1, 0, 0], [1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]
    votes = methods.RKV(recent=1, pool=1, weight=0.0).rank(held(keys, [[0.0, 0.0, 0.0]]))
    whole = math.exp(0.4) + math.exp(0.2) + 3
    expected = [-math.exp(0.4) / whole, -math.exp(0.2) / whole, *[-1 / whole] * 3]
    assert votes[0, 0].tolist() == pytest.approx(expected)


def test_multi_metric_by_hand():
    """Keys a = (1, 0) twice, b = (0, 1) and the window's c = (0, 1); no pooling, a query's one highest key counts.

    One head looks at (0, √2 ln 4): shares 1/6, 1/6, 4/6 of a, a, b; the other at (√2 ln 2, 0): 2/5, 2/5, 1/5. Their mean
    over its largest: 17/26, 17/26, 1. The highest key is b, or either a: each is so for one head of two, the largest share
    that there is. Nothing repeats more than anything else (see R-KV above): R over its largest is 1.
    """
    q = [[0.0, 2**0.5 * math.log(4)], [2**0.5 * math.log(2), 0.0]]
    method = methods.MultiMetric(recent=1, pool=1, top=1, attention=2.0, frequency=3.0, redundancy=4.0)
    votes = method.rank(held([[1, 0], [1, 0], [0, 1], [0, 1]], q, group=2))
    assert votes[0, 0].tolist() == pytest.approx([2 * 17 / 26 - 1, 2 * 17 / 26 - 1, 1, -4])


def test_expected_attention_by_hand():
    """Without rotation, keys 1 and 3 in one channel beside a second of 0; queries (0, 0) and (2√2, 0): μ = √2, Σ = 2.

    Logits over √2: μk/√2 = 1, 3, and ½ Σ k²/2 = ½, 4½: shares in proportion to e^1.5 and e^7.5; values of norm 2 and 1.
    """
    method = methods.ExpectedAttention(n_sink=0, epsilon=0.25)
    found = held([[1, 0], [3, 0]], [[0.0, 0.0], [2 * 2**0.5, 0.0]], [[0, 2], [1, 0]])
    small = 1 / (1 + math.exp(6))
    assert method.rank(found)[0, 0].tolist() == pytest.approx([2 * (small + 0.25), 1 - small + 0.25])
    assert replace(method, covariance=False).rank(found)[0, 0, 0] == pytest.approx(2 * (1 / (1 + math.exp(2)) + 0.25))
    assert replace(method, value_norm=False).rank(found)[0, 0].tolist() == pytest.approx([small, 1 - small])


def knorm(layer: Layer, head: int, keys: list[int], end: int) -> dict[int, float]:
    return {i: -math.sqrt(sum(float(x) ** 2 for x in layer[1][head, i])) for i in keys}


def keydiff(layer: Layer, head: int, keys: list[int], end: int) -> dict[int, float]:
    unit = {i: layer[1][head, i] / math.sqrt(float(layer[1][head, i] @ layer[1][head, i])) for i in keys}
    anchor = sum(unit.values()) / len(keys)
    return {i: -float(unit[i] @ anchor) / math.sqrt(float(anchor @ anchor)) for i in keys}


def r_kv(layer: Layer, head: int, keys: list[int], end: int, weight: float = 0.07) -> dict[int, float]:
    q, k, _ = layer
    window, pool = 4, 3
    before = [i for i in keys if i < end - window]
    share = dict.fromkeys(before, 0.0)
    for query in range(end - window, end):
        logits = [max(float(q[head * GROUP + g, query] @ k[head, i]) / 4 for g in range(GROUP)) for i in before]
        top = max(logits)
        total = sum(math.exp(x - top) for x in logits)
        for i, x in zip(before, logits, strict=True):
            share[i] += math.exp(x - top) / total / window
    smooth = {
        i: max(share[j] for j in before[max(0, at - pool // 2) : at + pool // 2 + 1]) for at, i in enumerate(before)
    }
    repeats = dict.fromkeys(keys, 0.0)
    for row in keys:
        cosine = {j: float(torch.cosine_similarity(k[head, row], k[head, j], dim=0)) for j in keys if j != row}
        alike = [j for j, c in cosine.items() if c > 0.3]
        for j, c in cosine.items():
            repeats[j] += 0.0 if alike and j == max(alike) else c / len(keys)
    total = sum(math.exp(x) for x in repeats.values())
    votes = {i: weight * smooth.get(i, 0.0) - (1 - weight) * math.exp(repeats[i]) / total for i in keys}
    return votes if weight == 0 else {i: votes[i] if i in smooth else math.inf for i in keys}


def multi_metric(
    layer: Layer, head: int, keys: list[int], end: int, window: int = 4, pool: int = 3
) -> dict[int, float]:
    """R-KV's redundancy is what is left of its votes at no weight on attention."""
    q, k, _ = layer
    before = [i for i in keys if i < end - window]
    share, often = dict.fromkeys(before, 0.0), dict.fromkeys(before, 0)
    for query in range(end - window, end):
        for g in range(GROUP):
            p = torch.softmax(k[head, before] @ q[head * GROUP + g, query] / 4, 0).tolist()
            for i, x in zip(before, p, strict=True):
                share[i] += x
            for _, i in sorted(zip(p, before, strict=True), reverse=True)[:5]:
                often[i] += 1
    smooth = {
        i: max(share[j] for j in before[max(0, at - pool // 2) : at + pool // 2 + 1]) for at, i in enumerate(before)
    }
    repeats = r_kv(layer, head, keys, end, weight=0.0)
    most = min(repeats[i] for i in keys)
    votes = {
        i: smooth[i] / max(smooth.values()) + 0.5 * often[i] / max(often.values()) - 0.25 * repeats[i] / most
        for i in before
    }
    return {i: votes.get(i, math.inf) for i in keys}


def expected_attention(layer: Layer, head: int, keys: list[int], end: int, sinks: int = 4) -> dict[int, float]:
    """With rotations as complex numbers, and the expectation's logarithm taken as Gaussian from the queries themselves."""
    q, k, v = layer
    frequency = tiny.model().rotary_frequencies().double()

    def complex_(x):
        return torch.complex(*x.chunk(2, dim=-1))

    turn = torch.exp(1j * torch.arange(end, end + 512)[:, None] * frequency).mean(0)
    back = torch.exp(-1j * torch.arange(end)[:, None] * frequency)
    own = [i for i in keys if i >= sinks]
    total = np.zeros(len(own))
    for g in range(GROUP):
        past = complex_(q[head * GROUP + g, :end]) * back * turn
        product = (past[sinks:, None] * complex_(k[head, own]).conj()[None]).sum(-1).real / 4  # [T, keys]
        log = product.mean(0) + product.var(0, correction=0) / 2
        total += torch.softmax(log, 0).numpy() / GROUP
    weighed = total * v[head, own].norm(dim=-1).numpy()
    return {**dict.fromkeys(keys, math.inf), **dict(zip(own, weighed, strict=True))}


ORACLES = {
    "knorm": ("", knorm),
    "keydiff": ("", keydiff),
    "r_kv": (", recent=4, pool=3, similar=0.3", r_kv),
    "expected_attention": ("", expected_attention),
    "multi_metric": (", recent=4, pool=3, similar=0.3, top=5, frequency=0.5, redundancy=0.25", multi_metric),
}


@pytest.mark.parametrize("name", ORACLES)
def test_one_cut_keeps_what_a_naive_ranking_keeps(name):
    knobs, oracle = ORACLES[name]
    ids = tiny.ids(N)
    trace = run(tiny.model(), ids, pipeline(f"{name}(budget={BUDGET}, every=0{knobs})"), n_prefill=PROMPT)
    for layer, own in enumerate(dense_qkv(tiny.model(), ids[:PROMPT])):  # before the cut nothing is dropped
        for head in range(2):
            wanted = best(oracle(own, head, list(range(PROMPT)), PROMPT), BUDGET)
            assert kept_after(trace, layer, head, PROMPT - 1) == wanted
            assert kept_after(trace, layer, head, N - 2) == [*wanted, *range(PROMPT, N - 1)]


@pytest.mark.parametrize("every", [1, 5])
@pytest.mark.parametrize("name", ["knorm", "keydiff", "r_kv", "multi_metric"])
def test_cuts_by_blocks_keep_what_a_naive_scan_keeps(name, every):
    """Of the first layer, whose q, k and v no eviction changes."""
    knobs, oracle = ORACLES[name]
    ids = tiny.ids(N)
    trace = run(tiny.model(), ids, pipeline(f"{name}(budget={BUDGET}, every={every}{knobs})"))
    layer = dense_qkv(tiny.model(), ids)[0]
    for head in range(2):
        keys: list[int] = []
        for query in range(N - 1):
            keys.append(query)
            if len(keys) > BUDGET:
                keys = best(oracle(layer, head, keys, query + 1), BUDGET + 1 - every)
            assert kept_after(trace, 0, head, query) == keys


def test_the_budget_is_never_passed_and_the_bytes_are_what_is_held():
    method = "keydiff(budget=16, every=5)"
    real = generate(tiny.model(), tiny.ids(30), pipeline(method), max_new_tokens=8, stop_at_eos=False)
    kept = [len(kept_after(real.trace, 0, 0, query)) for query in range(36)]
    assert max(kept) == 16 and set(kept[16:]) == set(range(12, 17))
    last = 12 + (37 - 17) % 5  # cut to 12 after the 17th token, then every 5
    assert real.kv_bytes == real.trace.kv_bytes == 3 * 2 * last * 2 * 16 * 8


def test_expected_attention_needs_rotary_positions():
    with pytest.raises(
        ValueError, match=r"gpt2.* has no rotary positions, which expected_attention needs: leave it out"
    ):
        run(tiny.model("gpt2"), tiny.ids(40), pipeline("expected_attention(budget=12)"))


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("knorm(budget=8, n_sink=5, recent=4)", r"n_sink \+ recent = 9 is above the budget of 8"),
        ("keydiff(budget=12, every=16)", r"a cut that makes room for 16 keys leaves -3 of a budget of 12"),
        ("keydiff(budget=12, every=-1)", "keydiff: every is at least 0; got -1"),
        ("r_kv(budget=24, every=16, recent=16)", r"leaves 9 of a budget of 24, fewer than the 0 sinks \+ 16 recent"),
        ("r_kv(budget=32, every=0, pool=4)", "r_kv: pool is an odd number of keys; got 4"),
        ("r_kv(budget=32, weight=1.5)", "r_kv: weight is at most 1; got 1.5"),
        ("expected_attention(budget=32, future=0)", "expected_attention: future is at least 1; got 0"),
    ],
)
def test_what_does_not_fit_is_refused(method, said):
    with pytest.raises(ValueError, match=said):
        pipeline(method)


def test_heads_that_choose_together_drop_what_all_heads_attend_to_least():
    """TOVA as the paper has it: the mean attention of the layer's four query heads over the keys that are left."""
    ids = tiny.ids(N)
    trace = run(tiny.model(), ids, pipeline(f"tova(budget={BUDGET}, shared_heads=True)"))
    q, k, _ = dense_qkv(tiny.model(), ids)[0]
    keys: list[int] = []
    for query in range(N - 1):
        keys.append(query)
        total = sum(torch.softmax(k[h // GROUP, keys] @ q[h, query] / 4, 0) for h in range(2 * GROUP))
        if len(keys) > BUDGET:
            keys.pop(int(total.argmin()))
        assert kept_after(trace, 0, 0, query) == kept_after(trace, 0, 1, query) == keys
    own = run(tiny.model(), ids, pipeline(f"tova(budget={BUDGET})"))
    assert (own.evicted_at[0, 0] != own.evicted_at[0, 1]).any()


def test_pyramid_kv_by_hand():
    """A budget of 44 with a window of 4: b = 40, β = 20: the bottom has 80 − 2 = 78, the top 2; three layers 78, 40, 2."""
    method = methods.PyramidKV(budget=44, observation_window=4)
    rules = [method.rule(LayerShape(i, 3, 2)) for i in range(3)]
    assert [rule.budget for rule in rules] == [82, 44, 6]
    assert rules[0].queries == rules[0].recent == 4 and rules[0].pool == 5
    flat = replace(method, layer_budget="uniform")
    assert [flat.budget_of(LayerShape(i, 3, 2)) for i in range(3)] == [44] * 3
    assert [replace(method, beta=1.0).budget_of(LayerShape(i, 3, 2)) for i in range(3)] == [44] * 3
    for budget, n_layers in [(33, 30), (256, 7), (64, 1), (1000, 13)]:
        own = methods.PyramidKV(budget=budget)
        budgets = [own.budget_of(LayerShape(i, n_layers, 2)) for i in range(n_layers)]
        assert sum(budgets) == budget * n_layers and min(budgets) >= 32


def test_pyramid_kv_keeps_what_a_naive_count_keeps():
    """Votes of the last 4 queries of both heads, pooled over 3 keys, under budgets in equal steps: 4 + 21, 13 and 5 of 13."""
    ids, window = tiny.ids(N), 4
    trace = run(
        tiny.model(), ids, pipeline("pyramid_kv(budget=17, observation_window=4, pool=3, beta=2.6)"), n_prefill=PROMPT
    )
    before = range(PROMPT - window)
    for layer, (q, k, _) in enumerate(dense_qkv(tiny.model(), ids[:PROMPT])):
        room = [21, 13, 5][layer]  # 13 / 2.6 = 5 at the top, 26 − 5 at the bottom
        for head in range(2):
            votes = dict.fromkeys(range(-1, PROMPT - window + 1), 0.0)  # nothing on either side
            for query, h in itertools.product(range(PROMPT - window, PROMPT), (2 * head, 2 * head + 1)):
                share = torch.softmax(k[head, : query + 1] @ q[h, query] / 4, 0)
                for key in before:
                    votes[key] += float(share[key])
            pooled = {key: votes[key - 1] + votes[key] + votes[key + 1] for key in before}
            wanted = [*best(pooled, room), *range(PROMPT - window, PROMPT)]
            assert kept_after(trace, layer, head, PROMPT - 1) == wanted

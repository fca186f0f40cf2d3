"""What holds for every eviction method, whatever it scores by, tested over the registry and on variants of it."""

from __future__ import annotations

import dataclasses
import functools
import sys
import threading

import numpy as np
import pytest
import torch

from sparsity_core import Pipeline, generate, methods, run
from sparsity_core.attention import EvictionStage, Recorder, Stages, layer_rules
from sparsity_core.attention.eviction import re_rotated
from sparsity_core.inference.replay import refill
from sparsity_core.kinds.eviction import LayerShape, PrefillRule, ScanRule
from sparsity_core.models.loading import wrap
from sparsity_core.models.seam import recording
from tests import oracles, tiny

BUDGET, PROMPT, NEW = 12, 30, 14
TOTAL = PROMPT + NEW - 1  # the last new token is never an input


def small(name: str) -> str:
    """A registered method at a small budget, with what it protects made small too."""
    cls = methods.get(name)
    knobs = {"budget": BUDGET}
    for knob in cls.knobs():
        whole = isinstance(knob.default, int) and not isinstance(knob.default, bool)
        if whole and knob.name != "budget" and knob.default > BUDGET:
            knobs[knob.name] = int(knob.metadata["low"])
    return str(cls(**knobs))


# What a user may ask for beside the defaults; every law below holds for each.
VARIANTS = [
    "a2sf(budget=12, forgetting_factor=0.5, variant=prefill)",
    "a2sf(budget=12, forgetting_factor=0.75, variant=prefill, n_sink=2, recent=3, value_norm=True)",
    "a2sf(budget=12, layer_budget=pyramid)",
    "a2sf(budget=12, layer_budget=pyramid, variant=prefill)",
    "a2sf(budget=12, dense_layers=1)",
    "a2sf(budget=12, dense_layers=2, variant=prefill)",
    "a2sf(budget=12, forgetting_factor=[0.25, 0.5, 1.0])",
    "a2sf(budget=12, forgetting_factor=[[0.25, 1.0], [0.5, 0.0], 0.75])",
    "a2sf(budget=12, forgetting_factor={capitalised: 0.0, number: 1.0, other: 0.25, space: 0.75})",
    "a2sf(budget=12, forgetting_factor={other: 0.25, space: 0.75}, variant=prefill)",
    "a2sf(budget=12, n_sink=2, recent=3)",
    "a2sf(budget=1)",
    "h2o(budget=12, value_norm=True)",
    "h2o(budget=12, reduction=max, recent_share=0.0)",
    "h2o(budget=12, recent_share=1.0)",
    "tova(budget=12, reduction=mean)",
    "snapkv(budget=12, observation_window=3, pool=1, reduction=max)",
    "snapkv(budget=12, observation_window=12, pool=5)",
    "streaming_llm(budget=12, re_rotate=True)",
    "streaming_llm(budget=12, n_sink=0)",
    "streaming_llm(budget=12, n_sink=12)",
    "random(budget=12, n_sink=2, recent=2)",
    "a2sf(budget=12, protect='3-5, 20')",
]
EVERY = [*(small(name) for name in methods.names("eviction")), *VARIANTS]
SOME = ["a2sf(budget=12)", "snapkv(budget=12, observation_window=4)", "streaming_llm(budget=12)"]


def pipeline(method: str) -> Pipeline:
    return Pipeline.parse(f"eviction={method}")


def resized(method: str, budget: int) -> Pipeline:
    """The method at another budget, protecting no more than that."""
    return Pipeline(eviction=dataclasses.replace(pipeline(method).eviction, budget=budget))


def rules(method: str) -> list:
    return [pipeline(method).eviction.rule(LayerShape(i, 3, 2)) for i in range(3)]


def one_cut(method: str) -> bool:
    return any(isinstance(rule, PrefillRule) and rule.budget is not None for rule in rules(method))


@functools.cache
def text() -> list[int]:
    return tiny.ids(PROMPT + NEW)


def traced(method: str, ids: list[int], **options):
    return run(tiny.model(), ids, pipeline(method), n_prefill=PROMPT, **options)


def same(one: np.ndarray, other: np.ndarray, **tolerance: float) -> None:
    np.testing.assert_allclose(one, other, equal_nan=True, **{"rtol": 0, "atol": 0} | tolerance)


def same_traces(one, other, **tolerance: float) -> None:
    """Every array of two traces."""
    for name, value in one.flat().items():
        if isinstance(value, np.ndarray):
            np.testing.assert_allclose(
                value,
                other.flat()[name],
                equal_nan=True,
                err_msg=name,
                **{"rtol": 0, "atol": 0} | tolerance,
            )


@pytest.mark.parametrize("method", [m for m in EVERY if "re_rotate" not in m])
@pytest.mark.parametrize("more", [0, 5])
def test_a_budget_of_the_whole_text_is_the_dense_model(method, more):
    ids = text()
    enough = 2 * len(ids) if "pyramid" in method else len(ids)  # a pyramid's top layer has half
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


@pytest.mark.parametrize("method", [m for m in EVERY if "pyramid" not in m and "dense_layers" not in m])
def test_one_key_too_many_and_one_goes(method):
    """At a budget of one below what is read before the cut, each KV head drops one key."""
    n = PROMPT if one_cut(method) else 20
    trace = run(tiny.model(), text()[: n + 1], resized(method, n - 1), n_prefill=n)
    assert ((trace.evicted_at[..., :n] == n).sum(-1) == 1).all()
    assert trace.kl_to_dense[n] > 0


@pytest.mark.parametrize("method", EVERY)
def test_after_every_query_exactly_the_budget_is_kept(method):
    trace = traced(method, text(), against_dense=False)
    n = trace.n_tokens
    query = np.arange(n)
    for layer, rule in enumerate(rules(method)):
        assert trace.budgets[layer] == (n if rule.budget is None else rule.budget)
        visible = trace.keep(layer).sum(-1)  # [Hkv, T]
        kept = np.stack([(trace.evicted_at[layer] > q + 1)[:, : q + 1].sum(-1) for q in range(n - 1)], -1)
        if isinstance(rule, PrefillRule):
            allowed = np.where(query < PROMPT - 1, query + 1, (rule.budget or n))
            if rule.then.budget is None and rule.budget is not None:
                allowed = np.where(query < PROMPT, allowed, rule.budget + query - PROMPT + 1)
        else:
            allowed = rule.budget
        expected = np.minimum(query + 1, allowed)
        assert (kept == expected[:-1]).all()
        assert (visible[:, 1:] == expected[:-1] + 1).all()  # what was kept, and the query itself
    last = [expected_last(rule) for rule in rules(method)]
    assert trace.kv_bytes == sum(last) * tiny.model().arch.n_kv_heads * 2 * 16 * 8  # keys and values of 16 float64


def expected_last(rule) -> int:
    """Keys per KV head that the cache holds after the text."""
    n = PROMPT + NEW
    if rule.budget is None:
        return n
    forever = isinstance(rule, PrefillRule) and rule.then.budget is None
    return min(n, rule.budget + n - PROMPT) if forever else rule.budget


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
        if isinstance(rule, PrefillRule) or rule.scored or rule.noise is not None:
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
        for q in range(rule.budget, trace.n_tokens):
            scores = trace.snapshots[layer, :, q, rule.n_sink : q + 1 - rule.recent]
            lowest = trace.threshold[layer, :, q]
            if np.isnan(lowest).any() or not scores.size:
                continue
            assert (np.isnan(scores) | (scores >= lowest[:, None])).all()
            checked += 1
    scans = [rule for rule in rules(method) if isinstance(rule, ScanRule)]
    ranked = any(rule.scored or rule.noise is not None for rule in scans)  # else the oldest goes
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


def simulated_and_real(model, method: str, prompt: list[int], new: int):
    """(run, generate) over the same tokens, with the hidden states of each pruned pass."""
    with tiny.hidden_states(model.hf) as seen:
        real = generate(model, prompt, pipeline(method), max_new_tokens=new, stop_at_eos=False).trace
        physical = torch.cat(seen[:-1])  # the last forward is the dense one, to compare
        masked = run(model, real.token_ids.tolist(), pipeline(method), n_prefill=len(prompt))
        return masked, real, seen[-2], physical


@pytest.mark.parametrize("method", EVERY)
def test_masked_simulation_equals_physical_eviction(method):
    masked, real, hidden, physical = simulated_and_real(tiny.model(), method, text()[:PROMPT], NEW)
    assert real.n_tokens == TOTAL
    assert (real.evicted_at < TOTAL).any()
    torch.testing.assert_close(hidden, physical, rtol=0, atol=1e-9)
    same_traces(masked, real, rtol=2e-6, atol=1e-8)
    assert masked.kv_bytes == real.kv_bytes
    assert masked.kv_bytes_dense == real.kv_bytes_dense == TOTAL * 3 * 2 * 2 * 16 * 8
    assert (masked.texts, masked.groups.tolist(), masked.classes) == (real.texts, real.groups.tolist(), real.classes)


# A layer whose window is within the budget drops nothing.
BELOW_THE_WINDOW = [method.replace("budget=12", f"budget={tiny.WINDOW - 2}") for method in SOME]


@pytest.mark.parametrize("family", [f for f in tiny.FAMILIES if f != "llama"])
@pytest.mark.parametrize("method", BELOW_THE_WINDOW)
def test_masked_simulation_equals_physical_eviction_in_every_family(family, method):
    masked, real, hidden, physical = simulated_and_real(tiny.model(family), method, text()[:PROMPT], 8)
    assert (real.evicted_at < real.n_tokens).any()
    torch.testing.assert_close(hidden, physical, rtol=0, atol=1e-9)
    same_traces(masked, real, rtol=2e-6, atol=1e-8)
    assert masked.kv_bytes == real.kv_bytes


def test_a_forgetting_factor_by_class_is_the_same_for_what_is_read_and_what_is_written(monkeypatch):
    """The model is made to write the bytes of emoji, whose class a whole text shows and a single token does not."""
    written = tiny.tokenizer()("é🙂 中🙂1中🙂")["input_ids"]
    prompt, rest = tiny.tokenizer()("So é🙂 and 7 中 are one; 🙂")["input_ids"][:-2], iter(written)
    monkeypatch.setattr(sys.modules["sparsity_core.inference.generation"], "_next_token", lambda *_: next(rest))
    method = "a2sf(budget=8, forgetting_factor={punctuation: 1.0, space: 0.0, word: 0.5, number: 0.9, other: 0.25})"
    masked, real, hidden, physical = simulated_and_real(tiny.model(), method, prompt, len(written))
    torch.testing.assert_close(hidden, physical, rtol=0, atol=1e-9)
    same_traces(masked, real, rtol=2e-6, atol=1e-8)
    assert masked.classes == real.classes


@pytest.mark.parametrize("method", ["a2sf(budget=12)", "snapkv(budget=12, observation_window=4)"])
def test_the_cache_holds_what_the_trace_says_is_kept(method, monkeypatch):
    recorders = []

    class Watched(Recorder):
        def __init__(self, *args, **options) -> None:
            super().__init__(*args, **options)
            recorders.append(self)

    monkeypatch.setattr(sys.modules["sparsity_core.inference.stages"], "Recorder", Watched)
    out = generate(tiny.model(), text()[:PROMPT], pipeline(method), max_new_tokens=6, stop_at_eos=False)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in recorders[0].cache.layers)
    kept = BUDGET if method.startswith("a2sf") else BUDGET + 5
    assert [tuple(layer.keys.shape) for layer in recorders[0].cache.layers] == [(1, 2, kept, 16)] * 3
    assert out.kv_bytes == out.trace.kv_bytes == held == 3 * 2 * kept * 16 * 2 * 8


@pytest.mark.parametrize("method", [m for m in EVERY if "re_rotate" not in m])
def test_the_model_under_eviction_equals_plain_attention_under_the_recorded_masks(method):
    check_against_plain_attention("llama", method)


@pytest.mark.parametrize("family", [f for f in tiny.FAMILIES if f != "llama"])
@pytest.mark.parametrize("method", BELOW_THE_WINDOW)
def test_every_family_under_eviction_equals_plain_attention_under_the_recorded_masks(family, method):
    check_against_plain_attention(family, method)


LONG = ["a2sf(budget=50)", "h2o(budget=200)", "a2sf(budget=50, variant=prefill)", "random(budget=150)"]


@pytest.mark.parametrize("method", LONG)
def test_a_text_of_several_blocks_of_rows_equals_plain_attention_and_physical_eviction(method):
    """The references work in blocks of 128 and 256 rows; the other texts here fit into one."""
    ids = tiny.ids(300)
    check_against_plain_attention("llama", method, ids, n_prefill=270)
    masked, real, hidden, physical = simulated_and_real(tiny.model(), method, ids, 6)
    torch.testing.assert_close(hidden, physical, rtol=0, atol=1e-9)
    same_traces(masked, real, rtol=2e-6, atol=1e-8)


def test_a_scan_of_several_blocks_decides_as_one_key_at_a_time_does():
    trace, attended = tapped("a2sf(budget=50)", tiny.ids(300), 0)
    q, k, v = attended[2]
    _, evicted_at, threshold, _ = oracles.evict_step_by_step(q, k, v, budget=50, decay=0.3)
    same(trace.evicted_at[2], evicted_at[0].clamp(max=300).numpy())
    same(trace.threshold[2], threshold[0].numpy(), atol=1e-6)


def check_against_plain_attention(
    family: str, method: str, ids: list[int] | None = None, n_prefill: int = PROMPT
) -> None:
    ids, model = ids or text(), tiny.model(family)
    with tiny.hidden_states(model.hf) as seen:
        trace = run(model, ids, pipeline(method), n_prefill=n_prefill)
    assert (trace.evicted_at < len(ids)).any()
    plain, tokens = tiny.transformer(family), torch.tensor([ids])
    with tiny.plain_attention(plain, [trace.keep(layer) for layer in range(3)]):
        expected = plain.base_model(input_ids=tokens, use_cache=False).last_hidden_state[0]
        logits = plain(input_ids=tokens, use_cache=False).logits[0]
    torch.testing.assert_close(seen[0], expected, rtol=0, atol=1e-9)
    same(trace.nll[:-1], tiny.nll(logits, ids), rtol=2e-7)


def tapped(method: str, ids: list[int], n_prefill: int):
    """The trace, and the (q, k, v) that each layer's rule got to see."""
    seen = {}
    attend = Recorder.attend

    def tap(self, call):
        seen[call.layer] = call.q, call.k, call.v
        return attend(self, call)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recorder, "attend", tap)
        trace = run(tiny.model(), ids, pipeline(method), n_prefill=n_prefill, against_dense=False)
    return trace, [seen[layer] for layer in range(3)]


ASCII_CLASSES = {" ": "space", ",": "punctuation", ".": "punctuation"}


def class_of(character: str) -> str:
    if character in "aiAI":
        return "function"
    if character.isdigit():
        return "number"
    return ASCII_CLASSES.get(character, "capitalised" if character.isupper() else "word")


BY_CLASS = {"capitalised": 0.0, "number": 1.0, "space": 0.75}
# method → what each layer's scan should be, written down from the knobs by hand
SCANS = {
    "a2sf(budget=12)": lambda layer: {"decay": 0.3},
    "a2sf(budget=12, layer_budget=pyramid)": lambda layer: {"decay": 0.3, "budget": (18, 12, 6)[layer]},
    "a2sf(budget=12, forgetting_factor=[0.25, 0.5, 1.0])": lambda layer: {"decay": (0.25, 0.5, 1.0)[layer]},
    "a2sf(budget=12, forgetting_factor=[[0.25, 1.0], [0.5, 0.0], 0.75])": lambda layer: {
        "decay": torch.tensor([[0.25, 1.0], [0.5, 0.0], [0.75, 0.75]][layer])[:, None]
    },
    "a2sf(budget=12, forgetting_factor={capitalised: 0.0, number: 1.0, other: 0.25, space: 0.75})": lambda layer: {
        "decay": torch.tensor([BY_CLASS.get(class_of(c), 0.25) for c in tiny.TEXT])
    },
    "a2sf(budget=12, forgetting_factor={space: 0.5})": lambda layer: {
        "decay": torch.tensor(
            [0.5 if c == " " else 1.0 for c in tiny.TEXT]
        )  # a class that is not named forgets nothing
    },
    "a2sf(budget=12, n_sink=2, recent=3)": lambda layer: {"decay": 0.3, "n_sink": 2, "recent": 3},
    "a2sf(budget=12, reduction=mean)": lambda layer: {"decay": 0.3, "reduction": "mean"},
    "a2sf(budget=12, forgetting_factor=0.5, reduction=max)": lambda layer: {"decay": 0.5, "reduction": "max"},
    "h2o(budget=12)": lambda layer: {"recent": 6},
    "h2o(budget=12, recent_share=0.3)": lambda layer: {"recent": 3},
    "tova(budget=12)": lambda layer: {"decay": 0.0},
    "streaming_llm(budget=12)": lambda layer: {"n_sink": 4, "recent": 8, "scored": False},
    "local_window(budget=12)": lambda layer: {"recent": 12, "scored": False},
}


@pytest.mark.parametrize("method", SCANS)
def test_a_scan_decides_as_one_key_at_a_time_does(method):
    ids = tiny.tokenizer()(tiny.TEXT)["input_ids"]
    trace, attended = tapped(method, ids, 0)
    for layer, (q, k, v) in enumerate(attended):
        _, evicted_at, threshold, _ = oracles.evict_step_by_step(q, k, v, **{"budget": 12} | SCANS[method](layer))
        same(trace.evicted_at[layer], evicted_at[0].clamp(max=len(ids)).numpy())
        if not np.isnan(trace.threshold[layer]).all():
            same(trace.threshold[layer], threshold[0].numpy(), atol=1e-6)


def test_a_trace_tells_what_each_layer_was_given():
    trace = traced("streaming_llm(budget=12, layer_budget=pyramid, dense_layers=1)", text(), against_dense=False)
    assert trace.budgets.tolist() == [PROMPT + NEW, 12, 6]  # a dense layer's is the text
    assert trace.n_sink.tolist() == [0, 4, 4]
    assert trace.recent.tolist() == [0, 8, 2]
    assert (trace.n_prompt, trace.n_prefill, trace.n_heads) == (PROMPT + NEW, 0, 4)
    cut = traced("snapkv(budget=12, observation_window=4)", text(), against_dense=False)
    assert (cut.n_prefill, cut.recent.tolist()) == (PROMPT, [4, 4, 4])
    half = run(tiny.model(), text(), pipeline("snapkv(budget=12, observation_window=4)"), against_dense=False)
    assert half.n_prefill == (PROMPT + NEW) // 2


def test_value_norm_weighs_by_the_norm_of_each_value():
    ids = tiny.tokenizer()(tiny.TEXT)["input_ids"]
    trace, attended = tapped("h2o(budget=12, value_norm=True)", ids, 0)
    for layer, (q, k, v) in enumerate(attended):
        norms = torch.tensor([[float(x.square().sum()) ** 0.5 for x in head] for head in v[0]])
        _, evicted_at, threshold, _ = oracles.evict_step_by_step(q, k, v, budget=12, recent=6, weight=norms)
        same(trace.evicted_at[layer], evicted_at[0].clamp(max=len(ids)).numpy())
        same(trace.threshold[layer], threshold[0].numpy(), rtol=1e-6)


CUTS = {
    "a2sf(budget=12, forgetting_factor=0.5, variant=prefill)": {"decay": 0.5},
    "a2sf(budget=12, forgetting_factor=0.95, variant=prefill, n_sink=2, recent=3)": {
        "decay": 0.95,
        "n_sink": 2,
        "recent": 3,
    },
    "a2sf(budget=12, forgetting_factor=0.95, variant=prefill, value_norm=True)": {"decay": 0.95, "value_norm": True},
    "snapkv(budget=12, observation_window=4)": {"queries": 4, "pool": 5, "recent": 4},
    "snapkv(budget=12, observation_window=3, pool=1, reduction=max)": {"queries": 3, "recent": 3, "max": True},
}


@pytest.mark.parametrize("method", CUTS)
def test_a_cut_keeps_the_top_of_what_the_prompt_attended(method):
    """Scores summed query by query from dense probabilities, pooled with zeros beyond the ends and in the window, sorted."""
    ids, n = text(), PROMPT
    trace, attended = tapped(method, ids, n)
    wanted = {"decay": 1.0, "queries": n, "pool": 1, "n_sink": 0, "recent": 0, "value_norm": False, "max": False}
    wanted |= CUTS[method]
    for layer, (q, k, v) in enumerate(attended):
        p = oracles.attention_probabilities(q[:, :, :n], k[:, :, :n])[0]  # [H, n, n]
        for head in range(2):
            own = p[2 * head : 2 * head + 2].numpy()
            rows = own.max(0) if wanted["max"] else own.sum(0)
            score = np.zeros(n)
            for query in range(n - wanted["queries"], n):
                score = wanted["decay"] * score + rows[query]
            if wanted["value_norm"]:
                score *= v[0, head, :n].norm(dim=-1).numpy()
            side = wanted["pool"] // 2
            padded = np.pad(np.where(np.arange(n) < n - wanted["recent"], score, 0.0), side)
            pooled = [padded[i : i + wanted["pool"]].sum() / wanted["pool"] for i in range(n)]
            free = range(wanted["n_sink"], n - wanted["recent"])
            protected = set(range(n)) - set(free)
            ranked = sorted(free, key=lambda i: -pooled[i])
            n_free = BUDGET - len(protected)
            kept = protected | set(ranked[:n_free])
            assert set(np.flatnonzero(trace.evicted_at[layer, head, :n] != n)) == kept | {
                i for i in kept if trace.evicted_at[layer, head, i] > n
            }
            assert set(np.flatnonzero(trace.evicted_at[layer, head, :n] == n)) == set(range(n)) - kept
            assert trace.threshold[layer, head, n - 1] == pytest.approx(pooled[ranked[n_free]], rel=1e-6)


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


def test_re_rotated_streaming_equals_keys_rotated_to_their_place_in_the_cache():
    """Position by position: what a query sees is laid out 0, 1, 2 … and rotated there, from unrotated keys."""
    ids, n_sink, budget = text()[:24], 2, 8
    model = tiny.model()
    with tiny.hidden_states(model.hf) as seen:
        run(model, ids, pipeline(f"streaming_llm(budget={budget}, n_sink={n_sink}, re_rotate=True)"))
        run(model, ids, pipeline(f"streaming_llm(budget={budget}, n_sink={n_sink})"))
    frequencies = 10000.0 ** (-torch.arange(0, 16, 2).double() / 16)

    def rotate(x, places):
        angle = torch.as_tensor(places).double()[:, None] * frequencies
        cos, sin = angle.cos(), angle.sin()
        a, b = x[..., :8], x[..., 8:]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def attend(module, q, k, v, mask, scaling=0.0, **_):
        out = torch.zeros(1, len(ids), 4, 16, dtype=torch.float64)
        for t in range(len(ids)):
            kept = sorted({*range(min(n_sink, t + 1)), *range(max(0, t - (budget - n_sink)), t + 1)})
            assert len(kept) == min(t, budget) + 1
            for head in range(4):
                keys = rotate(k[0, head // 2, kept], range(len(kept)))
                query = rotate(q[0, head, t : t + 1], [len(kept) - 1])[0]
                out[0, t, head] = (keys @ query * scaling).softmax(0) @ v[0, head // 2, kept]
        return out, None

    plain = tiny.transformer("llama")
    with pytest.MonkeyPatch.context() as patch, tiny.hidden_states(plain) as expected:
        patch.setattr("transformers.models.llama.modeling_llama.apply_rotary_pos_emb", lambda q, k, *_: (q, k))
        patch.setattr("transformers.models.llama.modeling_llama.eager_attention_forward", attend)
        plain(input_ids=torch.tensor([ids]), use_cache=False)
    re_rotated, as_written = seen[0], seen[2]
    torch.testing.assert_close(re_rotated, expected[0], rtol=0, atol=1e-4)  # transformers rotates in float32
    assert (as_written - expected[0]).abs().max() > 0.1


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "phi", "gemma", "gemma2"])
def test_a_re_rotated_query_is_the_models_own_query_at_the_budgets_position(family):
    model, start, budget = tiny.model(family, torch.float32), 20, 8
    rotary, modeling = model.hf.base_model.rotary_emb, sys.modules[type(model.hf).__module__]
    n_turned = 2 * len(rotary.inv_freq)
    q = torch.randn(1, 4, 1, 16, generator=torch.Generator().manual_seed(0))

    def at(position: int) -> torch.Tensor:
        cos, sin = rotary(q, torch.tensor([[position]]))
        turned, _ = modeling.apply_rotary_pos_emb(q[..., :n_turned], q[..., :n_turned], cos, sin)
        return torch.cat([turned, q[..., n_turned:]], -1)

    rule = methods.StreamingLLM(budget=budget, re_rotate=True).rule(LayerShape(0, 3, 2))
    assert rule.re_rotate and rule.budget == budget
    torch.testing.assert_close(re_rotated(at(start), start, budget, model), at(budget), rtol=0, atol=1e-5)
    torch.testing.assert_close(re_rotated(at(5), 5, budget, model), at(5), rtol=0, atol=1e-6)
    assert (at(start) - at(budget)).abs().max() > 0.1


def test_re_rotation_is_refused_where_it_would_be_wrong():
    with pytest.raises(ValueError, match=r"gpt2.* has no rotary positions to re-rotate: leave re_rotate off"):
        run(tiny.model("gpt2"), text(), pipeline("streaming_llm(budget=12, re_rotate=True)"))
    with pytest.raises(ValueError, match=r"does not know how tiny-gemma3 .* lays out its rotary channels"):
        run(tiny.model("gemma3"), text(), pipeline("streaming_llm(budget=12, re_rotate=True)"))
    with pytest.raises(ValueError, match="no others that are protected: leave one out"):
        pipeline("streaming_llm(budget=12, re_rotate=True, protect='7')")


@pytest.mark.parametrize("method", EVERY)
def test_a_run_leaves_nothing_behind(method):
    first = traced(method, text())
    traced("h2o(budget=5)", text()[:20])
    same_traces(first, traced(method, text()))


def test_threads_with_their_own_methods_agree_with_solo_runs():
    chosen = [
        pipeline("a2sf(budget=12)"),
        pipeline("h2o(budget=6)"),
        Pipeline(),
        pipeline("snapkv(budget=9, observation_window=4)"),
    ]
    solo = [run(tiny.model(), text(), p) for p in chosen]
    found: dict[int, list] = {i: [] for i in range(len(chosen))}
    start = threading.Barrier(len(chosen))

    def work(i: int) -> None:
        start.wait()
        for _ in range(5):
            found[i].append(run(tiny.model(), text(), chosen[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(chosen))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, alone in enumerate(solo):
        assert len(found[i]) == 5
        for trace in found[i]:
            same_traces(trace, alone, rtol=1e-6, atol=1e-9)


def recorder_of(model, n: int = 8) -> Recorder:
    eviction = EvictionStage(model, layer_rules(model, None), n_tokens=n, n_prefill=n, token_classes=["word"] * n)
    return Recorder(model, Stages(eviction), n_tokens=n)


def test_the_hook_fires_once_in_every_layer():
    model, recorder = tiny.model(), recorder_of(tiny.model())
    ids = torch.tensor([text()[:8]])
    with recording(recorder):
        model.hidden(ids, use_cache=False)
    assert recorder.calls == [1, 1, 1]
    recorder.check_fired(1)
    with pytest.raises(RuntimeError, match=r"did not fire once per forward in layers \[0, 1, 2\]"):
        recorder.check_fired(2)
    model.hidden(ids, use_cache=False)  # outside the block nothing is recorded
    assert recorder.calls == [1, 1, 1]


def test_a_layer_that_bypasses_the_hook_fails_the_run():
    model = wrap(tiny.transformer("llama"), tiny.tokenizer(), "bypassed")
    model.hf.model.layers[1].self_attn.forward = lambda hidden_states, **_: (hidden_states, None)
    with pytest.raises(RuntimeError, match=r"did not fire once per forward in layers \[1\]"):
        run(model, text(), pipeline("a2sf(budget=12)"))


def test_the_hook_is_taken_off_when_the_work_fails():
    recorder = recorder_of(tiny.model())
    with pytest.raises(ZeroDivisionError), recording(recorder):
        raise ZeroDivisionError
    tiny.model().hidden(torch.tensor([text()[:8]]), use_cache=False)
    assert recorder.calls == [0, 0, 0]


def test_a_recorder_follows_one_text_at_a_time():
    with pytest.raises(ValueError, match="one text at a time; got a batch of 2"), recording(recorder_of(tiny.model())):
        tiny.model().hidden(torch.tensor([text()[:8]] * 2), use_cache=False)


@pytest.mark.parametrize("generating", [False, True])
def test_progress_rises_to_one_and_can_cancel(generating):
    def go(progress):
        if generating:
            return generate(tiny.model(), text()[:20], pipeline("a2sf(budget=12)"), max_new_tokens=4, progress=progress)
        return run(tiny.model(), text()[:20], pipeline("a2sf(budget=12)"), progress=progress)

    shares: list[float] = []
    go(lambda share, doing: shares.append(share))
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert len(shares) > 6

    def cancel(share: float, doing: str) -> None:
        if share > 0.3:
            raise InterruptedError(doing)

    with pytest.raises(InterruptedError):
        go(cancel)
    assert np.isfinite(run(tiny.model(), text()[:20]).perplexity)  # and the model works on


@pytest.mark.parametrize("method", ["a2sf(budget=12)", "h2o(budget=12)", "a2sf(budget=12, variant=prefill)"])
@pytest.mark.parametrize("layer", [0, 2])
def test_refilled_scores_are_those_of_the_run(method, layer):
    trace = traced(method, text(), snapshots=7)
    steps, scores = refill(tiny.model(), trace, pipeline(method), layer, steps=trace.snapshot_steps.tolist())
    same(steps, trace.snapshot_steps)
    same(scores, trace.snapshots[layer], atol=1e-6)
    every, more = refill(tiny.model(), trace, pipeline(method), layer)
    assert every.tolist() == list(range(trace.n_tokens))
    same(more[:, trace.snapshot_steps], trace.snapshots[layer], atol=1e-6)


def test_long_texts_keep_few_snapshots_and_the_last():
    from sparsity_core.inference.stages import snapshot_steps

    steps = snapshot_steps(tiny.model(), 100_000, 64)  # 6 M numbers over 3 layers · 2 heads · 100,000 keys
    assert len(steps) == 10
    assert steps[-1] == 99_999
    assert snapshot_steps(tiny.model(), 1, 64) == [0]
    assert snapshot_steps(tiny.model(), 9, 1) == [8]
    assert snapshot_steps(tiny.model(), 9, 0) == []


def test_what_does_not_fit_is_refused_with_a_sentence():
    model, most = tiny.model(), tiny.MAX_POSITIONS
    with pytest.raises(ValueError, match="the prompt is empty"):
        run(model, "  \n ")
    with pytest.raises(ValueError, match="the prompt is empty"):
        run(model, [])
    with pytest.raises(
        ValueError, match=rf"the prompt has {most + 2} tokens and tiny-llama reads at most {most}: shorten it by 2"
    ):
        run(model, "x" * (most + 2))
    with pytest.raises(ValueError, match="shorten it by 1 tokens"):
        run(model, [5] * (most + 1))
    with pytest.raises(ValueError, match="generate at most 20"):
        generate(model, [5] * (most - 20), max_new_tokens=21)
    with pytest.raises(ValueError, match="max_new_tokens is at least 1; got 0"):
        generate(model, "text", max_new_tokens=0)
    with pytest.raises(ValueError, match="token ids lie between 0 and 257; got 5 to 258"):
        run(model, [5, 258])
    with pytest.raises(ValueError, match="token ids lie between 0 and 257; got -1 to 5"):
        generate(model, [-1, 5])
    with pytest.raises(ValueError, match="the seed is a whole number of 64 bits"):
        run(model, "text", seed=2**64)
    with pytest.raises(ValueError, match="half a surrogate pair"):
        run(model, "a\ud800b")
    with pytest.raises(ValueError, match="lists 2 layers and the model has 3"):
        run(model, "text", pipeline("a2sf(forgetting_factor=[0.1, 0.2])"))
    with pytest.raises(ValueError, match=r"a pipeline is a Pipeline, as in .* or its text; got A2SF"):
        run(model, "text", methods.A2SF())
    for prompt in ([[1, 2]], [1.5], 7, ["two", "texts"]):
        with pytest.raises(ValueError, match="a prompt is a text, or a flat list of token ids"):
            run(model, prompt)
    for seed in (1.5, "1", None):
        with pytest.raises(ValueError, match="seed is a whole number; got"):
            run(model, "text", seed=seed)
    with pytest.raises(ValueError, match="n_prefill is 0 or more tokens; got -1"):
        run(model, "text", pipeline("snapkv(budget=32)"), n_prefill=-1)
    for temperature in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="temperature is 0 or more; got"):
            generate(model, "text", temperature=temperature)


def test_numbers_of_numpy_and_torch_and_a_pipelines_text_serve(tmp_path):
    spelled = "eviction=random(budget=12)"
    wanted = traced("random(budget=12)", text(), seed=3, against_dense=False)
    asked = {"seed": np.int64(3), "n_prefill": np.int32(PROMPT), "against_dense": False}
    for ids in (np.array(text()), torch.tensor(text())):
        trace = run(tiny.model(), ids, spelled, **asked)
        same_traces(trace, wanted)
        trace.save(tmp_path / "t.npz")
    made = generate(tiny.model(), text(), spelled, max_new_tokens=np.int64(2), stop_at_eos=False)
    assert len(made.token_ids) == 2
    cold = generate(tiny.model(), text(), max_new_tokens=4, temperature=1e-300, stop_at_eos=False)
    assert cold.token_ids == generate(tiny.model(), text(), max_new_tokens=4, stop_at_eos=False).token_ids


def test_the_longest_text_that_fits_runs():
    trace = run(tiny.model(), [5] * tiny.MAX_POSITIONS, pipeline("a2sf(budget=12)"), against_dense=False)
    assert trace.n_tokens == tiny.MAX_POSITIONS
    out = generate(tiny.model(), [5] * (tiny.MAX_POSITIONS - 2), max_new_tokens=2, stop_at_eos=False)
    assert len(out.token_ids) == 2


def test_a_single_token_runs():
    trace = run(tiny.model(), [65], pipeline("a2sf(budget=12)"))
    assert np.isnan(trace.nll).all()
    assert np.isnan(trace.perplexity)
    assert trace.density() == 1.0
    assert trace.evicted_at.tolist() == [[[1], [1]]] * 3


def test_any_seed_of_64_bits_serves():
    for seed in (-(2**63), -1, 2**63 - 1):
        trace = traced("random(budget=12)", text(), seed=seed, against_dense=False)
        assert trace.provenance.seed == seed

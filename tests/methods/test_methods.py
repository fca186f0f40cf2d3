"""The methods by hand-worked examples, their one spelling, and what they refuse."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from sparselens_kernels import flash_column_score
from sparselens_kernels.rows import decayed_sums

from sparsity_core import Pipeline, methods
from sparsity_core.attention import EvictionStage, Recorder, Stages, layer_rules
from sparsity_core.kinds.eviction import FORGETTING_CLASSES, EvictionMethod, LayerShape
from sparsity_core.kinds.knobs import REDUCTIONS, RULES, knob
from sparsity_core.kinds.registry import register
from sparsity_core.models import AttentionCall
from sparsity_core.models.model import Architecture

ONE_LAYER = Architecture("hand", n_layers=1, n_heads=1, n_kv_heads=1, head_dim=8, hidden_size=8, max_positions=8)


def follow(method, rows, n_prefill=0, values=None, classes=None):
    """(evicted_at [T], threshold [T]) of one head whose query t attends to key k in proportion to rows[t][k]."""
    n = len(rows)
    log_rows = [[math.log(x) if x else -1e4 for x in row] + [0.0] * (n - len(row)) for row in rows]
    q = torch.tensor(log_rows, dtype=torch.float64)[None, None]
    k = torch.eye(n, dtype=torch.float64)[None, None]
    v = k if values is None else torch.tensor(values, dtype=torch.float64)[None, None, :, None]
    model, classes = (
        SimpleNamespace(arch=ONE_LAYER, caches=(), shares_caches=False, cached_in=lambda i: i),
        classes or ["word"] * n,
    )
    eviction = EvictionStage(model, layer_rules(model, method), n_tokens=n, n_prefill=n_prefill, token_classes=classes)
    recorder = Recorder(model, Stages(eviction), n_tokens=n)
    recorder.attend(AttentionCall(0, q, k, v, scale=1.0))
    return recorder.evicted_at(n)[0, 0].tolist(), eviction.record(n).threshold[0, 0]


NOTES_ROWS = [[0.4, 0.3, 0.2, 0.1], [0.5, 0.2, 0.1, 0.2], [0.3, 0.1, 0.4, 0.2]]
NOTES_SCORES = [0.956, 0.452, 0.608, 0.424]  # .4·.64 + .5·.8 + .3 = .956, and so on


def test_the_notes_example_of_a_decayed_sum():
    rows = torch.tensor(NOTES_ROWS, dtype=torch.float64)[None, None, None, None]
    none = torch.zeros(1, 1, 4, dtype=torch.float64)
    score = decayed_sums(none, rows, [rows.shape[4]], decay=0.8, reduction="sum", weight=None)
    assert score.flatten().tolist() == pytest.approx(NOTES_SCORES, abs=1e-12)


def test_the_notes_example_through_attention():
    """Three queries whose own keys get no attention, after four cached keys that get the notes' rows."""
    q = torch.full((1, 1, 3, 7), -1e4, dtype=torch.float64)
    q[..., :4] = torch.tensor(NOTES_ROWS, dtype=torch.float64).log()
    k = torch.eye(7, dtype=torch.float64)[None, None]
    found = flash_column_score(q, k, k, decay=0.8, scale=1.0, backend="reference")
    assert found.score.flatten().tolist() == pytest.approx([*NOTES_SCORES, 0, 0, 0], abs=1e-12)


# Rows are what the dense model would attend; what a dropped key has is shared out among the kept in proportion.
HAND_ROWS = [
    [1.0],
    [0.4, 0.6],
    [0.5, 0.3, 0.2],
    [0.04, 0.16, 0.6, 0.2],
    [0.02, 0.02, 0.4, 0.4, 0.16],
    [0.1, 0.2, 0.1, 0.1, 0.3, 0.2],
]


def test_a2sf_by_hand():
    """α = .5, budget 2:

    query 1  scores .5·1 + .4 = .9, .6
    query 2  .45 + .5 = .95, .3 + .3 = .6, .2 → key 2 goes at .2
    query 3  row over 0, 1, 3: .1, .4, .5 → .575, .7, .5 → key 3 goes at .5
    query 4  row over 0, 1, 4: .1, .1, .8 → .3875, .45, .8 → key 0 goes at .3875
    query 5  row over 1, 4, 5: 2/7, 3/7, 2/7 → .225 + 2/7, .4 + 3/7, 2/7 → key 5 goes at 2/7
    """
    evicted_at, threshold = follow(methods.A2SF(budget=2, forgetting_factor=0.5), HAND_ROWS)
    assert evicted_at == [5, 6, 3, 4, 6, 6]
    assert threshold[2:].tolist() == pytest.approx([0.2, 0.5, 0.3875, 2 / 7], abs=1e-6)
    assert np.isnan(threshold[:2]).all()


def test_h2o_by_hand():
    """Budget 2, so one recent key is safe:

    query 2  scores 1 + .4 + .5 = 1.9, .6 + .3 = .9, .2 (safe) → key 1 goes at .9
    query 3  row over 0, 2, 3: .04, .6, .2 of .84 → 1.9 + 1/21, .2 + 15/21, 5/21 (safe) → key 2 goes at .2 + 15/21
    query 4  row over 0, 3, 4: .02, .4, .16 of .58 → key 3: 5/21 + 20/29, key 0: 1.9 + … → key 3 goes
    query 5  row over 0, 4, 5: .1, .3, .2 of .6 → key 4: 8/29 + .5, key 0 above 1.9 → key 4 goes
    """
    evicted_at, threshold = follow(methods.H2O(budget=2), HAND_ROWS)
    assert evicted_at == [6, 3, 4, 5, 6, 6]
    assert threshold[2:].tolist() == pytest.approx([0.9, 0.2 + 15 / 21, 5 / 21 + 20 / 29, 8 / 29 + 0.5], abs=1e-6)


def test_tova_by_hand():
    """The lowest of each row alone: query 2 .2 of key 2; query 3 over 0, 1, 3 .1 of key 0; query 4 over 1, 3, 4
    .02/.58 of key 1; query 5 over 3, 4, 5 .1/.6 of key 3."""
    evicted_at, threshold = follow(methods.TOVA(budget=2), HAND_ROWS)
    assert evicted_at == [4, 5, 3, 6, 6, 6]
    assert threshold[2:].tolist() == pytest.approx([0.2, 0.1, 0.02 / 0.58, 0.1 / 0.6], abs=1e-6)


def test_a_forgetting_factor_by_class_spares_that_class():
    """Key 0 is a number that forgets nothing: at query 4 it has 1.9 + .1 + .1, and key 1 goes at .45 in its place."""
    method = methods.A2SF(budget=2, forgetting_factor={"number": 1.0, "other": 0.5})
    classes = ["number", "word", "word", "word", "word", "word"]
    evicted_at, threshold = follow(method, HAND_ROWS, classes=classes)
    assert evicted_at[:2] == [6, 5]
    assert threshold[4] == pytest.approx(0.45)


def test_value_norm_weighs_the_attention_by_the_norm_of_the_value():
    """TOVA with values 1, −4, 1: at query 2 .5·1, .3·4, .2·1 drops key 2; with values 1, 1, 10 .5, .3, 2 drops key 1."""
    weighed = methods.TOVA(budget=2, value_norm=True)
    assert follow(weighed, HAND_ROWS[:4], values=[1, -4, 1, 1])[0][2] == 3
    evicted_at, threshold = follow(weighed, HAND_ROWS[:4], values=[1, 1, 10, 1])
    assert evicted_at[1] == 3
    assert threshold[2] == pytest.approx(0.3)


def test_a2sf_prefill_by_hand():
    """α = .5 over the first 4 rows, dense: key 0 1/8 + .1 + .25 + .04 = .515, key 1 .15 + .15 + .16 = .46,
    key 2 .1 + .6 = .7, key 3 .2. Two stay, 0 and 2; the highest score that goes is .46.

    query 4  row over 0, 2, 4: .02, .4, .16 of .58 → .2575 + 1/29, .35 + 20/29, 8/29 → key 4 goes at 8/29
    """
    method = methods.A2SF(budget=2, forgetting_factor=0.5, variant="prefill")
    evicted_at, threshold = follow(method, [*HAND_ROWS[:5], [0.1] * 6], n_prefill=4)
    assert evicted_at[:5] == [6, 4, 6, 4, 5]
    assert threshold[3:5].tolist() == pytest.approx([0.46, 8 / 29], abs=1e-6)


def test_snapkv_by_hand():
    """The last 2 of 5 prompt queries vote (rows 3 and 4): .06, .18, 1.0, and keys 3 and 4 are the window.

    Pooled over 3 neighbours, the window's own votes left out as by the authors: .24/3, 1.24/3, 1.18/3 → key 1 stays
    beside the window at budget 3, and the highest that goes is 1.18/3. Query 5 drops nothing.
    """
    method = methods.SnapKV(budget=3, observation_window=2, pool=3)
    evicted_at, threshold = follow(method, HAND_ROWS, n_prefill=5)
    assert evicted_at == [5, 6, 5, 6, 6, 6]
    assert threshold[4] == pytest.approx(1.18 / 3)
    assert np.isnan(threshold[[0, 1, 2, 3, 5]]).all()


def test_streaming_llm_by_hand():
    """Budget 3 with one sink: query t drops key t − 2, from t = 3 on."""
    evicted_at, _ = follow(methods.StreamingLLM(budget=3, n_sink=1), [[1.0] * (t + 1) for t in range(8)])
    assert evicted_at == [8, 4, 5, 6, 7, 8, 8, 8]


def test_local_window_by_hand():
    """Budget 3: query t drops key t − 3."""
    evicted_at, _ = follow(methods.LocalWindow(budget=3), [[1.0] * (t + 1) for t in range(8)])
    assert evicted_at == [4, 5, 6, 7, 8, 8, 8, 8]


def test_sinks_and_recent_keys_are_never_dropped():
    method = methods.A2SF(budget=4, n_sink=1, recent=2, forgetting_factor=0.5)
    rows = [[1e-6, *([0.1] * t)] for t in range(12)]  # nobody looks at key 0
    evicted_at, _ = follow(method, rows)
    assert evicted_at[0] == 12
    assert all(gone > key + 2 for key, gone in enumerate(evicted_at[:10]))


def _numbers(meta, default):
    low = meta["at_least"] if meta["at_least"] is not None else meta["low"] or -10
    if isinstance(default, float):
        return st.floats(low, 1.0 if meta["at_most"] is None else meta["at_most"])
    return st.integers(low, 90) | st.integers(low, 900 if meta["at_most"] is None else min(900, meta["at_most"]))


def _values(knob):
    if knob.name == "forgetting_factor":
        factor = st.floats(0, 1) | st.sampled_from([0, 1])
        row = factor | st.lists(factor, min_size=1, max_size=4)
        classes = st.dictionaries(st.sampled_from([*FORGETTING_CLASSES, "other"]), factor)
        return factor | st.lists(row, min_size=1, max_size=4) | classes
    if knob.name in RULES:
        return st.sampled_from(["", "0-3", "17, 5-9", r"/[0-9]+ 'a' \d/, 4", '/"(x|y)"/'])
    if knob.name in ("layer_tokens", "layer_channels"):
        return st.sampled_from(["", "1", "32, 16" if "channels" in knob.name else "1, 0.5, 0.25"])
    if knob.metadata["choices"]:
        return st.sampled_from(knob.metadata["choices"])
    if isinstance(knob.default, str):
        return st.text(min_size=1, max_size=12) | st.sampled_from(["auto", "True", "/a folder/it's (1).safetensors"])
    return st.booleans() if isinstance(knob.default, bool) else _numbers(knob.metadata, knob.default)


@pytest.mark.parametrize("name", methods.names())
@settings(max_examples=60, suppress_health_check=[HealthCheck.filter_too_much])  # knobs that exclude each other
@given(data=st.data())
def test_a_pipeline_reads_back_as_it_is_spelled(name, data):
    cls = methods.get(name)
    chosen = {knob.name: data.draw(_values(knob), label=knob.name) for knob in cls.knobs()}
    if "budget" in chosen:
        chosen["budget"] = data.draw(st.integers(200, 2000), label="budget")
    try:
        method = cls(**chosen)
    except ValueError:
        assume(False)
    pipeline = Pipeline(**{cls.stage: method})
    read = Pipeline.parse(str(pipeline))
    assert read == pipeline
    assert str(read) == str(pipeline)
    assert hash(getattr(read, cls.stage)) == hash(method)


def test_the_spelling_is_the_budget_and_what_is_not_at_its_default():
    assert str(Pipeline()) == "dense"
    assert Pipeline.parse(" dense ") == Pipeline()
    assert str(Pipeline.parse("eviction=a2sf")) == "eviction=a2sf(budget=256)"
    spelled = "eviction=a2sf(budget=64, reduction=max, forgetting_factor=[[0.1, 0.2], 0.3], variant=prefill, recent=16)"
    assert str(Pipeline.parse(spelled)) == spelled
    assert str(methods.A2SF(forgetting_factor={"other": 0.3, "number": 1})) == (
        "a2sf(budget=256, forgetting_factor={number: 1.0, other: 0.3})"
    )


def test_equal_methods_have_one_spelling_and_one_hash():
    for one, other in [
        (methods.H2O(recent_share=1), methods.H2O(recent_share=1.0)),
        (methods.H2O(recent_share=-0.0), methods.H2O(recent_share=0.0)),
        (methods.H2O(recent_share=np.float64(0.25)), methods.H2O(recent_share=0.25)),
        (methods.A2SF(forgetting_factor=1), methods.A2SF(forgetting_factor=1.0)),
        (methods.A2SF(forgetting_factor=[0.5, [0, 1]]), methods.A2SF(forgetting_factor=(0.5, (0.0, 1.0)))),
        (
            methods.A2SF(forgetting_factor={"capitalised": 1, "word": 0}),
            methods.A2SF(forgetting_factor={"word": 0, "capitalised": 1}),
        ),
        (
            methods.A2SF(forgetting_factor={"name": 1, "word": 0}),  # as links of before spell it
            methods.A2SF(forgetting_factor={"capitalised": 1, "word": 0}),
        ),
    ]:
        assert one == other
        assert str(one) == str(other)
        assert hash(one) == hash(other)
    assert methods.H2O() != methods.A2SF()
    assert len({methods.A2SF(budget=8), methods.A2SF(budget=9), methods.A2SF(budget=8)}) == 2


def test_white_space_does_not_matter():
    assert Pipeline.parse("  eviction = a2sf ( budget = 8 , forgetting_factor = { number : 1 } ) ") == Pipeline.parse(
        "eviction=a2sf(budget=8,forgetting_factor={number:1.0})"
    )


REFUSED_SPELLINGS = {
    "": "write 'dense'",
    "a2sf(budget=8)": "a pipeline is 'dense' or stages",
    "evictoin=a2sf(budget=8)": "there is no stage 'evictoin'; did you mean 'eviction'?",
    "eviction=a2fs(budget=8)": "there is no method 'a2fs'; did you mean 'a2sf'?",
    "eviction=streaming(budget=8)": "did you mean 'streaming_llm'?",
    "eviction=zzz": "there is no method 'zzz'; there are a2sf, ",
    "eviction=a2sf(budgt=8)": "a2sf has no knob 'budgt'; did you mean 'budget'?",
    "eviction=h2o(forgetting_factor=1)": "h2o has no knob 'forgetting_factor'",
    "eviction=a2sf(budget=8) eviction=h2o(budget=8)": "the eviction stage is given twice",
    "eviction=a2sf(budget=8, budget=9)": "budget is given twice",
    "gate=a2sf(budget=8)": "is no method of the gate stage: write eviction=a2sf",
    "eviction=a2sf(budget=8": "a bracket is left open",
    "eviction=a2sf(budget=8))": "cannot read ')'",
    "eviction=a2sf(8)": "a method is written name(knob=value",
    "eviction=a2sf(**{budget: 8})": "a method is written name(knob=value",
    "eviction=a2sf(budget=__import__('os').getcwd())": "cannot read the value",
    "eviction=a2sf(budget=open)": "budget is a whole number; got 'open'",
    "eviction=a2sf(budget={[8]})": "cannot read the value",
    f"eviction=a2sf(budget={'-' * 9000}8)": "cannot read",
    f"eviction=a2sf(budget={'(' * 900}8{')' * 900})": "cannot read",
}


@pytest.mark.parametrize("text", REFUSED_SPELLINGS, ids=lambda text: text[:40])
def test_a_spelling_that_cannot_be_read_is_refused_with_what_to_do(text):
    with pytest.raises(ValueError) as refused:
        Pipeline.parse(text)
    assert REFUSED_SPELLINGS[text] in str(refused.value)


@settings(max_examples=300)
@given(st.text(alphabet="eviction=a2sf(budget4,.[]{}: '\"\\\n*-é\0", max_size=40).map("eviction=a2sf(".__add__))
def test_no_text_breaks_the_parser(text):
    try:
        Pipeline.parse(text)
    except ValueError as refused:
        assert str(refused)


REFUSED_KNOBS = [
    ("a2sf", {"budget": 0}, "a2sf: budget is at least 1; got 0"),
    ("a2sf", {"budget": -1}, "a2sf: budget is at least 1; got -1"),
    ("a2sf", {"budget": 2.5}, "a2sf: budget is a whole number; got 2.5"),
    ("a2sf", {"budget": True}, "a2sf: budget is a whole number; got True"),
    ("a2sf", {"budget": None}, "a2sf: budget is a whole number; got None"),
    ("a2sf", {"budget": "64"}, "a2sf: budget is a whole number; got '64'"),
    ("a2sf", {"budget": 10**400}, "a2sf: budget is at most 1000000000"),
    ("a2sf", {"budget": 8, "n_sink": 5, "recent": 4}, "n_sink + recent = 9 is above the budget of 8"),
    ("a2sf", {"n_sink": -1}, "n_sink is at least 0"),
    ("a2sf", {"forgetting_factor": 1.01}, "a forgetting factor lies between 0 and 1; got 1.01"),
    ("a2sf", {"forgetting_factor": -0.1}, "a forgetting factor lies between 0 and 1; got -0.1"),
    ("a2sf", {"forgetting_factor": float("nan")}, "a forgetting factor lies between 0 and 1; got nan"),
    ("a2sf", {"forgetting_factor": True}, "a forgetting factor lies between 0 and 1; got True"),
    ("a2sf", {"forgetting_factor": "0.3"}, "a forgetting factor lies between 0 and 1; got '0.3'"),
    ("a2sf", {"forgetting_factor": [0.5, [0.5, 2]]}, "a forgetting factor lies between 0 and 1; got 2"),
    ("a2sf", {"forgetting_factor": {"name": 0.5, "capitalised": 0.5}}, "a token class is given twice"),
    ("a2sf", {"forgetting_factor": {"numbers": 0.5}}, "'numbers' is no token class; there are number, punctuation"),
    ("a2sf", {"forgetting_factor": {"number": 1.5}}, "a forgetting factor lies between 0 and 1; got 1.5"),
    ("a2sf", {"forgetting_factor": {1: 0.5, "x": 0.5}}, "'1' is no token class"),
    ("a2sf", {"variant": "official"}, "a2sf: variant is one of paper, prefill; got 'official'"),
    ("a2sf", {"reduction": "median"}, "a2sf: reduction is one of sum, mean, max; got 'median'"),
    ("a2sf", {"layer_budget": ["uniform"]}, "layer_budget is one of uniform, pyramid"),
    ("a2sf", {"value_norm": 1}, "a2sf: value_norm is True or False; got 1"),
    ("a2sf", {"dense_layers": -1}, "dense_layers is at least 0"),
    ("h2o", {"recent_share": 1.5}, "h2o: recent_share is at most 1; got 1.5"),
    ("h2o", {"recent_share": -0.5}, "h2o: recent_share is at least 0"),
    ("h2o", {"recent_share": float("nan")}, "h2o: recent_share is a number; got nan"),
    ("h2o", {"recent_share": float("inf")}, "h2o: recent_share is a number; got inf"),
    ("streaming_llm", {"budget": 3}, "streaming_llm: n_sink = 4 is above the budget of 3"),
    ("snapkv", {"budget": 16}, "snapkv: observation_window = 32 is above the budget of 16"),
    ("snapkv", {"pool": 4}, "snapkv: pool is an odd number of keys; got 4"),
    ("snapkv", {"pool": 10**18 + 1}, "snapkv: pool is at most"),
    ("random", {"budget": 8, "recent": 9}, "random: n_sink + recent = 9 is above the budget of 8"),
]


@pytest.mark.parametrize(("name", "knobs", "sentence"), REFUSED_KNOBS, ids=lambda item: str(item)[:40])
def test_a_knob_that_cannot_be_is_refused(name, knobs, sentence):
    with pytest.raises(ValueError) as refused:
        methods.get(name)(**knobs)
    assert sentence in str(refused.value)


def test_numbers_of_numpy_and_torch_are_numbers():
    wanted = methods.A2SF(budget=8, forgetting_factor=[0.25, [0.5, 1.0]])
    for whole in (np.int64(8), np.array(8), torch.tensor(8)):
        assert methods.A2SF(budget=whole, forgetting_factor=[np.float64(0.25), np.array([0.5, 1.0])]) == wanted
    assert methods.A2SF(forgetting_factor=torch.tensor([0.25, 0.5])) == methods.A2SF(forgetting_factor=[0.25, 0.5])
    assert methods.A2SF(forgetting_factor=torch.tensor(0.5)) == methods.A2SF(forgetting_factor=0.5)


def test_a_share_of_the_budget_is_of_the_number_as_written():
    """0.29 · 100 is 28.999… in binary."""
    assert methods.H2O(budget=100, recent_share=0.29).rule(LayerShape(0, 1, 1)).recent == 29


def test_a_factor_list_must_fit_the_model():
    layer = LayerShape(index=1, n_layers=3, n_kv_heads=2)
    assert methods.A2SF(forgetting_factor=[0.1, [0.2, 0.4], 0.3]).rule(layer).decay == (0.2, 0.4)
    with pytest.raises(ValueError, match="lists 2 layers and the model has 3"):
        methods.A2SF(forgetting_factor=[0.1, 0.2]).rule(layer)
    with pytest.raises(ValueError, match="lists 3 heads and the model has 2 KV heads"):
        methods.A2SF(forgetting_factor=[0.1, [0.2, 0.4, 0.6], 0.3]).rule(layer)


def test_a_pyramid_too_small_for_its_protected_keys_is_refused_by_layer():
    method = methods.A2SF(budget=10, layer_budget="pyramid", recent=6)
    assert method.rule(LayerShape(0, 3, 2)).budget == 15
    with pytest.raises(ValueError, match=r"layer 2 keeps 5 keys, fewer than the 0 sinks \+ 6 recent keys it protects"):
        method.rule(LayerShape(2, 3, 2))


@given(budget=st.integers(1, 5000), n_layers=st.integers(1, 100))
def test_a_pyramid_spends_as_much_as_a_uniform_budget(budget, n_layers):
    method = methods.LocalWindow(budget=budget, layer_budget="pyramid")
    budgets = [method.budget_of(LayerShape(i, n_layers, 1)) for i in range(n_layers)]
    assert sum(budgets) == n_layers * budget
    assert min(budgets) >= 1
    assert budgets == sorted(budgets, reverse=True)


def test_a_pyramid_runs_from_three_halves_to_one_half():
    method = methods.LocalWindow(budget=8, layer_budget="pyramid")
    assert [method.budget_of(LayerShape(i, 5, 1)) for i in range(5)] == [12, 10, 8, 6, 4]


def test_dense_layers_keep_everything():
    method = methods.A2SF(budget=8, dense_layers=2)
    assert [method.rule(LayerShape(i, 4, 1)).budget for i in range(4)] == [None, None, 8, 8]


@pytest.mark.parametrize("name", methods.names())
def test_every_method_says_what_it_is(name):
    cls = methods.get(name)
    assert cls.name == name
    assert cls.__doc__ and not cls.__doc__.startswith(f"{cls.__name__}(")
    assert cls.source
    assert getattr(methods, cls.__name__) is cls
    assert all(own.metadata["help"] for own in cls.knobs())
    for own in cls.knobs():
        assert own.metadata["choices"] is None or own.default in own.metadata["choices"]
    str(cls())  # its defaults are valid


def test_eviction_methods_of_the_papers_are_there():
    assert {"a2sf", "h2o", "tova", "snapkv", "streaming_llm", "local_window", "random"} <= set(
        methods.names("eviction")
    )
    assert methods.names("no such stage") == []
    assert REDUCTIONS[0] == methods.H2O().reduction == "sum"
    with pytest.raises(AttributeError, match="there is no method class 'A3SF'"):
        methods.A3SF  # noqa: B018


def test_a_taken_name_is_refused():
    with pytest.raises(ValueError, match="two methods are named a2sf"):

        @register
        class A2SF(EvictionMethod):
            name = "a2sf"


def test_numbers_of_numpy_are_numbers() -> None:
    given = methods.A2SF(budget=np.int64(64), forgetting_factor=np.float32(0.5), value_norm=np.bool_(True))
    assert given == methods.A2SF(budget=64, forgetting_factor=0.5, value_norm=True)
    assert Pipeline.parse(f"eviction={given}").eviction == given


def test_a_knob_with_a_parser_needs_no_other_place_that_knows_it():
    """Its value is what the parser makes of a given one, in the constructor, in a pipeline's text and when it is spelled."""

    def pair(method: str, value: object) -> tuple[float, ...]:
        if not isinstance(value, (tuple, list)) or len(value) != 2:
            raise ValueError(f"{method}: edges are two numbers; got {value!r}")
        return tuple(float(v) for v in value)

    @dataclass(frozen=True)
    class Between(EvictionMethod):
        name: ClassVar[str] = "between"
        edges: tuple[float, float] = knob((0.0, 1.0), parse=pair, help="from and to")
        share: float = knob(0.5, always=True, help="always spelled")

    assert str(Between(edges=[0, 2])) == "between(budget=256, edges=[0.0, 2.0], share=0.5)"
    assert Between(edges=(0, 1)) == Between()
    with pytest.raises(ValueError, match=r"between: edges are two numbers; got 3"):
        Between(edges=3)


def test_knobs_that_name_files_say_so():
    named = {name: [k.name for k in methods.get(name).knobs() if k.metadata["path"]] for name in methods.names()}
    assert {name: files for name, files in named.items() if files} == {
        "prunenet": ["policy"],
        "dcp": ["adapter"],
        "double_sparsity": ["calibration"],
    }
    assert methods.PruneNet().inputs() == {}  # what ships is no file of the user's
    assert methods.PruneNet(policy="nowhere/at.all").inputs() == {"policy": "absent"}


@pytest.mark.parametrize("name", methods.names("weights"))
def test_every_weights_method_has_a_ratio_and_says_whether_it_reads_text(name):
    method = methods.get(name)()
    assert str(replace(method, ratio=0.5)).startswith(f"{name}(ratio=0.5")
    assert method.reads_text == ("calibration text" in method.inputs())

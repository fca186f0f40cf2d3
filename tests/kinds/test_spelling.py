"""A pipeline's one spelling, and what each knob takes and refuses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from sparsity_core import Pipeline, methods
from sparsity_core.kinds.eviction import FORGETTING_CLASSES, EvictionMethod, LayerShape
from sparsity_core.kinds.knobs import RULES, knob

BASES = ["knorm(n_sink=3)", "keydiff(every=0)", "'snapkv'", "sparq", "quest(tokens=0.5, page=8)", "dense"]


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
    if knob.name == "base":
        return st.sampled_from([knob.default, *BASES])
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
    ("a2sf", {"variant": "official"}, "a2sf: variant is one of paper, prefill, prefill_only; got 'official'"),
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


@pytest.mark.parametrize(
    ("pipeline", "said"),
    [
        ("gate=dcp decode=quest", "leave the gate and eviction empty"),
        ("eviction=h2o decode=double_sparsity(offload=True)", "or turn offload off"),
        (
            "weights=slicegpt gate=dcp",
            "slicegpt changes the residual stream that the gate reads: leave one of the two out",
        ),
        ("prefill=minference decode=quest", "minference gives each query head keys of its own"),
    ],
)
def test_two_stages_that_cannot_run_together_are_refused_with_the_reason(pipeline, said):
    with pytest.raises(ValueError, match=said):
        Pipeline.parse(pipeline).check(generates=False, shares_heads=True)


def test_a_mask_of_each_query_head_may_come_before_reads_that_only_begin_after_it():
    made = Pipeline.parse("prefill=minference decode=quest")
    made.check(generates=True, shares_heads=True)
    made.check(generates=False, shares_heads=False)
    Pipeline.parse("weights=row_norm gate=dcp prefill=assa eviction=h2o decode=sparq").check(
        generates=False, shares_heads=True
    )

"""Whatever a link spells, it is a pipeline within bounds or a sentence."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sparsity_core import Pipeline, methods
from sparsity_core.kinds.knobs import RULES

KNOBS = [(name, knob) for name in methods.names() for knob in methods.get(name).knobs()]
NUMBERS = [(name, knob) for name, knob in KNOBS if type(knob.default) in (int, float)]
TEXTS = [(name, knob) for name, knob in KNOBS if isinstance(knob.default, str) and not knob.metadata["choices"]]


@pytest.mark.parametrize("room", ["sparsity_core", "sparsity_core.kinds"])
def test_a_pipeline_is_read_whatever_was_imported_before(room):
    script = f"from {room} import Pipeline; print(Pipeline.parse('eviction=h2o(budget=8)'))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "eviction=h2o(budget=8)\n"


def named(item: object) -> str:
    return item if isinstance(item, str) else getattr(item, "name", "")


@pytest.mark.parametrize(("name", "knob"), NUMBERS, ids=named)
def test_every_number_has_a_least_and_a_most_that_are_enforced(name, knob):
    if knob.name == "forgetting_factor":  # from 0 to 1, checked in every list and class
        with pytest.raises(ValueError, match="between 0 and 1"):
            methods.get(name)(forgetting_factor=1.01)
        return
    least, most = knob.metadata["at_least"], knob.metadata["at_most"]
    assert least is not None and most is not None and least < most
    assert least <= knob.metadata["low"] and knob.metadata["high"] <= most
    for outside in (most + 1, least - 1, 10**30, -(10**30), 16**6000):
        with pytest.raises(ValueError, match=rf"{knob.name} is at (least|most) ") as refused:
            methods.get(name)(**{knob.name: outside})
        assert len(str(refused.value)) < 250


@pytest.mark.parametrize(("name", "knob"), TEXTS, ids=named)
def test_every_text_has_a_most(name, knob):
    with pytest.raises(ValueError, match="at most 4,096 characters"):
        methods.get(name)(**{knob.name: "1" * 5000})


@pytest.mark.parametrize(("name", "knob"), TEXTS, ids=named)
def test_a_text_is_a_file_s_path_or_a_list_and_says_which(name, knob):
    lists = {*RULES, "layer_tokens", "layer_channels", "base"}  # base: another method, as it is spelled
    assert knob.metadata["path"] == (knob.name not in lists)


def test_a_path_is_not_touched_before_the_method_runs(monkeypatch):
    def touched(*args, **kwargs):
        raise AssertionError(f"touched {args}")

    paths = [(name, knob) for name, knob in KNOBS if knob.metadata["path"]]
    assert {knob.name for _, knob in paths} == {"adapter", "pattern", "policy", "calibration", "factors"}
    for place in ("builtins.open", "os.stat", "os.open", "os.path.exists"):
        monkeypatch.setattr(place, touched)
    found = []
    for name, knob in paths:
        method = methods.get(name)(**{knob.name: "/no/such/file"})
        found.append(str(Pipeline.parse(str(Pipeline(**{method.stage: method})))))
    monkeypatch.undo()
    assert all("/no/such/file" in text for text in found)


@pytest.mark.parametrize(
    "text",
    [
        "eviction=a2sf(budget=" + "-" * 900 + "1)",
        "eviction=a2sf(budget=a" + ".a" * 1500 + ")",
        "eviction=a2sf(budget=" + "(" * 5000,
        "eviction=a2sf(budget=" + "(" * 150 + "1" + ")" * 150 + ")",
        "eviction=a2sf(forgetting_factor=" + "[" * 90 + "1" + "]" * 90 + ")",
        "eviction=a2sf(forgetting_factor=" + "{a: " * 90 + "1" + "}" * 90 + ")",
        "eviction=h2o(recent_share=" + "1+" * 5000 + "1)",
        "eviction=a2sf(budget=\ud800)",
        "eviction=a2sf(budget=1\0)",
        "eviction=a2sf(protect='99999999999999999999')",
        "eviction=a2sf(protect='/" + "(" * 2000 + "/')",
        "weights=flap(samples=1000000000)",
        "gate=dcp(gamma=1" + "0" * 1000 + ")",
        "a" * 10**6,
    ],
    ids=lambda text: text[:45].encode("unicode_escape").decode(),
)
def test_a_pipeline_nested_or_grown_without_end_is_a_short_sentence(text):
    try:
        Pipeline.parse(text)
    except ValueError as refused:
        assert len(str(refused)) < 300
    else:
        assert "(" * 150 in text  # brackets around a number change nothing


spelled = st.one_of(
    st.text(max_size=80),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(
        ["-" * 300 + "1", "[" * 40, "{}", "'/no/such'", "True", "None", "1j", "b''", "f'{x}'", "lambda: 1"]
    ),
)


@given(knob=st.sampled_from(KNOBS), value=spelled)
@example(knob=KNOBS[0], value="\x00")
@settings(max_examples=300)
def test_any_value_of_any_knob_is_a_pipeline_or_a_sentence(knob, value):
    name, field = knob
    try:
        found = Pipeline.parse(f"{methods.get(name).stage}={name}({field.name}={value})")
    except ValueError as refused:
        assert 5 < len(str(refused)) < 600
    else:
        assert Pipeline.parse(str(found)) == found


@given(st.text(max_size=200))
@settings(max_examples=300)
def test_any_text_is_a_pipeline_or_a_sentence(text):
    try:
        found = Pipeline.parse(text)
    except ValueError as refused:
        assert 5 < len(str(refused)) < 600
    else:
        assert replace(found) == Pipeline.parse(str(found))

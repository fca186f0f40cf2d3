"""A user's own rules: which tokens they name, and what eviction does about them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsity_core import Pipeline, methods, run
from sparsity_core.attention import layer_rules
from sparsity_core.kinds.rules import parse_rules, ruled
from tests import tiny
from tests.inference.every import same, small
from tests.methods.gates import check_simulation, gate_file, gated
from viz.strip import strip_table


def test_rules_name_positions_spans_and_what_expressions_touch():
    texts = ["In", " 19", "69", ", a", " cat"]
    assert ruled("0, 3-4", texts, range(6), 6).tolist() == [True, False, False, True, True, False]
    assert ruled("/[0-9]+/", texts, range(6), 6).tolist() == [False, True, True, False, False, False]
    assert ruled(r"/a\/b/, 5", texts, range(6), 6).tolist() == [False] * 5 + [True]
    assert ruled("7", texts, range(6), 6).tolist() == [False] * 6
    assert parse_rules("") == []
    for text, message in [
        ("a", "cannot read the rule 'a'"),
        ("5-3", "ends before it begins"),
        ("/(/", "is no regular expression"),
        ("1 2", "cannot read the rule"),
    ]:
        with pytest.raises(ValueError, match=message):
            Pipeline.parse(f"eviction=a2sf(budget=12, protect={text!r})")


@given(spans=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 8)), max_size=6), n=st.integers(1, 40))
def test_positions_and_spans_name_the_tokens_between_their_ends(spans: list[tuple[int, int]], n: int) -> None:
    text = ", ".join(f"{first}-{first + more}" if more else f"{first}" for first, more in spans)
    named = {position for first, more in spans for position in range(first, first + more + 1)}
    assert np.flatnonzero(ruled(text, ["a"] * n, range(n), n)).tolist() == sorted(named & set(range(n)))


@given(st.text(alphabet="0123456789-, /[]()+*\\ab|é", max_size=40) | st.text(max_size=40))
def test_any_text_is_rules_or_a_sentence(text: str) -> None:
    try:
        found = ruled(text, ["a1", " b/", "é"], [0, 1, 2], 5)
    except ValueError as refused:
        assert 10 < len(str(refused)) < 600
    else:
        assert found.dtype == bool and found.shape == (5,)


@pytest.mark.parametrize("letters", [60, 20_000])
def test_an_expression_without_end_in_other_engines_ends(letters):
    assert not ruled("/(a|aa)+$/", ["a" * letters, "!"], [0, 1], 2).any()
    assert ruled("/(a|aa)+!/", ["a" * letters, "!"], [0, 1], 2).all()


@pytest.mark.parametrize("expression", ["((a{1000}){1000}){1000}", r"(a)\1", "(?<=a)b", "\udc80"])
def test_an_expression_that_cannot_be_bounded_is_a_sentence(expression):
    with pytest.raises(ValueError, match="is no regular expression that RE2 reads"):
        ruled(f"/{expression}/", ["a"], [0], 1)


def test_places_are_characters_whatever_their_bytes():
    assert ruled("/12/", ["é🙂", "12", "é"], [0, 1, 2], 3).tolist() == [False, True, False]


@pytest.mark.parametrize("name", methods.names("eviction"))
def test_every_eviction_method_keeps_what_is_protected_and_drops_what_is_forced(name):
    pipeline = Pipeline.parse(f"eviction={small(name)[:-1]}, protect='5, 17', drop='8-9')")
    layer_rules(tiny.model(), pipeline.eviction, prompt=tiny.ids(30))  # what is measured on the model is measured here
    check_simulation(tiny.model(), pipeline)
    trace = run(tiny.model(), tiny.ids(44), pipeline, n_prefill=30)
    assert (trace.evicted_at[..., [5, 17]] == 44).all()
    same(trace.evicted_at[..., 8], np.full((3, 2), 9))
    same(trace.evicted_at[..., 9], np.full((3, 2), 10))
    if not pipeline.eviction.cuts_once:
        assert (trace.keep(0)[:, 31:].sum(-1) <= trace.budgets[0][:, None] + 1).all()


def test_rules_work_with_a_budget_of_everything_and_protect_wins(tmp_path):
    pipeline = Pipeline.parse("eviction=a2sf(budget=99, protect='4', drop='3-4')")
    trace = run(tiny.model(), tiny.ids(20), pipeline)
    assert trace.evicted_at[0, 0].tolist() == [20, 20, 20, 4, *[20] * 16]
    assert np.flatnonzero(trace.protected).tolist() == [4]
    table = strip_table(trace, 0, 0)
    assert table["state"].tolist()[3:5] == ["dropped", "sink"] and table["ruled"].tolist()[4]
    kept = run(tiny.model(), tiny.ids(44), gated(gate_file(tmp_path, tiny.model()), protect="0-43"))
    assert kept.density() == 1.0


@pytest.mark.parametrize(
    ("method", "kept"),
    [
        ("snapkv(budget=12, observation_window=12, protect='3-5')", [3, 4, 5, *range(21, 30)]),
        ("a2sf(budget=12, variant=prefill, n_sink=2, recent=10, protect='0, 5')", [0, 1, 5, *range(21, 30)]),
    ],
)
def test_what_is_protected_stays_at_a_cut_and_the_oldest_of_the_recent_make_room(method, kept):
    """There is no choice by score, so no threshold either."""
    trace = run(tiny.model(), tiny.ids(31), Pipeline.parse(f"eviction={method}"), n_prefill=30)
    same(trace.keep(0)[:, 30], np.isin(np.arange(31), [*kept, 30])[None].repeat(2, 0))
    assert np.isnan(trace.threshold[..., 29]).all()


def test_a_protected_sink_counts_once():
    pipeline = Pipeline.parse("eviction=streaming_llm(budget=5, n_sink=4, protect='0-3')")
    assert (run(tiny.model(), tiny.ids(20), pipeline).evicted_at[..., :4] == 20).all()


def test_protecting_more_than_the_budget_is_refused():
    with pytest.raises(ValueError, match="protect names 20 tokens, which with 0 sinks and the newest token do not fit"):
        run(tiny.model(), tiny.ids(44), Pipeline.parse("eviction=a2sf(budget=12, protect='0-19')"))

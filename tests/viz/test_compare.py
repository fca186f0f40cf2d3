"""The figures of the Compare page, on traces whose numbers are worked out by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from sparsity_core.record import Trace
from sparsity_core.record.provenance import Provenance
from tests.traces import EVICTED_AT, named, trace
from tests.viz.figures import NAN, same
from tests.viz.test_pipeline import SIZES
from viz import compare, paper
from viz.compare.tradeoff import front_of
from viz.looks import look_of

MIB = 2**20
LATER = np.asarray(EVICTED_AT, np.int32)


def pair(**changes: object) -> dict:
    """The trace, and one that drops in every head what head 0 of the trace's layer drops."""
    other = LATER.copy()
    other[:, 1] = other[:, 0]
    return {"A: a2sf": trace(), "B: h2o": named("eviction=h2o(budget=3)", evicted_at=other, **changes)}


# --- quality against bytes ---


def test_quality_is_the_mean_over_the_prompts_or_the_generated_queries() -> None:
    prompt, generated = (compare.quality_of(trace(), span) for span in ("prompt", "generated"))
    assert (prompt["n"], generated["n"]) == (6, 2)
    same([prompt["kl"], generated["kl"]], [0.25, 1.75])  # 0, 0, 0, 0, .5, 1 and 1.5, 2
    same(prompt["perplexity"], np.exp(2.5))  # 0, 1, 2, 3, 4, 5 more than dense
    same(generated["perplexity"], np.exp(6))  # the last query's next token is not known
    same([prompt["disagrees"], generated["disagrees"]], [1 / 3, 0.5])


def test_a_text_without_a_generation_has_no_generated_queries_and_no_last_one() -> None:
    alone = trace(n_prompt=8)
    assert compare.quality_of(alone, "prompt")["n"] == 7
    assert np.isnan(compare.quality_of(alone, "generated")["kl"])


def test_bytes_read_are_the_cache_or_the_share_of_it_that_the_last_query_reads() -> None:
    plain = compare.costs_of(trace())
    same([plain["held"], plain["read"], plain["dense_held"]], [3 * MIB, 3 * MIB, 8 * MIB])
    assert np.isnan(plain["traffic"])
    sized = compare.costs_of(trace(**SIZES))
    same(sized["traffic"] - sized["read"], trace(**SIZES).sizes.weight_bytes_left)


def test_the_front_is_what_nothing_beats_in_both() -> None:
    assert front_of([(3, 1.0), (1, 5.0), (2, 6.0), (2, 2.0), (8, 0.0), (8, 1.0)]) == [
        (1, 5.0),
        (2, 2.0),
        (3, 1.0),
        (8, 0.0),
    ]


def test_the_tradeoff_draws_dense_and_each_method_in_its_own_look() -> None:
    looks = {"A: a2sf": look_of("a2sf"), "B: h2o": look_of("h2o")}
    figure = compare.plot_tradeoff(compare.tradeoff_table(pair()), looks, "kl", "held")
    front, dense, a, b = figure.data
    assert (list(dense.x), list(dense.y)) == ([8.0], [0.0])
    assert (list(a.x), list(a.y), a.marker.color, a.marker.symbol) == ([3.0], [0.25], look_of("a2sf").colour, "circle")
    assert b.marker.color == look_of("h2o").colour and list(b.text) == ["B"]
    assert (list(front.x), list(front.y)) == ([3.0, 8.0], [0.25, 0.0])


def test_what_reads_the_prompt_densely_is_known_by_its_losses() -> None:
    decodes = named("decode=sparq(tokens=0.5)", kl_to_dense=np.asarray([0, 0, 0, 0, 0, 0, 1, 1], np.float32))
    assert compare.reads_prompt_densely(decodes) and not compare.reads_prompt_densely(trace())


# --- who decides like whom ---


def test_jaccard_counts_the_keys_that_are_gone_from_the_query() -> None:
    table = compare.agreement_table(pair(), "A: a2sf", head=1, step=5)
    # Layer 0 at query 5: A's head 1 has lost tokens 1 (at 5) and 2 (at 4), B's 1 and 2 too. Layer 1: A 1, 3; B 2, 3.
    same(table["jaccard"], [1.0, 1 / 3])
    assert compare.agreement_table(pair(), "B: h2o", head=0, step=7)["jaccard"].tolist() == [1.0, 1.0]


def test_rank_correlation_is_over_the_keys_that_either_drops() -> None:
    table = compare.agreement_table(pair(), "A: a2sf", head=1)
    # Layer 0, tokens 1 to 4: A goes at 5, 4, 7, 6 and B at 4, 5, 6, 7: ranks 2 1 4 3 and 1 2 3 4.
    same(table["rank"].iloc[0], 1 - 6 * 4 / (4 * 15))
    nothing = trace(evicted_at=np.full((2, 2, 8), 8, np.int32))
    alike = compare.agreement_table({"A": nothing, "B": nothing}, "A")
    same(alike["jaccard"], [1.0, 1.0])
    same(alike["rank"], [NAN, NAN])


def test_contested_are_tokens_that_some_and_not_all_remove() -> None:
    table = compare.contested_table(pair(), 1, 5)
    assert len(table) == 2 * 6
    layer_1 = table[table["layer"] == 1]
    assert layer_1["by"].tolist() == ["", "A", "B", "AB", "", ""]
    assert layer_1["removed"].tolist() == [0, 1, 1, 2, 0, 0]
    assert layer_1["contested"].tolist() == [False, True, True, False, False, False]
    cells = compare.plot_contested(table, 2).data[1].z
    assert np.isnan(cells[0]).all() and np.nansum(cells[1]) == 2


def test_runs_without_a_common_text_are_not_held_against_each_other() -> None:
    other = trace(token_ids=np.arange(50, 58, dtype=np.int32))
    with pytest.raises(ValueError, match="do not share a text"):
        compare.contested_table({"A": trace(), "B": other})
    assert compare.agreement_table({"A": trace(), "B": other}, "A").empty
    assert compare.parting_of(trace(), other) is None


# --- along the text ---


def test_the_kl_of_each_pipeline_is_a_row() -> None:
    table = compare.kl_table(pair(), (4, 8))
    assert table["position"].tolist() == [4, 5, 6, 7] * 2
    same(table["kl"], [0.5, 1, 1.5, 2] * 2)
    cells = compare.plot_kl(table).data[1]
    assert list(cells.y) == ["A", "B"]
    same(cells.z[0], np.log10([0.5, 1, 1.5, 2]))


def test_the_first_other_token_is_found_with_what_stands_around_it() -> None:
    one = trace(token_ids=np.asarray([10, 11, 12, 13, 14, 15, 99, 17], np.int32))
    parting = compare.parting_of(trace(), one)
    assert (parting.position, parting.token, parting.before, parting.after) == (6, ".", "", "\n")
    assert compare.parting_of(trace(), trace()) is None


def test_behind_a_query_stand_the_evicted_keys_that_dense_attention_looks_at() -> None:
    attention = np.zeros((2, 4, 7), np.float32)
    attention[0, 0, 1] = 0.8  # head 0 of layer 0 lost token 1 at query 4
    attention[1, 0, 1] = 0.8  # layer 1 kept it
    attention[0, 2, 2] = 0.4  # head 1 of layer 0 lost token 2 at query 4
    table = compare.behind_table(trace(), attention, 6)
    assert table["position"].tolist() == [1, 2]
    same(table["attention"], [0.1, 0.05])
    assert table["layers"].tolist() == [2, 2]  # token 1 is gone from head 1 of layer 1 too
    with pytest.raises(ValueError, match="of this run's model"):
        compare.behind_table(trace(), attention, 5)


# --- tests and tables ---


def test_a_difference_is_told_with_its_verdict() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(3, 1, 16)
    losses = {"A": base, "B": base + 0.5, "C": base - 0.5, "D": base + rng.normal(0, 0.1, 16)}
    table = compare.tested_table(losses, "A").set_index("pipeline")
    assert table["verdict"].tolist() == ["worse", "better", "cannot be told apart at n = 16"]
    same(table["difference"].iloc[:2], [0.5, -0.5])
    figure = compare.plot_tested(table.reset_index(), {name: look_of("a2sf") for name in losses})
    assert [mark.y[0] for mark in figure.data] == ["B", "C", "D"]


def test_a_table_is_taken_away_as_markdown_and_latex() -> None:
    table = pd.DataFrame({"pipeline": ["A: x_y|$&", "B"], "perplexity ÷ dense": [1.23456, NAN], "n": [1, 2]})
    made = Provenance("m", "f", "p", 0, "float32", "cpu", ("r",), "h", {}, {}, caption="50 % of a_b.")
    assert isinstance(made, Provenance)
    markdown = paper.TABLES["md"][2](table, made).decode()
    assert markdown.splitlines()[:3] == [
        "| pipeline | perplexity ÷ dense | n |",
        "| --- | ---: | ---: |",
        "| A: x\\_y\\|\\$& | 1.235 | 1 |",
    ]
    latex = paper.TABLES["tex"][2](table, made).decode()
    assert all(rule in latex for rule in ("\\toprule", "\\midrule", "\\bottomrule", "{lrr}"))
    assert "A: x\\_y|\\$\\& & 1.235 & 1 \\\\" in latex and "B & -- & 2 \\\\" in latex
    assert "\\caption{50 \\% of a\\_b.}" in latex and "perplexity $\\div$ dense" in latex


def test_the_share_kept_of_a_span_by_hand() -> None:
    """Two heads of every layer hold keys 0 and 1 at the last step, all others are gone."""
    made = trace()
    evicted = np.full_like(made.evicted_at, 2)
    evicted[..., :2], evicted[..., -1] = made.n_tokens, made.n_tokens
    runs = {"A: x": made.replaced(evicted_at=evicted)}
    own = "mine: 0-3"
    table = compare.spans_table(runs, own).set_index("span")
    assert table.loc["mine", "tokens"] == 4 and table.loc["mine", "kept"] == 0.5
    assert compare.spans_table(runs, own, step=1).set_index("span").loc["mine", "kept"] == 1.0
    assert table.loc["mine", "kl"] == pytest.approx(float(np.nanmean(made.kl_to_dense[:3])))


# --- how far each text went ---


def wrote(*ids: int) -> Trace:
    """A run that read a prompt of two tokens and these, and wrote one more, which no trace has."""
    n = 2 + len(ids)
    made = Trace.from_kept([1, 2, *ids], [[list(range(n))]], n_prompt=2)
    return made.replaced(continuation="…")


def test_how_far_a_text_went_is_its_length_its_first_other_token_and_its_loop() -> None:
    texts = {
        "dense": wrote(3, 4, 5, 6),
        "loops": wrote(3, 4, 7, 8, 7, 8, 7, 8, 7, 8, 7),
        "same": wrote(3, 4, 5, 6),
        "goes on": wrote(3, 4, 5, 6, 9, 9),
        "read": trace(),
    }
    table = compare.writing_table(texts, "dense", 12)
    assert table["pipeline"].tolist() == ["dense", "loops", "same", "goes on"]
    assert table["tokens"].tolist() == [5, 12, 5, 7] and table["ended"].tolist() == [True, False, True, True]
    same(table["inflation"], [1, 2.4, 1, 1.4])
    same(table["parts"], [NAN, 4, NAN, 6])  # the prompt's two, then 3 and 4, which both wrote; and where dense ended
    same(table["loop"], [NAN, 4, NAN, NAN])
    same(table["period"], [NAN, 2, NAN, NAN])
    assert compare.writing_table(texts, "dense", 5)["inflation"].isna().all()  # the dense one may have gone on

"""Similarity, regret, losses and sweeps, by their data."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from sparsity_core import Pipeline, generate, run
from tests import tiny
from tests.traces import HOSTILE, TOKENS, kept_all, named, trace
from tests.viz.figures import NAN, same
from viz import cost, sweep
from viz.looks import distinct_looks, look_of, method_colour, method_dash
from viz.text import plain


@pytest.mark.parametrize(
    ("pipeline", "label", "method"),
    [
        ("eviction=a2sf(budget=64)", "a2sf(budget=64)", "a2sf"),
        ("eviction=a2sf(budget=64, forgetting_factor=0.5)", "a2sf(budget=64, forgetting_factor=0.5)", "a2sf"),
        ("dense", "dense", "dense"),
    ],
)
def test_a_pipelines_label_is_its_method_with_all_its_knobs(pipeline: str, label: str, method: str) -> None:
    assert cost.label(named(pipeline)) == label
    assert cost.method_of(named(pipeline)) == method


def test_similarity_is_the_mean_over_the_steps_after_the_first_drop() -> None:
    table = cost.similarity_table({"A": trace()})
    assert table["layer"].tolist() == [0, 1]
    same(table["ideal_cosine"], [0.7, 0.65])
    same(table["ideal_recall"], [0.625, 0.625])
    same(table["retained"], [1 - 0.25, 1 - 0.65])
    same(table["ideal_retained"], [0.9, 0.8])


def test_similarity_of_a_kv_head_takes_the_query_heads_that_share_it() -> None:
    table = cost.similarity_table({"A": trace()}, head=1)
    same(table["ideal_cosine"], [0.8, 0.9])
    same(table["retained"], [1 - 0.35, 1 - 0.75])


def test_what_drops_nothing_is_the_ideal() -> None:
    same(cost.similarity_table({"A": kept_all()})[list(cost.MEASURES)], [[1, 1, 1], [1, 1, 1]])


def test_a_trace_without_a_dense_run_beside_it_has_no_similarity() -> None:
    assert cost.similarity_table({"A": trace(regret=np.zeros((0, 0, 0), np.float32))}).empty


def test_the_similarity_plot_draws_the_table_and_the_ideal() -> None:
    table = cost.similarity_table({"A": trace(), "B": named("eviction=h2o(budget=3)")})
    looks = {"A": look_of("a2sf"), "B": look_of("h2o")}
    a, b = cost.plot_similarity(table, looks, "ideal_cosine", layer=1).data
    same([a.y, b.y], [[0.7, 0.65]] * 2)
    assert (a.line.color, b.line.color) == (method_colour("a2sf"), method_colour("h2o"))
    assert (a.line.dash, b.line.dash) == (method_dash("a2sf"), method_dash("h2o"))
    own, ideal, *_ = cost.plot_similarity(table, looks, "retained").data
    same([own.y, ideal.y], [[0.75, 0.35], [0.9, 0.8]])


def test_regret_is_the_mean_up_to_the_step() -> None:
    table = cost.regret_table(trace())
    # four of the eight queries come after the first drop
    same(table["regret"], [0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4])
    same(table["retained"], 1 - table["regret"])
    assert table["head"].tolist() == [0, 1, 2, 3] * 2
    assert table["kv_head"].tolist() == [0, 0, 1, 1] * 2
    same(cost.regret_table(trace(), step=4)["regret"], np.arange(1, 9) / 50)
    assert (cost.regret_table(trace(), step=3)["regret"] == 0).all()


def test_the_regret_plot_has_a_row_for_each_head() -> None:
    (cells,) = cost.plot_regret({"A": cost.regret_table(trace())}).data
    same(cells.z, [[0.05, 0.25], [0.1, 0.3], [0.15, 0.35], [0.2, 0.4]])
    assert (list(cells.x), list(cells.y)) == ([0, 1], [0, 1, 2, 3])


def test_the_regret_of_two_pipelines_shares_one_colour_bar() -> None:
    figure = cost.plot_regret({"A": cost.regret_table(trace()), "B": cost.regret_table(trace(), step=4)})
    assert [cells.coloraxis for cells in figure.data] == ["coloraxis"] * 2
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (0, pytest.approx(0.4))
    assert [note.text for note in figure.layout.annotations] == ["A", "B"]


def test_a_loss_belongs_to_the_token_that_was_predicted() -> None:
    table = cost.loss_table(trace())
    assert table["position"].tolist() == list(range(1, 8))
    assert table["token"].tolist() == TOKENS[1:]
    same(table["nll"], [1, 2, 3, 4, 5, 6, 7])
    same(table["extra_nll"], [0, 1, 2, 3, 4, 5, 6])
    same(table["kl_to_dense"], [0, 0, 0, 0, 0.5, 1, 1.5])
    same(table["top1_agrees"], [1, 1, 1, 1, 0, 0, 1])


def test_the_loss_plot_draws_the_table_in_the_methods_colour() -> None:
    figure = cost.plot_loss({"A": cost.loss_table(trace(tokens=HOSTILE))}, {"A": look_of("a2sf")}, step=5)
    (line,) = figure.data
    same(line.y, [0, 0, 0, 0, 0.5, 1, 1.5])
    assert list(line.x) == list(range(1, 8))
    assert line.line.color == method_colour("a2sf")
    assert line.customdata[:, 0].tolist() == [plain(token) for token in HOSTILE[1:]]


def test_two_lines_of_one_method_differ() -> None:
    tables = {"A": cost.loss_table(trace()), "B": cost.loss_table(trace())}
    looks = dict(zip("AB", distinct_looks(["a2sf", "a2sf"]), strict=True))
    a, b = cost.plot_loss(tables, looks).data
    assert a.line.color == b.line.color == method_colour("a2sf")
    assert a.line.dash != b.line.dash
    both = {"A": trace(), "B": named("eviction=a2sf(budget=4)")}
    a, b = cost.plot_similarity(cost.similarity_table(both), looks).data
    assert (a.line.dash, a.marker.symbol) != (b.line.dash, b.marker.symbol)


def test_a_sweep_has_each_layers_cost_and_the_runs_perplexity() -> None:
    cheaper = trace(nll=np.asarray([1, 1, 1, 1, 1, 1, 8, NAN], np.float32))
    table = sweep.sweep_table({0.9: cheaper, 0.1: trace()})
    assert table["value"].tolist() == [0.1, 0.1, 0.9, 0.9]
    assert table["layer"].tolist() == [0, 1, 0, 1]
    # mean −log p is 4 and 2, and 1 for the dense model
    same(table["perplexity"], np.exp([3, 3, 1, 1]))
    same(table["regret"][:2], [0.125, 0.325])
    same(table["recall"][:2], [0.625, 0.625])
    same(table["cosine"][:2], [0.7, 0.65])


def test_the_sweep_plot_draws_the_mean_the_band_and_the_layer() -> None:
    table = pd.DataFrame(
        {"value": [0.1] * 3 + [0.9] * 3, "layer": [0, 1, 2] * 2, "regret": [0.1, 0.2, 0.6, 0.3, 0.4, 0.8]}
    )
    figure = sweep.plot_sweep(table, "regret", knob="α", method="a2sf", layer=1)
    band, mean, own = figure.data
    same(band.x, [0.1, 0.9, 0.9, 0.1])
    same(band.y, [0.4, 0.6, 0.35, 0.15])
    same(mean.y, [0.3, 0.5])
    same(own.y, [0.2, 0.4])
    assert mean.line.color == band.line.color == method_colour("a2sf")
    (best,) = figure.layout.annotations
    assert (best.x, best.text) == (0.1, "best: 0.1")
    same(best.y, 0.3)


@pytest.mark.parametrize(("column", "best"), [("perplexity", 0.1), ("recall", 0.9), ("cosine", 0.9)])
def test_the_best_value_is_the_lowest_cost_or_the_highest_likeness(column: str, best: float) -> None:
    table = pd.DataFrame({"value": [0.1, 0.9], "layer": [0, 0], column: [2.0, 4.0]})
    figure = sweep.plot_sweep(table, column, knob="α", method="a2sf")
    (note,) = figure.layout.annotations
    assert note.text == f"best: {best:g}"
    height = 2.0 if best == 0.1 else 4.0
    same(note.y, np.log10(height) if column == "perplexity" else height)


def test_the_perplexity_shown_is_that_of_the_prompt_alone():
    out = generate(tiny.model(), tiny.ids(20), Pipeline.parse("eviction=a2sf(budget=6)"), max_new_tokens=6)
    of_prompt = out.trace.nll[:19]
    pruned, dense = cost.prompt_perplexity(out.trace)
    assert pruned == pytest.approx(math.exp(of_prompt.mean()), rel=1e-5) != pytest.approx(out.trace.perplexity)
    again = run(tiny.model(), tiny.ids(20))
    assert dense == pytest.approx(again.perplexity, rel=1e-5)
    assert math.isnan(cost.prompt_perplexity(run(tiny.model(), tiny.ids(1)))[0])


def test_a_spike_is_a_peak_of_a_tenth_of_the_highest_at_least() -> None:
    kl = np.array([0.0, 0.5, 0.1, 5.0, 5.0, 1.0, 0.4, 0.5, np.nan])
    assert cost.spikes(kl) == [1, 3, 7]  # .5 is a tenth of 5; of a level top the first; the last has no prediction
    assert cost.spikes(np.array([2.0, 1.0])) == [0]
    assert cost.spikes(np.zeros(4)) == cost.spikes(np.array([])) == cost.spikes(np.full(3, np.nan)) == []

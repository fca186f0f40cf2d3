"""Bands over texts and means over texts, worked out by hand from three traces."""

from __future__ import annotations

import numpy as np
import pytest

from sparsity_core.evaluate import profile_of
from tests.traces import named, trace
from tests.viz.figures import same
from viz import compare, distinct_looks

NAMES = ["A: first", "B: second"]
LOOKS = dict(zip(NAMES, distinct_looks(["a2sf", "h2o"]), strict=True))


def texts() -> list:
    """The KL of the eight tokens is 0 0 0 0 .5 1 1.5 2, twice that, and thrice that."""
    kl = trace().kl_to_dense
    return [trace(kl_to_dense=kl * times) for times in (1, 2, 3)]


def test_a_profile_holds_the_means_of_each_share_of_the_text() -> None:
    found = profile_of(trace(), 4)
    same(found.kl, [0, 0, 0.75, 1.75])
    # Never dropped are, of the first layer, tokens 0 5 6 7 and 0 5 6 7; of the second 0 1 6 7 and 0 4 6 7.
    same(found.kept, [[0.5, 0, 0.5, 1], [0.75, 0, 0.25, 1]])
    assert found.n_tokens == 8
    same(profile_of(trace(), 3).kept_by_layer, [0.5, 0.5])  # over the tokens, of which the shares hold 3, 3 and 2
    sixteen = profile_of(trace(), 16)  # every other share holds no token
    same(sixteen.kl[::2], trace().kl_to_dense)
    assert np.isnan(sixteen.kl[1::2]).all() and np.isnan(sixteen.kept[:, 1::2]).all()
    with pytest.raises(ValueError, match="one share or more; got 0"):
        profile_of(trace(), 0)


def test_what_was_not_compared_has_no_kl() -> None:
    assert np.isnan(profile_of(trace(kl_to_dense=np.full(8, np.nan, np.float32)), 4).kl).all()


def test_the_band_of_three_texts_is_theirs() -> None:
    # Of values 1, 2, 3 the 10 %, 50 % and 90 % quantiles, linear between them, are 1.2, 2 and 2.8.
    table = compare.bands_table({NAMES[0]: [profile_of(t, 4) for t in texts()]}, {NAMES[0]: profile_of(trace(), 4)})
    same(table["at"], [0.125, 0.375, 0.625, 0.875])
    same(table["low"], [0, 0, 0.75 * 1.2, 1.75 * 1.2])
    same(table["median"], [0, 0, 1.5, 3.5])
    same(table["high"], [0, 0, 0.75 * 2.8, 1.75 * 2.8])
    same(table["one"], [0, 0, 0.75, 1.75])
    assert table["n"].tolist() == [3] * 4


@pytest.mark.parametrize(
    ("measure", "at", "kept"), [("depth", [0.25, 0.75], [0.3125, 0.6875]), ("layer", [0, 1], [0.5, 0.5])]
)
def test_what_is_kept_is_told_by_depth_and_by_layer(measure: str, at: list[float], kept: list[float]) -> None:
    table = compare.bands_table({NAMES[0]: [profile_of(t, 2) for t in texts()]}, {}, measure)
    same(table["at"], at)
    same(table["median"], kept)
    same(table["high"], kept)
    assert table["one"].isna().all()


def test_each_pipeline_has_its_panel_with_band_median_and_the_one_text() -> None:
    profiles = [profile_of(t, 4) for t in texts()]
    table = compare.bands_table(dict.fromkeys(NAMES, profiles), dict.fromkeys(NAMES, profiles[0]))
    figure = compare.plot_bands(table, LOOKS)
    drawn = [(line.name, line.xaxis) for line in figure.data if line.name]
    assert drawn == [(n, x) for x in ("x", "x2") for n in ("10 to 90 % of 3 texts", "median", "this text")]
    same(figure.data[1].y, table["high"][:4])
    without = compare.plot_bands(compare.bands_table({NAMES[0]: profiles}, {}), LOOKS)
    assert [line.name for line in without.data if line.name] == ["10 to 90 % of 3 texts", "median"]
    assert figure.data[1].fill == "tonexty" and [a.text for a in figure.layout.annotations] == NAMES


def test_means_over_texts_have_their_intervals() -> None:
    # Later half of a text: queries 4 to 6 of KL .5, 1, 1.5; loss 5, 6, 7 against 1, so e⁵ times the perplexity; tops agree in
    # one of three.
    rows = [compare.text_row(t) for t in texts()]
    assert [row["kl"] for row in rows] == [1, 2, 3] and rows[0]["n"] == 3
    table = compare.texts_table({NAMES[0]: rows, NAMES[1]: [rows[0], rows[0]]})
    first, second = table.to_dict("records")
    assert (first["n"], first["kl"], second["kl"]) == (3, 2, 1)
    assert first["perplexity"] == pytest.approx(np.exp(5)) and first["disagrees"] == pytest.approx(2 / 3)
    assert 1 <= first["low_kl"] < 2 < first["high_kl"] <= 3
    assert second["low_kl"] == second["high_kl"] == 1  # each resample of equal texts has their mean
    assert first["held"] == 3 * 2**20 and first["dense_held"] == 8 * 2**20
    figure = compare.plot_tradeoff(table, LOOKS, "kl", "held")
    mark = next(mark for mark in figure.data if mark.name == NAMES[0])
    same([mark.error_y.array[0], mark.error_y.arrayminus[0]], [first["high_kl"] - 2, 2 - first["low_kl"]])
    assert figure.layout.yaxis.title.text == "mean KL to dense (nats), mean of 3 texts"
    with pytest.raises(ValueError, match="two units or more"):
        compare.texts_table({NAMES[0]: rows[:1]})


def test_a_figure_of_one_text_has_no_intervals() -> None:
    table = compare.tradeoff_table({NAMES[0]: trace(), NAMES[1]: named("eviction=h2o(budget=3)")})
    assert not any(mark.error_y.array for mark in compare.plot_tradeoff(table, LOOKS, "kl", "held").data)

"""Figures by their data: what every table says of a trace made by hand, and that its plot draws exactly that."""

from __future__ import annotations

import itertools
import json
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io
import pytest
from PIL import Image
from plotly.colors import sample_colorscale

from sparsity_core import Pipeline, generate, run
from sparsity_core.record.trace import Trace
from tests import tiny
from tests.traces import HOSTILE, NEVER, TOKENS, kept_all, named, trace
from tests.viz.gallery import plots, plots_of_viz
from viz import atlas, cost, scores, strip, sweep
from viz.looks import SEQUENTIAL, STATE_STYLE, method_colour, method_dash
from viz.text import plain
from viz.theme import DARK, LIGHT, PAPER, style

NAN = np.nan
HEADS: list[int | str] = [0, 1, "first", "last"]


def by_layer(table: pd.DataFrame, column: str) -> list[list[Any]]:
    return [rows[column].tolist() for _, rows in table.groupby("layer", sort=True)]


def same(found: Any, wanted: Any) -> None:
    np.testing.assert_allclose(np.asarray(found, np.float64), np.asarray(wanted, np.float64), rtol=1e-6)


def layer_named(figure: go.Figure, name: str) -> Any:
    (found,) = [data for data in figure.data if data.name == name]
    return found


# --- the atlas ---


@pytest.mark.parametrize(
    ("head", "dropped_at"),
    [
        (0, [[NAN, 3, 4, 5, 6, NAN, NAN, NAN], [NAN, NAN, 3, 4, 5, 6, NAN, NAN]]),
        (1, [[NAN, 4, 3, 6, 5, NAN, NAN, NAN], [NAN, 4, 5, 3, NAN, 6, NAN, NAN]]),
        ("first", [[NAN, 3, 3, 5, 5, NAN, NAN, NAN], [NAN, 4, 3, 3, 5, 6, NAN, NAN]]),
        ("last", [[NAN, 4, 4, 6, 6, NAN, NAN, NAN], [NAN, NAN, 5, 4, NAN, 6, NAN, NAN]]),
    ],
)
def test_the_step_that_dropped_a_token_is_the_one_before_the_first_query_that_misses_it(
    head: int | str, dropped_at: list[list[float]]
) -> None:
    table = atlas.atlas_table(trace(), head)
    same(by_layer(table, "dropped_at"), dropped_at)
    assert by_layer(table, "token") == [TOKENS, TOKENS]
    assert by_layer(table, "position") == [list(range(8))] * 2


def test_a_table_at_a_step_shows_only_the_drops_made_before_that_query() -> None:
    table = atlas.atlas_table(trace(), 0, step=5)
    same(by_layer(table, "dropped_at"), [[NAN, 3, 4, *[NAN] * 5], [NAN, NAN, 3, 4, *[NAN] * 4]])
    assert by_layer(table, "seen") == [[True] * 6 + [False] * 2] * 2


@pytest.mark.parametrize(("head", "step"), list(itertools.product([0, 1], range(8))))
def test_the_atlas_and_the_strip_show_as_kept_what_the_query_attends_to(head: int, step: int) -> None:
    made = trace()
    visible = made.visible_at(step)[:, head]
    table = atlas.atlas_table(made, head, step)
    shown = (table["dropped_at"].isna() & table["seen"]).to_numpy().reshape(2, 8)
    assert (shown == visible).all()
    for layer in range(2):
        states = strip.strip_table(made, layer, head, step)["state"]
        assert (states.isin(["kept", "sink", "recent"]).to_numpy() == visible[layer]).all()


def test_a_window_leaves_the_other_tokens_out() -> None:
    table = atlas.atlas_table(trace(), 0, window=(2, 5))
    assert by_layer(table, "position") == [[2, 3, 4]] * 2
    assert by_layer(table, "token") == [TOKENS[2:5]] * 2
    same(by_layer(table, "dropped_at"), [[4, 5, 6], [3, 4, 5]])


def test_pooling_gives_the_share_dropped_and_the_earliest_drop() -> None:
    # two tokens to a bin; layer 0 drops tokens 1 to 4 at steps 3 to 6, layer 1 tokens 2 to 5
    pooled = atlas.pooled_table(atlas.atlas_table(trace(), 0), most_columns=4)
    assert by_layer(pooled, "position") == [[0, 2, 4, 6]] * 2
    same(by_layer(pooled, "share"), [[0.5, 1, 0.5, 0], [0, 1, 1, 0]])
    same(by_layer(pooled, "dropped_at"), [[3, 4, 6, NAN], [NAN, 3, 5, NAN]])


def test_pooling_keeps_an_uneven_last_bin_and_starts_at_the_window() -> None:
    pooled = atlas.pooled_table(atlas.atlas_table(trace(), 0, window=(1, 8)), most_columns=3)
    assert by_layer(pooled, "position") == [[1, 4, 7]] * 2
    same(by_layer(pooled, "share"), [[1, 1 / 3, 0], [2 / 3, 2 / 3, 0]])


def test_a_short_text_is_not_pooled() -> None:
    table = atlas.atlas_table(trace(), 0)
    pooled = atlas.pooled_table(table)
    assert len(pooled) == len(table)
    same(pooled["share"], table["dropped_at"].notna())


def test_the_atlas_draws_the_table() -> None:
    table = atlas.atlas_table(trace(), 0, step=5)
    figure = atlas.plot_atlas(table, n_prompt=6, step=5, selected=(1, 2), latest=20)
    dropped, kept = layer_named(figure, "dropped"), layer_named(figure, "kept")
    same(dropped.z, [[NAN, 3, 4, *[NAN] * 5], [NAN, NAN, 3, 4, *[NAN] * 4]])
    same(kept.z, [[0, NAN, NAN, 0, 0, 0, NAN, NAN], [0, 0, NAN, NAN, 0, 0, NAN, NAN]])
    assert (dropped.zmin, dropped.zmax) == (0, 20), "two atlases side by side share a scale"
    for cells in (dropped, kept):
        assert (list(cells.x), list(cells.y)) == (list(range(8)), [0, 1])
    row, split, now = _shapes(figure)
    assert row == ("rect", -0.5, 7.5, 0.5, 1.5), "a frame around layer 1"
    assert split[:3] == ("line", 5.5, 5.5), "a line before the first generated token"
    assert now[:3] == ("line", 5.5, 5.5), "a line after the step"
    assert [(note.x, note.text) for note in figure.layout.annotations] == [(5.5, "generated →"), (2, "▼")]


def _shapes(figure: go.Figure) -> list[tuple[Any, ...]]:
    shapes = [(s.type, s.x0, s.x1, s.y0, s.y1) for s in figure.layout.shapes]
    return sorted(shapes, key=lambda shape: shape[0] != "rect")


def test_every_cell_of_the_atlas_answers_the_pointer_with_its_own_fate() -> None:
    table = atlas.atlas_table(trace(tokens=HOSTILE), 0, step=5)
    said = {}
    figure = atlas.plot_atlas(table)
    names = dict(zip(figure.layout.xaxis2.tickvals, figure.layout.xaxis2.ticktext, strict=True))
    assert names == {x: f"{x} “{plain(HOSTILE[x])}”" for x in range(8)}
    for cells in figure.select_traces(selector={"type": "heatmap"}):
        assert cells.hoverongaps is False, "where it is empty, another one answers"
        assert (cells.xaxis, "token %{x}<br>" in cells.hovertemplate) == ("x2", True), "the axis with the names"
        for y, x in np.argwhere(~np.isnan(cells.z)):
            assert (y, x) not in said
            fate = cells.hovertemplate.split("<br>")[1].removesuffix("<extra></extra>")
            said[y, x] = fate.replace("%{z:d}", f"{cells.z[y, x]:g}")
    cached, unread = "in the cache", "not read yet"
    assert [said[0, x] for x in range(8)] == [
        cached, "dropped at step 3", "dropped at step 4", cached, cached, cached, unread, unread
    ]  # fmt: skip
    assert len(said) == 16


def test_the_cells_alone_are_the_atlas_a_pixel_each() -> None:
    table = atlas.atlas_table(trace(), 0, step=5)
    image = np.asarray(Image.open(BytesIO(atlas.cells_png(table, latest=20))))
    assert image.shape == (2, 8, 4)
    dropped = table["dropped_at"].to_numpy().reshape(2, 8)[::-1]  # layer 0 is below
    seen = table["seen"].to_numpy().reshape(2, 8)[::-1]
    same(image[..., 3], np.where(~np.isnan(dropped), 255, np.where(seen, 25, 0)))
    expected = np.asarray(sample_colorscale(SEQUENTIAL, list(dropped[~np.isnan(dropped)] / 20), colortype="tuple"))
    np.testing.assert_allclose(image[~np.isnan(dropped)][:, :3], 255 * expected, atol=2)


def test_no_chart_needs_webgl_which_takes_a_second_a_chart_without_a_gpu() -> None:
    for name, figure in plots(trace()).items():
        assert not [data.type for data in figure.data if data.type.endswith(("gl", "3d"))], name


def test_more_than_a_million_cells_are_refused_with_what_to_do() -> None:
    n = 1001
    table = pd.DataFrame({"layer": np.repeat(np.arange(1000), n), "position": np.tile(np.arange(n), 1000)})
    with pytest.raises(ValueError, match="1000 × 1001 cells are too many to draw: pool them, or choose a window"):
        atlas.plot_atlas(table)


def test_the_overview_draws_the_shares_and_frames_the_window() -> None:
    pooled = atlas.pooled_table(atlas.atlas_table(trace(), 0), most_columns=4)
    figure = atlas.plot_overview(pooled, (2, 6))
    (cells,) = figure.data
    same(cells.z, [[0.5, 1, 0.5, 0], [0, 1, 1, 0]])
    assert (cells.zmin, cells.zmax) == (0, 1)
    (frame,) = figure.layout.shapes
    x = list(cells.x)
    width = x[1] - x[0]
    # tokens 2 to 5 are the bins [2, 4) and [4, 6): the frame must hold their cells and no others
    framed = [at for at in x if frame.x0 <= at - width / 2 and at + width / 2 <= frame.x1]
    assert framed == x[1:3]
    assert (frame.x0, frame.x1) == (x[1] - width / 2, x[2] + width / 2)


def other(**changes: Any) -> Trace:
    """Head 0 of layer 0 drops tokens 1, 2, 5 at steps 3, 4, 5; every other head drops nothing."""
    evicted_at = np.full((2, 2, NEVER), NEVER, np.int32)
    evicted_at[0, 0, [1, 2, 5]] = [4, 5, 6]
    return named("eviction=h2o(budget=3)", evicted_at=evicted_at, **changes)


def test_the_difference_says_for_each_token_who_dropped_it() -> None:
    table = atlas.difference_table(trace(), other(), head=0)
    assert by_layer(table, "dropped_by") == [
        ["neither", "both", "both", "A only", "A only", "B only", "neither", "neither"],
        ["neither", "neither", "A only", "A only", "A only", "A only", "neither", "neither"],
    ]
    # layer 0: tokens 1 and 2 of 1 to 5; layer 1: none of four
    same(atlas.agreement(table), [2 / 5, 0])


def test_the_difference_at_a_step_compares_the_drops_made_by_then() -> None:
    table = atlas.difference_table(trace(), other(), head=0, step=5)
    assert by_layer(table, "dropped_by")[0] == ["neither", "both", "both", *["neither"] * 5]
    same(atlas.agreement(table), [1, 0])


def test_two_that_drop_nothing_agree() -> None:
    same(atlas.agreement(atlas.difference_table(kept_all(), kept_all())), [1, 1])


@pytest.mark.parametrize("head", HEADS)
def test_a_pipeline_agrees_with_itself_in_every_head(head: int | str) -> None:
    same(atlas.agreement(atlas.difference_table(trace(), trace(), head)), [1, 1])


def test_only_the_common_beginning_of_two_continuations_is_compared() -> None:
    parted = np.arange(10, 18, dtype=np.int32)
    parted[6] = 99
    table = atlas.difference_table(trace(), other(token_ids=parted), head=0)
    assert by_layer(table, "position") == [list(range(6))] * 2
    # token 4 leaves A's cache with query 6, which the two do not share: at query 5 neither has dropped 3, 4 and 5
    assert by_layer(table, "dropped_by")[0] == ["neither", "both", "both", "neither", "neither", "neither"]


def test_two_texts_are_not_compared() -> None:
    with pytest.raises(ValueError, match="run both on the same prompt"):
        atlas.difference_table(trace(), other(token_ids=np.arange(8, dtype=np.int32)))


def test_a_contested_cell_has_the_colour_of_the_one_that_dropped_it() -> None:
    table = atlas.difference_table(trace(), other(), head=0)
    colours = cost.pair_colours(trace(), other())
    figure = atlas.plot_difference(table, colours, cost.pair_names(trace(), other()))
    (cells,) = figure.select_traces(selector={"type": "heatmap"})
    same(cells.z[0], [NAN, 0, 0, 1, 1, 2, NAN, NAN])
    both, a, b = (_colour_at(cells, value) for value in (0, 1, 2))
    assert (a, b) == (method_colour("a2sf"), method_colour("h2o")) == colours
    assert both not in colours
    keys = {data.name: data.marker.color for data in figure.data if data.name}
    assert list(keys) == ["dropped by a2sf only", "by h2o only", "by both", "by neither"]
    assert [keys["dropped by a2sf only"], keys["by h2o only"], keys["by both"]] == [a, b, both]


def _colour_at(cells: Any, value: float) -> str:
    """The colour of a stepped colour scale, whose steps are pairs of equal stops."""
    at = (value - cells.zmin) / (cells.zmax - cells.zmin)
    below = [colour for stop, colour in cells.colorscale if stop <= at]
    above = [colour for stop, colour in cells.colorscale if stop >= at]
    assert below[-1] == above[0], "a value between two colours would be mixed"
    return below[-1]


def test_two_pipelines_of_one_method_are_called_by_all_their_knobs() -> None:
    assert cost.pair_names(trace(), other()) == ("a2sf", "h2o")
    assert cost.pair_names(trace(), named("eviction=a2sf(budget=4)")) == ("a2sf(budget=3)", "a2sf(budget=4)")


def test_two_pipelines_of_one_method_get_two_colours() -> None:
    first, second = cost.pair_colours(trace(), named("eviction=a2sf(budget=4)"))
    assert first != second


# --- the strip ---


@pytest.mark.parametrize(
    ("step", "states"),
    [
        (2, ["sink", "kept", "recent", *["future"] * 5]),
        (5, ["sink", "dropped", "dropped", "kept", "kept", "recent", "future", "future"]),
        (7, ["sink", *["dropped"] * 4, "kept", "kept", "recent"]),
    ],
)
def test_the_strip_tells_kept_dropped_protected_and_future_apart(step: int, states: list[str]) -> None:
    table = strip.strip_table(trace(), 0, 0, step)
    assert table["state"].tolist() == states
    assert table["token"].tolist() == TOKENS
    assert table["class"].tolist() == trace().classes


def test_a_dropped_token_names_the_step_and_the_token_read_then() -> None:
    table = strip.strip_table(trace(), 0, 0, 7)
    same(table["dropped_at"], [NAN, 3, 4, 5, 6, NAN, NAN, NAN])
    assert table["dropped_while"].tolist() == ["", "·on", "·the", "·mat", ".", "", "", ""]


def test_a_dropped_token_has_the_score_it_was_dropped_with_and_a_kept_one_its_last_snapshot() -> None:
    at_end = strip.strip_table(trace(), 0, 0, 7)["score"]
    same(at_end, [1, 0.5, 0.25, 0.125, 0.0625, 6, 7, 8])
    # at step 6 the last snapshot is step 4's, after which the cache held keys 0, 3 and 4
    at_six = strip.strip_table(trace(), 0, 0, 6)["score"]
    same(at_six, [1, 0.5, 0.25, 0.125, 5, NAN, NAN, NAN])
    assert strip.strip_table(trace(), 0, 0, 0)["score"].isna().all(), "no snapshot by then"


def test_several_heads_show_the_score_of_the_head_that_decided() -> None:
    # layer 0 drops token 1 at step 3 in head 0 (score 0.5) and at step 4 in head 1 (0.3)
    assert strip.strip_table(trace(), 0, "first", 7)["score"][1] == pytest.approx(0.5)
    assert strip.strip_table(trace(), 0, "last", 7)["score"][1] == pytest.approx(0.3)


def test_a_window_of_the_strip_keeps_the_tokens_positions() -> None:
    table = strip.strip_table(trace(), 0, 0, 5, window=(2, 5))
    assert table["position"].tolist() == [2, 3, 4]
    assert table["state"].tolist() == ["dropped", "kept", "kept"]


def test_the_strip_figure_writes_each_token_once_in_the_colour_of_its_state() -> None:
    table = strip.strip_table(trace(tokens=HOSTILE), 0, 0, 5)
    figure = strip.plot_strip(table)
    written: dict[int, str] = {}
    for data in figure.data:
        if data.mode != "text":
            continue
        state = data.hovertemplate.split("<extra>")[1].removesuffix("</extra>")
        for text, (position, _) in zip(data.text, data.customdata, strict=True):
            assert int(position) not in written
            written[int(position)] = text
            assert table["state"][int(position)] == state
        if state in ("dropped", "future"):
            assert data.textfont.color == STATE_STYLE[state].light
    assert written == {i: plain(token) for i, token in enumerate(HOSTILE)}
    struck = next(data for data in figure.data if data.name == "dropped" and data.mode == "lines")
    assert sum(x is None for x in struck.x) == 2, "a stroke for each of the two dropped tokens"


def test_the_strip_figure_marks_sink_recent_and_contested_and_shades_what_is_kept() -> None:
    table = strip.strip_table(trace(), 0, 0, 5)
    beside = strip.contested_with(table, other(), 0, 0, 5)
    # A has dropped tokens 1 and 2 by step 5, and so has the other: layer 1 differs in tokens 2 and 3
    assert not beside["contested"].any()
    apart = strip.contested_with(strip.strip_table(trace(), 1, 0, 5), other(), 1, 0, 5)
    assert apart.loc[apart["contested"], "position"].tolist() == [2, 3]
    lines = {d.name: sum(x is None for x in d.x) for d in strip.plot_strip(apart).data if d.mode == "lines"}
    # layer 1 at step 5: sink 0, kept 1 and 4, dropped 2 and 3, recent 5
    assert lines == {"kept": 4, "dropped": 2, "sink": 1, "recent": 1, "contested": 2}


def test_the_strip_has_fewer_tokens_to_a_line_and_more_height_in_a_narrow_column() -> None:
    table = pd.concat([strip.strip_table(trace(tokens=["abcdefghi"] * 8), 0, 0, 0)] * 7)
    (wide, low), (narrow, high) = (strip.paper_strip(table, width) for width in (5.5, 3.25))
    lines = [len({y for data in figure.data if data.mode == "text" for y in data.y}) for figure in (wide, narrow)]
    assert lines == [7, 14]  # 82 and 48 characters hold 8 and 4 words of 9 with their gaps
    assert pytest.approx(high - low) == 0.16 * 7


def test_the_strip_figure_breaks_lines_and_gives_wide_characters_room() -> None:
    table = strip.strip_table(trace(tokens=["a" * 40, "b" * 40, "c" * 10, "d↵", "e", "漢字", "f", "g"]), 0, 0, 0)
    at = {
        text: (x, y)
        for data in strip.plot_strip(table).data
        if data.mode == "text"
        for text, x, y in zip(data.text, data.x, data.y, strict=True)
    }
    assert [y for _, y in at.values()] == [0, 0, -1, -1, -2, -2, -2, -2]
    assert at["b" * 40][0] == 41
    assert at["f"][0] - at["漢字"][0] == 5, "two characters of two columns each, and a space"


# --- scores ---


def test_a_tokens_score_ends_where_it_is_dropped() -> None:
    table = scores.score_table(trace(), 0, 0, [0, 3])
    stays, falls = (table[table["position"] == p] for p in (0, 3))
    assert stays[["step", "score", "event"]].values.tolist() == [[1, 1, ""], [4, 1, ""], [7, 1, ""]]
    # key 3 is read at step 3, so the first snapshot that has it is step 4's; step 5 drops it at 0.125
    assert falls[["step", "score", "event"]].values.tolist() == [[4, 4, ""], [5, 0.125, "dropped"]]
    assert set(falls["token"]) == {"·on"}
    assert set(falls["series"]) == {"token"}


def test_a_key_that_a_gate_dropped_has_no_score_of_another_that_eviction_dropped_then() -> None:
    gated = trace(gated_at=np.asarray([[8, 8, 8, 5, 8, 8, 8, 8], [8] * 8], np.int32))
    # layer 0, head 1 evicts key 1 at query 5, with threshold 0.3 at query 4; head 0 drops 2 there, and key 3 goes at 6
    both = replace(gated, evicted_at=np.where(np.arange(8) == 3, 5, trace().evicted_at).astype(np.int32))
    same(scores.drop_score(both, 0, 1), [NAN, 0.3, 0.4, NAN, 0.2, NAN, NAN, NAN])
    last = scores.score_table(both, 0, 1, [3]).query("event == 'dropped'")
    assert last["step"].tolist() == [5] and last["score"].isna().all()
    drawn = scores.plot_scores(scores.score_table(both, 0, 1, [3])).data[-1]
    assert drawn.mode == "markers" and list(drawn.x) == [5] and "score" not in drawn.hovertemplate


def test_of_keys_that_are_cut_at_once_none_has_the_score_of_another() -> None:
    cut = trace(evicted_at=np.where(np.arange(8) < 3, 5, 8)[None, None].repeat(2, 0).repeat(2, 1).astype(np.int32))
    same(scores.drop_score(cut, 0, 0), [NAN] * 8)
    assert strip.strip_table(cut, 0, 0, 7)["score"][:3].isna().all()


def test_the_threshold_is_the_score_of_whatever_each_step_dropped() -> None:
    table = scores.score_table(trace(), 1, 1, [])
    assert table["step"].tolist() == [3, 4, 5, 6]
    same(table["score"], [0.7, 0.5, 0.3, 0.1])
    assert set(table["series"]) == {"threshold"}


def test_refilled_scores_replace_the_snapshots() -> None:
    steps = np.asarray([3, 4], np.int32)
    fine = np.full((2, 2, NEVER), np.nan, np.float32)
    fine[0, :, 3] = [7, 9]
    own = scores.score_table(trace(), 0, 0, [3], (steps, fine)).query("series == 'token'")
    assert own[["step", "score", "event"]].values.tolist() == [[3, 7, ""], [4, 9, ""], [5, 0.125, "dropped"]]


def test_a_method_that_decides_by_position_has_no_scores() -> None:
    silent = np.where(np.isnan(trace().snapshots), np.nan, 0).astype(np.float32)
    assert scores.has_scores(trace(), 0, 0)
    assert not scores.has_scores(trace(snapshots=silent), 0, 0)


def test_side_by_side_scores_share_an_axis_that_holds_both() -> None:
    tables = [pd.DataFrame({"score": [0.0, NAN, 0.25, 2.0]}), pd.DataFrame({"score": [np.inf, 8.0]})]
    same(scores.shared_range(tables, log=True), [np.log10(0.25 / 1.5), np.log10(12)])
    same(scores.shared_range(tables, log=False), [0, 8.4])
    assert scores.shared_range([pd.DataFrame({"score": [0.0, NAN]})], log=True) is None


def test_the_score_plot_draws_the_table() -> None:
    table = scores.score_table(trace(tokens=HOSTILE), 0, 0, [0, 3])
    figure = scores.plot_scores(table, step=5)
    threshold, stays, falls, cross = figure.data
    assert (list(threshold.x), list(threshold.y)) == ([3, 4, 5, 6], [0.5, 0.25, 0.125, 0.0625])
    assert (list(stays.x), list(stays.y)) == ([1, 4, 7], [1, 1, 1])
    assert (list(falls.x), list(falls.y)) == ([4, 5], [4, 0.125])
    assert (list(cross.x), list(cross.y), cross.mode) == ([5], [0.125], "markers")
    assert cross.marker.color == falls.line.color != stays.line.color
    assert falls.line.dash != stays.line.dash, "two lines must differ without colour"
    assert stays.name == f"0 “{plain(HOSTILE[0])}”"
    assert figure.layout.yaxis.type == "log"
    assert scores.plot_scores(table, log=False).layout.yaxis.type == "linear"


# --- cost ---


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
    a, b = cost.plot_similarity(table, "ideal_cosine", layer=1).data
    same([a.y, b.y], [[0.7, 0.65]] * 2)
    assert (a.line.color, b.line.color) == (method_colour("a2sf"), method_colour("h2o"))
    assert (a.line.dash, b.line.dash) == (method_dash("a2sf"), method_dash("h2o"))
    own, ideal, *_ = cost.plot_similarity(table, "retained").data
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
    figure = cost.plot_loss({"A": cost.loss_table(trace(tokens=HOSTILE))}, {"A": "a2sf"}, step=5)
    (line,) = figure.data
    same(line.y, [0, 0, 0, 0, 0.5, 1, 1.5])
    assert list(line.x) == list(range(1, 8))
    assert line.line.color == method_colour("a2sf")
    assert line.customdata[:, 0].tolist() == [plain(token) for token in HOSTILE[1:]]


def test_two_lines_of_one_method_differ() -> None:
    tables = {"A": cost.loss_table(trace()), "B": cost.loss_table(trace())}
    a, b = cost.plot_loss(tables, {"A": "a2sf", "B": "a2sf"}).data
    assert a.line.color == b.line.color == method_colour("a2sf")
    assert a.line.dash != b.line.dash
    both = {"A": trace(), "B": named("eviction=a2sf(budget=4)")}
    a, b = cost.plot_similarity(cost.similarity_table(both)).data
    assert (a.line.dash, a.marker.symbol) != (b.line.dash, b.marker.symbol)


# --- sweep ---


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


# --- what holds for every plot ---


def test_every_plot_of_viz_is_tried() -> None:
    assert set(plots_of_viz()) == set(plots(trace()))


@pytest.fixture
def foreign_default() -> Iterator[None]:
    """Another default template, as `import streamlit` sets one."""
    before = plotly.io.templates.default
    plotly.io.templates["foreign"] = go.layout.Template(layout={"paper_bgcolor": "#010203", "font": {"size": 99}})
    plotly.io.templates.default = "foreign"
    yield
    plotly.io.templates.default = before
    del plotly.io.templates["foreign"]


@pytest.mark.usefixtures("foreign_default")
@pytest.mark.parametrize(("theme", "template"), [("light", LIGHT), ("dark", DARK), ("paper", PAPER)])
def test_every_plot_wears_our_theme_and_nothing_of_plotlys_default(theme: Any, template: go.layout.Template) -> None:
    for name, figure in plots(trace()).items():
        styled = style(figure, theme)
        assert styled.layout.template == template, name
        assert "#010203" not in styled.to_json(), name
        assert _drawn(styled) == _drawn(figure), f"{name}: the theme changes looks, never data"


def _drawn(figure: go.Figure) -> list[Any]:
    return json.loads(figure.to_json())["data"]


def test_no_token_acts_in_any_plot_of_viz() -> None:
    """Tokens, and names of pipelines, matrices and settings, that a link may have brought."""
    acting = [token for token in HOSTILE if plain(token) != token]
    assert len(acting) == 5
    for name, figure in plots(trace(tokens=HOSTILE)).items():
        spec = json.loads(figure.to_json())
        texts = list(_texts(spec))
        for token in acting:
            assert not [text for text in texts if token in text], f"{name} shows {token} unescaped"


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


@pytest.mark.parametrize(
    "table",
    [
        lambda t: atlas.atlas_table(t),
        lambda t: atlas.difference_table(t, t),
        lambda t: strip.strip_table(t, 0),
        lambda t: scores.score_table(t, 0, 0, range(8)),
        lambda t: cost.loss_table(t),
    ],
    ids=["atlas", "difference", "strip", "scores", "loss"],
)
def test_a_table_keeps_tokens_as_they_are(table: Callable[[Trace], pd.DataFrame]) -> None:
    assert set(HOSTILE[1:]) <= set(table(trace(tokens=HOSTILE))["token"])


def test_a_trace_without_drops_is_drawn_without_complaint() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for figure in plots(kept_all()).values():
            figure.to_json()


def test_a_text_of_one_token_is_drawn() -> None:
    one = trace().replaced(**_first_token_only())
    table = atlas.atlas_table(one)
    same(layer_named(atlas.plot_atlas(table, selected=(0, 0)), "kept").z, [[0], [0]])
    assert strip.strip_table(one, 0, 0)["state"].tolist() == ["sink"]
    assert cost.loss_table(one).empty
    scores.plot_scores(scores.score_table(one, 0, 0, [0])).to_json()


def _first_token_only() -> dict[str, Any]:
    made = trace()
    flat = {name: getattr(made, name)[:1] for name in ("token_ids", "texts", "tokens", "groups", "classes", "nll")}
    flat |= {name: getattr(made, name)[:1] for name in ("dense_nll", "kl_to_dense", "top1_agrees", "probe_steps")}
    deep = {
        name: getattr(made, name)[..., :1]
        for name in ("threshold", "regret", "ideal_recall", "ideal_cosine", "ideal_mass")
    }
    return {
        **flat,
        **deep,
        "n_prompt": 1,
        "evicted_at": np.ones((2, 2, 1), np.int32),
        "snapshot_steps": np.zeros(1, np.int32),
        "snapshots": np.ones((2, 2, 1, 1), np.float32),
    }


def test_the_perplexity_shown_is_that_of_the_prompt_alone():
    out = generate(tiny.model(), tiny.ids(20), Pipeline.parse("eviction=a2sf(budget=6)"), max_new_tokens=6)
    of_prompt = out.trace.nll[:19]
    pruned, dense = cost.prompt_perplexity(out.trace)
    assert pruned == pytest.approx(math.exp(of_prompt.mean()), rel=1e-5) != pytest.approx(out.trace.perplexity)
    again = run(tiny.model(), tiny.ids(20))
    assert dense == pytest.approx(again.perplexity, rel=1e-5)
    assert math.isnan(cost.prompt_perplexity(run(tiny.model(), tiny.ids(1)))[0])

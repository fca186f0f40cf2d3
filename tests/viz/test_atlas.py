"""The atlas and the difference of two, by their data."""

from __future__ import annotations

import itertools
from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from PIL import Image
from plotly.colors import sample_colorscale

from tests.traces import HOSTILE, TOKENS, kept_all, named, trace
from tests.viz.figures import HEADS, NAN, by_layer, layer_named, other, same
from tests.viz.gallery import plots
from viz import atlas, cost, strip
from viz.looks import SEQUENTIAL, method_colour
from viz.text import plain


@pytest.mark.parametrize(
    ("head", "dropped_in"),
    [
        (0, [[NAN, 3, 4, 5, 6, NAN, NAN, NAN], [NAN, NAN, 3, 4, 5, 6, NAN, NAN]]),
        (1, [[NAN, 4, 3, 6, 5, NAN, NAN, NAN], [NAN, 4, 5, 3, NAN, 6, NAN, NAN]]),
        ("first", [[NAN, 3, 3, 5, 5, NAN, NAN, NAN], [NAN, 4, 3, 3, 5, 6, NAN, NAN]]),
        ("last", [[NAN, 4, 4, 6, 6, NAN, NAN, NAN], [NAN, NAN, 5, 4, NAN, 6, NAN, NAN]]),
    ],
)
def test_the_step_that_dropped_a_token_is_the_one_before_the_first_query_that_misses_it(
    head: int | str, dropped_in: list[list[float]]
) -> None:
    table = atlas.atlas_table(trace(), head)
    same(by_layer(table, "dropped_in"), dropped_in)
    assert by_layer(table, "token") == [TOKENS, TOKENS]
    assert by_layer(table, "position") == [list(range(8))] * 2


def test_a_table_at_a_step_shows_only_the_drops_made_before_that_query() -> None:
    table = atlas.atlas_table(trace(), 0, step=5)
    same(by_layer(table, "dropped_in"), [[NAN, 3, 4, *[NAN] * 5], [NAN, NAN, 3, 4, *[NAN] * 4]])
    assert by_layer(table, "seen") == [[True] * 6 + [False] * 2] * 2


@pytest.mark.parametrize(("head", "step"), list(itertools.product([0, 1], range(8))))
def test_the_atlas_and_the_strip_show_as_kept_what_the_query_attends_to(head: int, step: int) -> None:
    made = trace()
    visible = made.visible_at(step)[:, head]
    table = atlas.atlas_table(made, head, step)
    shown = (table["dropped_in"].isna() & table["seen"]).to_numpy().reshape(2, 8)
    assert (shown == visible).all()
    for layer in range(2):
        states = strip.strip_table(made, layer, head, step)["state"]
        assert (states.isin(["kept", "sink", "recent"]).to_numpy() == visible[layer]).all()


def test_a_window_leaves_the_other_tokens_out() -> None:
    table = atlas.atlas_table(trace(), 0, window=(2, 5))
    assert by_layer(table, "position") == [[2, 3, 4]] * 2
    assert by_layer(table, "token") == [TOKENS[2:5]] * 2
    same(by_layer(table, "dropped_in"), [[4, 5, 6], [3, 4, 5]])


def test_pooling_gives_the_share_dropped_and_the_earliest_drop() -> None:
    # two tokens to a bin; layer 0 drops tokens 1 to 4 at steps 3 to 6, layer 1 tokens 2 to 5
    pooled = atlas.pooled_table(atlas.atlas_table(trace(), 0), most_columns=4)
    assert by_layer(pooled, "position") == [[0, 2, 4, 6]] * 2
    same(by_layer(pooled, "share"), [[0.5, 1, 0.5, 0], [0, 1, 1, 0]])
    same(by_layer(pooled, "dropped_in"), [[3, 4, 6, NAN], [NAN, 3, 5, NAN]])


def test_pooling_keeps_an_uneven_last_bin_and_starts_at_the_window() -> None:
    pooled = atlas.pooled_table(atlas.atlas_table(trace(), 0, window=(1, 8)), most_columns=3)
    assert by_layer(pooled, "position") == [[1, 4, 7]] * 2
    same(by_layer(pooled, "share"), [[1, 1 / 3, 0], [2 / 3, 2 / 3, 0]])


def test_a_short_text_is_not_pooled() -> None:
    table = atlas.atlas_table(trace(), 0)
    pooled = atlas.pooled_table(table)
    assert len(pooled) == len(table)
    same(pooled["share"], table["dropped_in"].notna())


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
    dropped = table["dropped_in"].to_numpy().reshape(2, 8)[::-1]  # layer 0 is below
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

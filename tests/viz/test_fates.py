"""Which stage removed a token, in the atlas, the strip, the shares and the words, worked out by hand."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageColor

from tests.traces import NEVER, named, told_apart
from tests.viz.figures import NAN, by_layer, layer_named, same
from ui.tokens.told import strip_cells, tell_stages
from ui.view import View
from viz import atlas, fates, removed, strip

# Layer 0 evicts in its first head tokens 1, 2, 3, 4 before queries 4, 5, 6, 7; in its second 2, 1, 4, 3.
LAST = ["", "eviction", "gate", "eviction", "eviction", "", "decode", ""]
AT_FIVE = [["prefill", "prefill", "gate", "", "", "", "", ""], ["prefill", "prefill", "gate", "", "", "", "", ""]]


def test_the_last_query_misses_each_token_by_the_first_stage_that_removed_it() -> None:
    table = atlas.atlas_table(told_apart(), 0)
    assert by_layer(table, "removed_by")[0] == LAST
    same(by_layer(table, "dropped_in")[0], [NAN, 3, 4, 5, 6, NAN, NAN, NAN])
    assert fates.removed_by(told_apart(), 7, 0, layer=0).tolist() == LAST


def test_a_step_of_a_longer_text_beside_it_is_the_last_query() -> None:
    assert by_layer(atlas.atlas_table(told_apart(), 0, step=NEVER + 3), "removed_by")[0] == LAST
    assert fates.removed_by(told_apart(), NEVER + 3, 0, layer=0).tolist() == LAST


@pytest.mark.parametrize("head", [0, 1])
def test_a_query_of_the_prompt_misses_what_its_window_leaves_out(head: int) -> None:
    table = atlas.atlas_table(told_apart(), head, step=5)
    assert by_layer(table, "removed_by")[0] == AT_FIVE[head]


def test_the_first_head_to_drop_has_lost_most_and_the_last_least() -> None:
    # at query 6 the heads of layer 1 have evicted tokens 2, 3, 4 and 1, 2, 3: both have lost 2 and 3
    first, last = (fates.removed_by(told_apart(), 6, head, layer=1).tolist() for head in ("first", "last"))
    assert first == ["", "eviction", "eviction", "eviction", "eviction", "", "", ""]
    assert last == ["", "", "eviction", "eviction", "", "", "", ""]


def test_the_shape_of_a_cell_tells_its_stage() -> None:
    made = told_apart()
    stages = fates.removing(made)
    assert stages == ["gate", "prefill", "eviction", "decode"]
    table = atlas.atlas_table(made, 0)
    figure = atlas.plot_atlas(table, stages=stages)
    dropped, unread = layer_named(figure, "dropped"), layer_named(figure, "decode")
    filled = [(~np.isnan(dropped.z[:5, key])).tolist() for key in range(NEVER)]
    whole, open_ = [True] * 5, [True, False, False, False, True]
    assert filled == [[False] * 5, whole, open_, whole, whole, *[[False] * 5] * 3]
    same(dropped.z[0, 1:5], [3, 4, 5, 6])
    assert np.argwhere(~np.isnan(unread.z[:5])).tolist() == [[2, 6]], "the middle row of the cell of token 6"
    same(dropped.y[:5], [-0.4, -0.2, 0, 0.2, 0.4])
    assert [data.name for data in figure.data if data.showlegend is None and data.type == "scatter"] == [
        fates.FATES[stage].key for stage in stages
    ]


def test_every_cell_of_several_stages_answers_the_pointer_with_its_own_fate() -> None:
    made = told_apart()
    said: dict[tuple[int, int], str] = {}
    figure = atlas.plot_atlas(atlas.atlas_table(made, 0), stages=fates.removing(made))
    for cells in figure.select_traces(selector={"type": "heatmap"}):
        if cells.hoverinfo == "skip":
            continue
        for y, x in np.argwhere(~np.isnan(cells.z)):
            assert (y, x) not in said
            fate = cells.hovertemplate.split("<br>")[1].removesuffix("<extra></extra>")
            said[y, x] = fate.replace("%{z:d}", f"{cells.z[y, x]:g}")
    assert [said[0, x] for x in range(3)] == ["in the cache", "evicted at step 3", "dropped by the gate at step 4"]
    assert said[0, 6] == "not read by the decode stage"
    assert len(said) == 16


def test_the_cells_alone_have_the_same_shapes() -> None:
    made = told_apart()
    table = atlas.atlas_table(made, 0)
    image = np.asarray(Image.open(BytesIO(atlas.cells_png(table, 7, fates.removing(made)))))[::-1]
    assert image.shape == (10, 8, 4)
    assert (image[:5, 2, 3] == 255).tolist() == [True, False, False, False, True]
    assert image[2, 6].tolist() == [*ImageColor.getrgb(str(fates.FATES["decode"].colour)), 255]
    assert image[0, 6, 3] == 0


def test_the_strip_has_a_state_for_each_stage_and_tells_it() -> None:
    made = told_apart()
    table = strip.strip_table(made, 0, 0)
    assert table["state"].tolist() == ["sink", "dropped", "gated", "dropped", "dropped", "kept", "unread", "recent"]
    assert table["removed_by"].tolist() == LAST
    early = strip.strip_table(made, 0, 0, step=5)
    assert early["state"].tolist() == ["hidden", "hidden", "gated", "kept", "kept", "recent", "future", "future"]
    at = View(layer=0, head=0, token=0, step=5)
    notes = [cell.note for cell in strip_cells(early, at)]
    assert notes[0] == "hidden by the prefill stage; score 1"
    assert notes[1] == "hidden by the prefill stage; dropped for good at step 3; score 0.5"
    assert notes[2] == "dropped by token 4, “·the”"
    drawn = {data.name for data in strip.plot_strip(table).data if data.mode == "lines"}
    assert drawn == {"kept", "dropped", "gated", "unread", "sink", "recent"}


def test_contested_is_what_one_of_two_removes_by_whatever_stage() -> None:
    at = View(layer=0, head=0, token=0, step=5)
    table = strip.strip_table(told_apart(), 0, 0, 5)
    evicting = named("eviction=h2o(budget=3)")  # which has lost tokens 1 and 2 by then
    both = strip.contested_with(table, [evicting], at.layer, at.head, at.step)
    assert [c.index for c in strip_cells(both, at) if c.contested] == [0]


def test_the_shares_of_all_stages_and_of_what_is_read_add_up_to_one() -> None:
    table = removed.removed_table(told_apart())
    assert table.groupby("layer")["pairs"].sum().tolist() == [72, 72], "36 pairs in each of two heads"
    same(table.groupby("layer")["share"].sum(), [1, 1])
    layer = table[table["layer"] == 0].set_index("stage")["pairs"]
    # queries 4 to 7 miss token 2 by the gate, in both heads; queries 4 and 5 miss 0, and 0 and 1, by the window
    assert (layer["gate"], layer["prefill"]) == (8, 6)
    # eviction: 1, 3, 4 of the last query in each head; 1 and 3, and 1 and 4, of query 6; 1 of query 4 in the first head
    assert (layer["eviction"], layer["decode"]) == (11, 2)
    assert layer["read"] == 72 - 8 - 6 - 11 - 2
    figure = removed.plot_removed(table)
    same([sum(bar.y[0] for bar in figure.data)], [1])


def test_the_shares_of_a_token_are_said_where_stages_must_be_told_apart() -> None:
    made = told_apart()
    assert tell_stages(made, 6, 7) == (
        " For the query at step 7 it is not read by the decode stage in 100.0% of all layers and heads; "
        "a pair is charged to its first stage."
    )
    assert tell_stages(made, 7, 3) == "", "the query has not come to it"
    assert tell_stages(named("eviction=h2o(budget=3)"), 1, 7) == "", "one stage alone needs no attribution"


def test_choices_that_were_not_kept_are_not_guessed() -> None:
    long = told_apart().replaced(chosen=np.zeros((0, 0, 0, 0), np.uint8))
    assert fates.removed_by(long, 7, 0, layer=0).tolist() == [
        "",
        "eviction",
        "gate",
        "eviction",
        "eviction",
        "",
        "",
        "",
    ]
    assert "left unread (which was not kept of so long a text)" in tell_stages(long, 6, 7)
    with pytest.raises(ValueError, match="was not kept of so long a text: choose a shorter one"):
        removed.removed_table(long)

"""What a decode stage read, from traces small enough to count by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparsity_core.record import Trace
from tests import traces
from viz import channels

NAN = np.nan
# [layer][kv_head][key] of queries 6 and 7, the two steps after a prompt of six tokens. Layer 1 has no selector.
READS = [[[2, 0, 0, 0, 0, 1, 1, 1], [1, 0, 0, 0, 0, 2, 2, 0]], [[0] * 8, [0] * 8]]


def read_trace(**changes: Any) -> Trace:
    """Two decode steps over the hand-made trace's evictions: keys 1 to 4 are gone by then, or go at query 7."""
    mass = np.full((2, 4, 8), NAN, np.float32)
    recall = np.full((2, 2, 8), NAN, np.float32)
    read = {"selected": np.asarray(READS, np.float32), "selected_mass": mass, "selected_recall": recall}
    return traces.trace(**read | changes)


def test_the_queries_that_could_choose_a_key_are_those_of_the_stage_while_it_is_cached():
    # evicted_at of layer 0, head 0: 8 4 5 6 7 8 8 8; queries 6 and 7 are of the stage, key 7 has its own alone.
    assert channels.choices(read_trace())[0, 0].tolist() == [2, 0, 0, 0, 1, 2, 2, 1]
    whole = read_trace(n_prompt=8)  # a run, whose stage is on from the first query
    assert channels.choices(whole)[0, 0].tolist() == [8, 3, 3, 3, 3, 3, 2, 1]


def test_a_token_that_every_step_read_is_read_by_all():
    table = channels.selected_table(read_trace(), 0, (0, 8)).set_index(["layer", "position"])
    assert table.loc[(0, 0), ["share", "reads", "choices"]].tolist() == [1, 2, 2]
    np.testing.assert_array_equal(table.loc[0, "share"], [1, NAN, NAN, NAN, 0, 0.5, 0.5, 1])
    np.testing.assert_array_equal(table.loc[0, "evicted_at"], [NAN, 4, 5, 6, 7, NAN, NAN, NAN])


def test_a_layer_that_reads_everything_is_read_by_all_who_could_and_by_none_who_could_not():
    table = channels.selected_table(read_trace(), 0, (0, 8)).set_index(["layer", "position"])
    # evicted_at of layer 1, head 0: 8 8 4 5 6 7 8 8
    np.testing.assert_array_equal(table.loc[1, "share"], [1, 1, NAN, NAN, NAN, 1, 1, 1])


def test_heads_are_summed_where_none_is_chosen():
    table = channels.selected_table(read_trace(), "first", (0, 8)).set_index(["layer", "position"])
    # head 1 of layer 0 is evicted at 8 5 4 7 6 8 8 8: its choices are 2 0 0 1 0 2 2 1
    assert table.loc[0, "choices"].tolist() == [4, 0, 0, 1, 1, 4, 4, 2]
    np.testing.assert_array_equal(table.loc[0, "share"], [0.75, NAN, NAN, 0, 0, 0.75, 0.75, 0.5])


def test_evicted_unread_and_unreadable_look_different():
    figure = channels.plot_selected(channels.selected_table(read_trace(), 0, (0, 8)), selected=(0, 5))
    maps = {data.name: data for data in figure.data if data.type == "heatmap"}
    np.testing.assert_array_equal(maps["in the cache"].z[0], np.float32([1, NAN, NAN, NAN, NAN, 0.5, 0.5, 1]))
    np.testing.assert_array_equal(maps["evicted"].z[0], np.float32([NAN, NAN, NAN, NAN, 0, NAN, NAN, NAN]))
    np.testing.assert_array_equal(np.isnan(maps["no chance"].z[0]), [True, False, False, False, *[True] * 4])
    assert len({str(data.colorscale) for data in maps.values()}) == 3
    assert [data.name for data in figure.data if data.type == "scatter" and data.name] == [
        "evicted; dark: read often before", "no query could choose it"
    ]  # fmt: skip
    kept = channels.plot_selected(
        channels.selected_table(read_trace(evicted_at=np.full((2, 2, 8), 8, np.int32)), 0, (0, 8))
    )
    assert not kept.layout.showlegend


def test_the_mass_is_of_what_was_measured_or_unknown():
    assert np.isnan(channels.mass_selected(read_trace())) and np.isnan(channels.mass_read(read_trace()))
    mass = np.full((2, 4, 8), NAN, np.float32)
    mass[0, :, 6:] = 0.5
    assert channels.mass_selected(read_trace(selected_mass=mass)) == pytest.approx(0.5)
    assert channels.mass_read(read_trace(selected_mass=mass)) == pytest.approx(0.75)  # the other layer reads all
    none = read_trace(selected=np.zeros((2, 2, 8), np.float32), n_prompt=8, continuation=" word")
    assert np.isnan(channels.mass_read(none)), "no step of the stage was made"
    assert np.isnan(channels.mass_read(traces.trace(regret=np.zeros((0, 0, 0), np.float32)))), "compared with nothing"

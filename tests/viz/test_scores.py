"""Scores of tokens step by step, by their data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from tests.traces import HOSTILE, NEVER, trace
from tests.viz.figures import NAN, same
from viz import scores, strip
from viz.text import plain


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

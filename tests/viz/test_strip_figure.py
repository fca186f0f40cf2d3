"""The strip of tokens, by its data."""

from __future__ import annotations

import pandas as pd
import pytest

from tests.traces import HOSTILE, TOKENS, trace
from tests.viz.figures import NAN, other, same
from viz import strip
from viz.looks import STATE_STYLE
from viz.text import plain


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
    same(table["dropped_in"], [NAN, 3, 4, 5, 6, NAN, NAN, NAN])
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
    beside = strip.contested_with(table, [other()], 0, 0, 5)
    # A has dropped tokens 1 and 2 by step 5, and so has the other: layer 1 differs in tokens 2 and 3
    assert not beside["contested"].any()
    apart = strip.contested_with(strip.strip_table(trace(), 1, 0, 5), [other()], 1, 0, 5)
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

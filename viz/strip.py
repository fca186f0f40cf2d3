"""A prompt token by token at one step: what is kept, what is dropped, and what is protected."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sparsity_core.record import Trace
from viz.fates import FATES, removed_by
from viz.looks import STATE_STYLE
from viz.scores import drop_score
from viz.text import plain

_COLUMNS = 84  # characters to a line
_PER_INCH = 15  # of a paper's width
_FONT = "DejaVu Sans Mono, monospace"
_BOX = [(0.0, -0.38), (1.0, -0.38), (1.0, 0.38), (0.0, 0.38), (0.0, -0.38)]  # x in widths of a token, y in lines
_SHAPES: dict[str, list[tuple[float | None, float | None]]] = {
    "dropped": [(0.0, 0.0), (1.0, 0.0)],
    "gated": [(0.0, 0.09), (1.0, 0.09), (None, None), (0.0, -0.09), (1.0, -0.09)],
    "unread": [
        *[(0.06, 0.38), (0.0, 0.38), (0.0, -0.38), (0.06, -0.38), (None, None)],
        *[(0.94, 0.38), (1.0, 0.38), (1.0, -0.38), (0.94, -0.38)],
    ],
    "sink": [(0.0, -0.38), (1.0, -0.38)],
    "recent": [(0.0, -0.38), (1.0, -0.38)],
}
_PALE = {"future", *(fate.state for fate in FATES.values())}  # whose words have their state's colour
_CLEAR = {"width": 0, "color": "rgba(0,0,0,0)"}
# The states that have each mark, and how it is drawn.
_MARKS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "kept": (("kept", "sink", "recent"), {"fill": "toself", "fillcolor": "rgba(0,114,178,0.16)", "line": _CLEAR}),
    "dropped": (("dropped",), {"line": {"width": 1, "color": STATE_STYLE["dropped"].light}}),
    "gated": (("gated",), {"line": {"width": 1, "color": STATE_STYLE["gated"].light}}),
    "hidden": (
        ("hidden",),
        {
            "fill": "toself",
            "fillpattern": {"shape": "/", "size": 4, "solidity": 0.2, "fgcolor": "#BDBDE8"},
            "fillcolor": "rgba(0,0,0,0)",
            "line": _CLEAR,
        },
    ),
    "unread": (("unread",), {"line": {"width": 1, "color": STATE_STYLE["unread"].light}}),
    "sink": (("sink",), {"line": {"width": 2, "color": STATE_STYLE["sink"].light, "dash": "2px,2px"}}),
    "recent": (("recent",), {"line": {"width": 1.5, "color": STATE_STYLE["recent"].light}}),
    "contested": ((), {"line": {"width": 1, "color": "#1F2430", "dash": "1.5px,1.5px"}}),
}


def strip_table(
    trace: Trace, layer: int, head: int | str = "first", step: int | None = None, window: tuple[int, int] | None = None
) -> pd.DataFrame:
    """One row per token: position, token, state, dropped_in, dropped_while (the token read at that step), dropped_by (that token,
    where its gate did it, else −1), removed_by (the stage that removed it from the query at `step`, or ""), score, class, ruled
    (kept by a rule of the user's own).

    `state` is kept, sink (by a rule too), recent (both protected) or future, as query `step` finds the cache; of a token that a
    stage removed: gated, hidden (by a prefill stage), dropped (evicted) or unread (by a decode stage).
    `score` is the accumulated score at the last snapshot up to `step`, or that at which the token was dropped; nan where the
    trace has none.
    """
    n = trace.n_tokens
    step = n - 1 if step is None else step
    position = np.arange(n)
    evicted_at = trace.dropped_at(head)[layer]
    by = trace.dropped_by(layer).max(axis=0)
    gated = (by >= 0) & (by == evicted_at)
    state = np.full(n, "kept", dtype=object)
    state[position > step - trace.recent[layer]] = "recent"
    state[position < trace.n_sink[layer]] = "sink"
    ruled = trace.protected if trace.protected.size else np.zeros(n, bool)
    state[ruled] = "sink"
    dropped = (evicted_at <= step) & (evicted_at < n)
    by_stage = removed_by(trace, step, head, layer)
    for stage, fate in FATES.items():
        state[by_stage == stage] = fate.state
    state[position > step] = "future"
    at = trace.dropped_in(head)[layer].clip(max=n - 1)
    table = pd.DataFrame(
        {
            "position": position,
            "token": trace.tokens,
            "state": state,
            "dropped_in": np.where(dropped, at, np.nan),
            "dropped_while": [trace.tokens[e] if d else "" for e, d in zip(at, dropped, strict=True)],
            "dropped_by": np.where(gated & dropped, by, -1),
            "removed_by": by_stage,
            "score": _score(trace, layer, head, step, dropped, evicted_at),
            "class": trace.classes,
            "ruled": ruled,
            "group": trace.groups,
        }
    )
    return table if window is None else table.iloc[window[0] : window[1]]


def _score(
    trace: Trace, layer: int, head: int | str, step: int, dropped: np.ndarray, evicted_at: np.ndarray
) -> np.ndarray:
    heads = range(trace.n_kv_heads) if head in ("first", "last") else [int(head)]
    score = np.full(trace.n_tokens, np.nan, np.float32)
    before = np.flatnonzero(trace.snapshot_steps <= step)
    if before.size:
        score = np.nanmax(np.nan_to_num(trace.snapshots[layer, list(heads), before[-1]], nan=-np.inf), axis=0)
        score = np.where(np.isfinite(score), score, np.nan)
    for h in heads:
        own = dropped & (trace.evicted_at[layer, h] == evicted_at)
        score[own] = drop_score(trace, layer, h)[own]
    return score


def paper_strip(table: pd.DataFrame, width: float) -> tuple[go.Figure, float]:
    """The strip for a file so many inches wide, and the inches of height that its lines take."""
    figure = plot_strip(table, columns=int(width * _PER_INCH))
    low, high = figure.layout.yaxis.range
    return figure, 0.4 + 0.16 * (high - low)


def contested_with(
    table: pd.DataFrame, others: Sequence[Trace], layer: int, head: int | str = "first", step: int | None = None
) -> pd.DataFrame:
    """The strip's table with a column `contested`: whether one of the other traces decides differently about the token.

    A trace has no say on a token that its text does not have in that place.
    """
    removed, place = (table["removed_by"] != "").to_numpy(), pd.MultiIndex.from_frame(table[["position", "token"]])
    contested = np.zeros(len(table), bool)
    for trace in others:
        end = trace.n_tokens - 1
        other = strip_table(trace, min(layer, trace.n_layers - 1), head, end if step is None else min(step, end))
        theirs = other.set_index(["position", "token"])["removed_by"].reindex(place).to_numpy()
        contested |= (removed != (theirs != "")) & pd.notna(theirs)
    return table.assign(contested=contested)


class _Place(NamedTuple):
    """Where a token is written: its left edge, its line and its width, in characters."""

    x: int
    y: int
    width: int


def plot_strip(table: pd.DataFrame, columns: int = _COLUMNS) -> go.Figure:
    """The strip as a figure for papers: tokens in lines, kept ones shaded, dropped ones struck through."""
    places = _places(table["token"], columns)
    states = table["state"].to_numpy()
    marks = {name: np.isin(states, list(of)) for name, (of, _) in _MARKS.items()}
    if "contested" in table:
        marks["contested"] = table["contested"].to_numpy()
    figure = go.Figure()
    for name, where in marks.items():
        if where.any():
            _add_mark(figure, name, [place for place, marked in zip(places, where, strict=True) if marked])
    for state, look in STATE_STYLE.items():
        chosen = np.flatnonzero(states == state)
        if chosen.size:
            figure.add_scatter(
                x=[places[i].x for i in chosen],
                y=[places[i].y for i in chosen],
                mode="text",
                text=[plain(table["token"].iloc[i]) for i in chosen],
                textposition="middle right",
                textfont={"family": _FONT, "color": look.light if state in _PALE else None},
                customdata=table[["position", "dropped_in"]].iloc[chosen].to_numpy(),
                hovertemplate="token %{customdata[0]}<extra>" + state + "</extra>",
                name=f'<span style="color:{look.light}">not read yet</span>' if state == "future" else state,
                showlegend=state == "future",
            )
    lines = 1 - min(place.y for place in places)
    figure.update_xaxes(visible=False, range=[-1, columns + 1])
    figure.update_yaxes(visible=False, range=[-lines + 0.2, 0.8])
    return figure.update_layout(height=90 + 22 * lines, showlegend=True)


def _places(tokens: Iterable[str], columns: int) -> list[_Place]:
    """Where each token stands: a line is broken where it is full, and after a line end of the text."""
    places, line, column = [], 0, 0
    for token in tokens:
        width = max(1, sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in token))
        if column + width > columns and column:
            line, column = line + 1, 0
        places.append(_Place(column, -line, width))
        column += width + 1
        if "↵" in token:
            line, column = line + 1, 0
    return places


def _add_mark(figure: go.Figure, name: str, places: list[_Place]) -> None:
    """The mark `name` at each place as one trace with gaps: an outline of its shape, open or filled."""
    look, shape = _MARKS[name][1], _SHAPES.get(name, _BOX)
    shape = [*shape, (None, None)]
    x = [None if dx is None else p.x + 0.05 + dx * (p.width + 0.2) for p in places for dx, _ in shape]
    y = [None if dy is None else p.y + dy for p in places for _, dy in shape]
    figure.add_scatter(x=x, y=y, mode="lines", name=name, hoverinfo="skip", **look)

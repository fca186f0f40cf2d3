"""A prompt token by token at one step: what is kept, what is dropped, and what is protected."""

from __future__ import annotations

import unicodedata

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sparsity_core.record import Trace
from viz.looks import STATE_STYLE
from viz.scores import drop_score
from viz.text import plain

_COLUMNS = 84  # characters to a line
_PER_INCH = 15  # of a paper's width
_LEGEND = {
    "kept": "kept",
    "dropped": "dropped: struck through",
    "sink": "sink: dotted underline",
    "recent": "recent: underlined",
    "future": "future: grey",
}


def strip_table(
    trace: Trace, layer: int, head: int | str = "first", step: int | None = None, window: tuple[int, int] | None = None
) -> pd.DataFrame:
    """One row per token: position, token, state, dropped_at, dropped_while (the token read at that step), dropped_by (that token,
    where its gate did it, else −1), score, class, ruled (kept by a rule of the user's own).

    `state` is kept, dropped, sink (by a rule too), recent (both protected) or future, as query `step` finds the cache.
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
    state[dropped] = "dropped"
    state[position > step] = "future"
    at = trace.dropped_in(head)[layer].clip(max=n - 1)
    table = pd.DataFrame(
        {
            "position": position,
            "token": trace.tokens,
            "state": state,
            "dropped_at": np.where(dropped, at, np.nan),
            "dropped_while": [trace.tokens[e] if d else "" for e, d in zip(at, dropped, strict=True)],
            "dropped_by": np.where(gated & dropped, by, -1),
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


def plot_strip(table: pd.DataFrame, columns: int = _COLUMNS) -> go.Figure:
    """The strip as a figure for papers: tokens in lines, a dropped one struck through, a protected one underlined."""
    x, y, line, column = [], [], 0, 0
    widths = [max(1, sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in t)) for t in table["token"]]
    for token, width in zip(table["token"], widths, strict=True):
        if column + width > columns and column:
            line, column = line + 1, 0
        x.append(column)
        y.append(-line)
        column += width + 1
        if "↵" in token:
            line, column = line + 1, 0
    figure = go.Figure()
    for state, look in STATE_STYLE.items():
        chosen = np.flatnonzero(table["state"].to_numpy() == state)
        if not chosen.size:
            continue
        colour = look.light
        bars: list[float | None] = []
        heights: list[float | None] = []
        for i in chosen:
            at = y[i] + {"dropped": 0.0, "sink": -0.36, "recent": -0.36}.get(state, 0.0)
            if state in ("dropped", "sink", "recent"):
                bars += [x[i] - 0.1, x[i] + widths[i] + 0.1, None]
                heights += [at, at, None]
        figure.add_scatter(
            x=[x[i] for i in chosen],
            y=[y[i] for i in chosen],
            mode="text",
            text=[plain(table["token"].iloc[i]) for i in chosen],
            textposition="middle right",
            textfont={"family": "DejaVu Sans Mono, monospace", "color": colour if state != "kept" else None},
            customdata=table[["position", "dropped_at"]].iloc[chosen].to_numpy(),
            hovertemplate="token %{customdata[0]}<extra>" + state + "</extra>",
            showlegend=False,
        )
        figure.add_scatter(
            x=bars or [None],
            y=heights or [None],
            mode="lines",
            line={
                "color": colour if bars else "rgba(0, 0, 0, 0)",
                "width": 1,
                "dash": "solid" if state != "sink" else "dot",
            },
            name=_LEGEND[state],
            hoverinfo="skip",
        )
    figure.update_xaxes(visible=False, range=[-1, columns + 1])
    figure.update_yaxes(visible=False, range=[-line - 0.8, 0.8])
    return figure.update_layout(height=90 + 22 * (line + 1))

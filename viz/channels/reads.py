"""How often each layer read each token, of the queries that could choose it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sparsity_core.record import Trace
from viz.looks import SEQUENTIAL, STATE_STYLE
from viz.maps import FIRST_AXIS, height, marks, named_columns

_CACHED, _EVICTED, _NO_CHANCE = "in the cache", "evicted", "no chance"
_EVICTED_SCALE = [[0, "#F0D5C3"], [1, STATE_STYLE["dropped"].light]]  # never read to always read
_GREY = "#B9BDC6"
_BAR = {"title": {"text": "read by"}, "tickformat": ".0%"}


def choices(trace: Trace) -> np.ndarray:
    """int64 [L, Hkv, T]: how many queries could choose each key.

    n[k] = |{q : max(k, first) ≤ q < evicted_at[k]}|, where `first` is the first query of the decode stage: the first of
    all in `run`, the first after the prompt in `generate`.
    """
    generated = trace.n_tokens > trace.n_prompt or bool(trace.continuation)
    first = trace.n_at_once if generated else 0
    return np.maximum(trace.evicted_at - np.maximum(np.arange(trace.n_tokens), first), 0).astype(np.int64)


def reads_everything(trace: Trace) -> np.ndarray:
    """bool [L]: the layers without a selector, whose queries read all that is in the cache."""
    return trace.selected.sum((1, 2)) == 0


def selected_table(trace: Trace, head: int | str, window: tuple[int, int]) -> pd.DataFrame:
    """One row per layer and token: layer, position, token, share, reads, choices, evicted_at.

    `share` = reads / choices: of the queries that could choose the key, those that did; nan where none could. `head` is a
    KV head; for "first" and "last", reads and choices are summed over the layer's heads. `evicted_at` is the first query
    that no longer sees the key (the last head's, where heads are summed), nan while it is cached.
    """
    could = choices(trace)
    read = np.where(reads_everything(trace)[:, None, None], could, trace.selected)
    if isinstance(head, int):
        read, could, gone = read[:, head], could[:, head], trace.evicted_at[:, head]
    else:
        read, could, gone = read.sum(1), could.sum(1), trace.evicted_at.max(1)
    share = np.divide(read, could, out=np.full(could.shape, np.nan), where=could > 0)
    start, end = window
    n = end - start
    return pd.DataFrame(
        {
            "layer": np.repeat(np.arange(trace.n_layers), n),
            "position": np.tile(np.arange(start, end), trace.n_layers),
            "token": np.tile(np.asarray(trace.tokens[start:end], dtype=object), trace.n_layers),
            "share": share[:, start:end].ravel(),
            "reads": read[:, start:end].ravel(),
            "choices": could[:, start:end].ravel(),
            "evicted_at": np.where(gone < trace.n_tokens, gone, np.nan)[:, start:end].ravel(),
        }
    )


def plot_selected(table: pd.DataFrame, *, selected: tuple[int, int] | None = None) -> go.Figure:
    """How often each layer's queries read each token; evicted ones have colours of their own. `selected` is (layer, position)."""
    layers, positions = table["layer"].unique(), table["position"].unique()
    shape = (len(layers), len(positions))
    share = table["share"].to_numpy(np.float32).reshape(shape)
    evicted, chosen = table["evicted_at"].notna().to_numpy().reshape(shape), ~np.isnan(share)
    maps = [
        go.Heatmap(
            name=name,
            z=np.where(
                where, np.nan_to_num(share), np.nan
            ),  # what no query could choose has one colour, whatever its z
            x=positions,
            y=layers,
            xaxis="x2",
            zmin=0,
            zmax=1,
            hoverongaps=False,
            **_hover(table, shape, name),
            **looks,
        )
        for name, where, looks in (
            (_CACHED, ~evicted & chosen, {"colorscale": SEQUENTIAL, "colorbar": _BAR}),
            (_EVICTED, evicted & chosen, {"colorscale": _EVICTED_SCALE, "showscale": False}),
            (_NO_CHANCE, ~chosen, {"colorscale": [[0, _GREY], [1, _GREY]], "showscale": False}),
        )
        if where.any()
    ]
    drawn = {heatmap.name for heatmap in maps}
    legend = {
        _EVICTED: ("evicted; dark: read often before", _EVICTED_SCALE[1][1]),
        _NO_CHANCE: ("no query could choose it", _GREY),
    }
    keys = [
        go.Scatter(x=[None], y=[None], mode="markers", name=text, marker={"symbol": "square", "size": 10, "color": colour})
        for name, (text, colour) in legend.items()
        if name in drawn
    ]  # fmt: skip
    shapes, notes = marks(selected, positions)
    layout = {
        "height": height(shape[0]),
        "xaxis": {"title": {"text": "token position"}},
        "xaxis2": named_columns(positions, table["token"].to_numpy()[: shape[1]]),
        "yaxis": {"title": {"text": "layer"}, "showgrid": False},
        "shapes": shapes,
        "annotations": notes,
        "showlegend": bool(keys),
        "legend": {"y": 1, "yref": "container", "yanchor": "top"},  # above the mark of the chosen token
    }
    return go.Figure([FIRST_AXIS, *maps, *keys], layout)


def _hover(table: pd.DataFrame, shape: tuple[int, int], fate: str) -> dict[str, object]:
    counts = table[["reads", "choices", "evicted_at"]].to_numpy().reshape(*shape, 3)
    told = {
        _CACHED: "read by %{z:.0%}: %{customdata[0]:.4~g} of the %{customdata[1]:d} queries that could",
        _EVICTED: "read by %{z:.0%}: %{customdata[0]:.4~g} of the %{customdata[1]:d} queries that could,"
        "<br>and missing from query %{customdata[2]:d} on",
        _NO_CHANCE: "no query could choose it",
    }[fate]
    return {"customdata": counts, "hovertemplate": f"layer %{{y}}, token %{{x}}<br>{told}<extra></extra>"}

"""The blocks of keys that blocks of queries see, over the dense attention of the same layer and head."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import hex_to_rgb
from plotly.subplots import make_subplots

from sparsity_core.record import Trace
from sparsity_core.studies import AttentionLook
from viz.chosen import CHOSEN
from viz.looks import BLUE, VERMILLION
from viz.maps import GREY
from viz.text import plain

_LEAST = -4  # log10 of the attention at which the colours begin
_TINT = 0.6
_COLOURS = (BLUE, VERMILLION)  # of A and B


def of_head(lists: np.ndarray, n_kv: int, head: int | str) -> np.ndarray:
    """What a KV head's lists say, from [lists, …]: the mean over its query heads, or over all heads where none is chosen."""
    by_head = lists.reshape(n_kv, -1, *lists.shape[1:]).mean(1)
    return np.asarray(by_head.mean(0) if isinstance(head, str) else by_head[head])


def pattern_table(
    traces: Mapping[str, Trace],
    layer: int,
    head: int | str,
    look: AttentionLook | None = None,
) -> pd.DataFrame:
    """One row per pipeline, block of queries and block of keys up to it: pipeline, query, key (their first tokens), seen,
    attention.

    `seen` is the share of the block's causal pairs that the pipeline's prefill stage shows, 1 where it has none; `attention` is
    what the block's queries give to those keys in the dense model, nan where no look at it is given.
    """
    rows = []
    for name, trace in traces.items():
        record = trace.prefill
        if record is None and look is None:
            continue
        block = record.block if record is not None else look.block  # type: ignore[union-attr]
        side = -(-trace.n_at_once // block)
        query, key = np.tril_indices(side)
        seen = np.ones((side, side)) if record is None else of_head(record.blocks[layer], trace.n_kv_heads, head)
        given = np.full((side, side), np.nan)
        if look is not None and look.block == block:
            given = of_head(look.blocks, trace.n_kv_heads, head)
        rows.append(
            pd.DataFrame(
                {
                    "pipeline": name,
                    "query": query * block,
                    "key": key * block,
                    "seen": seen[query, key],
                    "attention": given[query, key],
                }
            )
        )
    columns = ["pipeline", "query", "key", "seen", "attention"]
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=columns)


def plot_pattern(table: pd.DataFrame, token: int | None = None) -> go.Figure:
    """A panel for each pipeline, on the same axes: grey is dense attention, the tint is what the pipeline sees of it.

    `token` is a chosen key.
    """
    names = list(table["pipeline"].unique())
    figure = make_subplots(
        1,
        len(names),
        shared_yaxes=True,
        horizontal_spacing=0.04,
        subplot_titles=[*map(plain, names)],
    )
    starts = np.unique(table["query"])
    width = int(starts[1] - starts[0]) if len(starts) > 1 else 16
    middle = starts + (width - 1) / 2
    for i, name in enumerate(names):
        own = table[table["pipeline"] == name]
        place = (own["query"].to_numpy() // width, own["key"].to_numpy() // width)
        given, seen = (np.full((len(starts),) * 2, np.nan, np.float32) for _ in range(2))
        given[place], seen[place] = own["attention"], own["seen"]
        if not np.isnan(given[place]).all():
            figure.add_trace(_dense(given, middle, shown=i == 0), 1, i + 1)
        figure.add_trace(_tint(given, seen, middle, width, _COLOURS[i % 2]), 1, i + 1)
    figure.update_xaxes(title="key", range=[-0.5, starts[-1] + width - 0.5], showgrid=False)
    figure.update_yaxes(range=[starts[-1] + width - 0.5, -0.5], showgrid=False)
    figure.update_yaxes(title="query", col=1)
    for note in figure.layout.annotations:
        note.update(font={"size": 13})
    if token is not None:
        figure.add_vline(token, line={"width": 1, "dash": "dot"}, name=CHOSEN)
    return figure.update_layout(height=460, margin={"t": 56}, showlegend=False)


def _dense(given: np.ndarray, middle: np.ndarray, shown: bool) -> go.Heatmap:
    ticks = list(range(_LEAST, 1))
    return go.Heatmap(
        name="dense attention",
        z=np.log10(np.clip(given, 10.0**_LEAST, 1)),
        x=middle,
        y=middle,
        zmin=_LEAST,
        zmax=0,
        colorscale=[[0, f"rgba{(*GREY, 0.0)}"], [1, f"rgba{(*GREY, 1.0)}"]],
        showscale=shown,
        colorbar={
            "title": {"text": "dense attention of a block's queries"},
            "tickvals": ticks,
            "ticktext": [f"{100 * 10.0**t:g} %" for t in ticks],
        },
        hoverinfo="skip",
    )


def _tint(given: np.ndarray, seen: np.ndarray, middle: np.ndarray, width: int, colour: str) -> go.Heatmap:
    rgb = hex_to_rgb(colour)
    return go.Heatmap(
        name="seen",
        z=seen,
        x=middle,
        y=middle,
        zmin=0,
        zmax=1,
        colorscale=[[0, f"rgba{(*rgb, 0.0)}"], [1, f"rgba{(*rgb, _TINT)}"]],
        showscale=False,
        customdata=given,
        hoverongaps=False,
        hovertemplate=f"{width} queries about %{{y:.0f}}, keys about %{{x:.0f}}<br>%{{z:.0%}} of the pairs are seen"
        "<br>%{customdata:.2%} of the dense attention<extra></extra>",
    )

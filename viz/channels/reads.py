"""How often each layer read each token."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sparsity_core.record import Trace
from viz.looks import SEQUENTIAL
from viz.maps import FIRST_AXIS, height, marks, named_columns


def selected_table(trace: Trace, head: int | str, window: tuple[int, int]) -> pd.DataFrame:
    """One row per layer and token: the share of the queries that could see it that read it, of a KV head or their mean."""
    heads = trace.selected.mean(1) if not isinstance(head, int) else trace.selected[:, head]  # [L, T]
    start, end = window
    chances = trace.n_tokens - np.arange(trace.n_tokens)
    dense = trace.selected.sum((1, 2)) == 0  # the first layers, in which every query reads everything
    heads = np.where(dense[:, None], chances, heads)
    share = heads / chances
    n = end - start
    return pd.DataFrame(
        {
            "layer": np.repeat(np.arange(trace.n_layers), n),
            "position": np.tile(np.arange(start, end), trace.n_layers),
            "token": np.tile(np.asarray(trace.tokens[start:end], dtype=object), trace.n_layers),
            "share": share[:, start:end].ravel(),
            "queries": heads[:, start:end].ravel(),
        }
    )


def plot_selected(table: pd.DataFrame, *, selected: tuple[int, int] | None = None) -> go.Figure:
    """How often each layer's decode steps read each token; `selected` is (layer, position)."""
    layers, positions = table["layer"].unique(), table["position"].unique()
    shape = (len(layers), len(positions))
    heatmap = go.Heatmap(
        z=table["share"].to_numpy(np.float32).reshape(shape),
        x=positions,
        y=layers,
        colorscale=SEQUENTIAL,
        zmin=0,
        zmax=1,
        colorbar={"title": {"text": "read by"}, "tickformat": ".0%"},
        hovertemplate="layer %{y}, token %{x}<br>read by %{z:.0%} of the later queries<extra></extra>",
        xaxis="x2",
    )
    shapes, notes = marks(selected, positions)
    layout = {
        "height": height(shape[0]),
        "xaxis": {"title": {"text": "token position"}},
        "xaxis2": named_columns(positions, table["token"].to_numpy()[: shape[1]]),
        "yaxis": {"title": {"text": "layer"}, "showgrid": False},
        "shapes": shapes,
        "annotations": notes,
    }
    return go.Figure([FIRST_AXIS, heatmap], layout)

"""What an offloaded cache had ready when a layer asked for it."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import plotly.graph_objects as go

from sparsity_core.record import Trace


def prefetch_table(trace: Trace, chance: Callable[[int], float]) -> pd.DataFrame:
    """One row per offloaded layer: ready, the share of the rows it read that had been fetched ahead, and what `chance` gives."""
    layers = range(len(trace.prefetch_hits))
    table = pd.DataFrame({"layer": layers, "ready": trace.prefetch_hits, "chance": [chance(i) for i in layers]})
    return table.dropna()


def plot_prefetch(table: pd.DataFrame) -> go.Figure:
    """How often a query predicted from the layer below named the rows that the real one read; dotted: by chance."""
    figure = go.Figure(
        go.Bar(
            x=table["layer"],
            y=table["ready"],
            marker={"color": "#0072B2"},
            hovertemplate="layer %{x}: %{y:.0%} of the rows were ready<extra></extra>",
        )
    )
    figure.add_scatter(
        x=table["layer"],
        y=table["chance"],
        mode="lines",
        line={"width": 2, "dash": "dot", "color": "#A0A0A0", "shape": "hvh"},  # seen on the bars and on both grounds
        hovertemplate="layer %{x}: %{y:.0%} by chance<extra></extra>",
    )
    figure.update_xaxes(title="layer")
    figure.update_yaxes(title="rows ready when asked for", range=[0, 1], tickformat=".0%")
    return figure.update_layout(height=300, showlegend=False)

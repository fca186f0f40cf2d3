"""What an offloaded cache had ready when a layer asked for it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sparsity_core.record import Trace


def prefetch_table(trace: Trace) -> pd.DataFrame:
    """One row per offloaded layer: the share of the rows it read that had been fetched ahead."""
    table = pd.DataFrame({"layer": np.arange(len(trace.prefetch_hits)), "ready": trace.prefetch_hits})
    return table.dropna()


def plot_prefetch(table: pd.DataFrame, chance: float) -> go.Figure:
    """How often a query predicted from the layer below named the rows that the real one read; dotted: by chance."""
    figure = go.Figure(
        go.Bar(
            x=table["layer"], y=table["ready"], marker={"color": "#0072B2"},
            hovertemplate="layer %{x}: %{y:.0%} of the rows were ready<extra></extra>",
        )
    )  # fmt: skip
    figure.add_hline(
        chance, line={"width": 2, "dash": "dot", "color": "#A0A0A0"}
    )  # seen on the bars and on both grounds
    figure.update_xaxes(title="layer")
    figure.update_yaxes(title="rows ready when asked for", range=[0, 1], tickformat=".0%")
    return figure.update_layout(height=300)

"""The atlas of a long text at a glance: the share dropped in each stretch, and the window that the atlas shows."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from viz.chosen import CHOSEN
from viz.looks import SEQUENTIAL


def pooled_table(table: pd.DataFrame, most_columns: int = 1024) -> pd.DataFrame:
    """The atlas of a long text in at most `most_columns` bins of tokens: the share dropped (mean) and the earliest drop."""
    n = int(table["position"].max() - table["position"].min()) + 1
    width = -(-n // most_columns)
    bins = (table["position"] - table["position"].min()) // width
    grouped = table.assign(bin=bins, dropped=table["dropped_in"].notna()).groupby(["layer", "bin"], sort=True)
    out = grouped.agg(position=("position", "min"), share=("dropped", "mean"), dropped_in=("dropped_in", "min"))
    return out.reset_index().drop(columns="bin")


def plot_overview(pooled: pd.DataFrame, window: tuple[int, int]) -> go.Figure:
    """Share of tokens dropped per bin of a long text, with the window that the atlas below shows."""
    layers, positions = np.unique(pooled["layer"]), np.unique(pooled["position"])
    width = positions[1] - positions[0] if len(positions) > 1 else 1
    figure = go.Figure(
        go.Heatmap(
            z=pooled["share"].to_numpy(np.float32).reshape(len(layers), len(positions)),
            x=positions + (width - 1) / 2,  # a bin begins at its position, a cell is centred on its x
            y=layers,
            zmin=0,
            zmax=1,
            colorscale=SEQUENTIAL,
            colorbar={"title": {"text": "share dropped"}},
            hovertemplate="layer %{y}, around token %{x:.0f}<br>%{z:.0%} dropped<extra></extra>",
        )
    )
    figure.add_vrect(
        window[0] - 0.5, window[1] - 0.5, line={"width": 1.5}, fillcolor="rgba(255,255,255,0.25)", name=CHOSEN
    )
    figure.update_xaxes(title="token position")
    figure.update_yaxes(title="layer", showgrid=False)
    return figure.update_layout(height=190)

"""Shares from 0 to 1 over two axes."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from viz.looks import SEQUENTIAL


def plot_shares(z: pd.DataFrame, what: str, hover: str, least: float = 0.0) -> go.Figure:
    """A heatmap of a table's values, its index upwards and its columns to the right; `hover` names %{x}, %{y} and %{z}.

    The colours begin at `least`.
    """
    figure = go.Figure(
        go.Heatmap(
            z=z.to_numpy(),
            x=z.columns,
            y=z.index,
            colorscale=SEQUENTIAL,
            zmin=least,
            zmax=1,
            colorbar={"title": {"text": what}, "tickformat": ".0%"},
            hovertemplate=f"{hover}<extra></extra>",
        )
    )
    return figure.update_xaxes(showgrid=False).update_yaxes(showgrid=False)

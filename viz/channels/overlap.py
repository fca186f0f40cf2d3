"""Whether the statistics choose the same channels."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sparsity_core.methods.decode.double_sparsity.channels import STATISTICS, Channels
from viz.looks import SEQUENTIAL


def overlap_table(channels: Channels, r: int) -> pd.DataFrame:
    """One row per pair of statistics: the share of the r largest channels that both choose, mean over layers and heads."""
    return pd.DataFrame(
        [
            {"statistic": a, "beside": b, "overlap": float(channels.overlap(channels, a, b, r).mean())}
            for a in STATISTICS
            for b in STATISTICS
        ]
    )


def plot_overlap(table: pd.DataFrame, chance: float) -> go.Figure:
    """Each pair of statistics once, with its number; `chance` is what random channels would share.

    The colours span the values of the pairs: those of a statistic with itself, all 1, are left out.
    """
    square = table["overlap"].to_numpy().reshape(len(STATISTICS), -1)
    z = np.where(np.tri(len(STATISTICS), k=-1, dtype=bool), square, np.nan)[1:, :-1]
    figure = go.Figure(
        go.Heatmap(
            z=z,
            x=list(STATISTICS[:-1]),
            y=list(STATISTICS[1:]),
            colorscale=SEQUENTIAL,
            zmin=float(np.nanmin(z)),
            zmax=float(np.nanmax(z)),
            text=[["" if np.isnan(v) else f"{v:.2f}" for v in row] for row in z],
            texttemplate="%{text}",
            hoverongaps=False,
            colorbar={"title": {"text": f"shared (chance {chance:.2f})"}, "tickformat": ".2f"},
            hovertemplate="%{y} and %{x} share %{z:.1%}<extra></extra>",
        )
    )
    return figure.update_layout(height=300).update_yaxes(autorange="reversed", showgrid=False)

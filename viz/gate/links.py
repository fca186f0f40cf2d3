"""Which token dropped which."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sparsity_core.record import Trace
from viz.text import plain


def link_table(trace: Trace, layer: int, window: tuple[int, int]) -> pd.DataFrame:
    """One row per token of the window that another token dropped: position, token, dropped_by, by_token, distance."""
    by = trace.dropped_by(layer).max(axis=0)  # a gate serves all heads; −1 in those where eviction came first
    position = np.flatnonzero(by >= 0)
    position = position[(position >= window[0]) & (position < window[1])]
    return pd.DataFrame(
        {
            "position": position,
            "token": [trace.tokens[p] for p in position],
            "dropped_by": by[position],
            "by_token": [trace.tokens[b] for b in by[position]],
            "distance": by[position] - position,
        }
    )


def plot_links(table: pd.DataFrame, window: tuple[int, int], *, selected: int | None = None) -> go.Figure:
    """An arc from each dropped token to the token that dropped it; those of the selected token stand out."""
    figure = go.Figure()
    mine = (table["position"] == selected) | (table["dropped_by"] == selected)
    for rows, colour, width, name in (
        (table[~mine], "#8A93A3", 0.8, "dropped by"),
        (table[mine], "#D55E00", 2.0, "with the chosen token"),
    ):
        x, y = _arcs(rows)
        figure.add_scatter(
            x=x, y=y, mode="lines", line={"color": colour, "width": width}, name=name, hoverinfo="skip",
            opacity=0.55 if width < 1 else 1.0,
        )  # fmt: skip
    figure.add_scatter(
        x=table["dropped_by"],
        y=np.zeros(len(table)),
        mode="markers",
        marker={"symbol": "triangle-up", "size": 6, "color": "#D55E00"},
        name="the token that drops",
        customdata=np.stack([table["position"].astype(str), [plain(t) for t in table["token"]],
                             [plain(t) for t in table["by_token"]]], axis=1) if len(table) else None,
        hovertemplate="token %{x} “%{customdata[2]}” drops token %{customdata[0]} “%{customdata[1]}”<extra></extra>",
    )  # fmt: skip
    figure.add_scatter(
        x=table["position"],
        y=np.zeros(len(table)),
        mode="markers",
        marker={"symbol": "x-thin", "size": 5, "line": {"width": 1.2, "color": "#0072B2"}, "color": "#0072B2"},
        name="the token that is dropped",
        customdata=np.stack([table["dropped_by"].astype(str), [plain(t) for t in table["token"]],
                             [plain(t) for t in table["by_token"]]], axis=1) if len(table) else None,
        hovertemplate="token %{x} “%{customdata[1]}” is dropped by token %{customdata[0]} “%{customdata[2]}”<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(title="token position", range=[window[0] - 1, window[1]])
    figure.update_yaxes(visible=False, rangemode="tozero")
    return figure.update_layout(height=260, showlegend=True)


def _arcs(rows: pd.DataFrame, points: int = 17) -> tuple[np.ndarray, np.ndarray]:
    """Half circles over each pair, as one line with gaps."""
    angle = np.linspace(0.0, np.pi, points)
    middle = (rows["position"].to_numpy() + rows["dropped_by"].to_numpy())[:, None] / 2.0
    radius = rows["distance"].to_numpy()[:, None] / 2.0
    gap = np.full((len(rows), 1), np.nan)
    x = np.hstack([middle + radius * np.cos(angle), gap])
    y = np.hstack([radius * np.sin(angle), gap])
    return x.ravel(), y.ravel()

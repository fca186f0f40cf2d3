"""The sparse sigmoid, as it is trained and as it is used."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sparsity_core.methods.gate.dcp.records import sparse_sigmoid
from viz.text import plain

_SHARPNESS = {1.0: "1.5px,1.5px", 1.5: "5px,2px,1.5px,2px", 2.0: "5px,2px", 4.0: "9px,2px", 8.0: "solid"}  # a: dash

_GREYS = {1.0: "#A9B0BC", 1.5: "#98A0AD", 2.0: "#87909E", 4.0: "#768090", 8.0: "#656F80"}

_NAMED = ", ".join(f"{a:g}" for a in _SHARPNESS)  # from the flattest curve to the steepest


def sigmoid_table() -> pd.DataFrame:
    """σ_a(x) for some a: columns a, x, p."""
    x = np.linspace(-3.0, 3.0, 241)
    return pd.DataFrame(
        [{"a": a, "x": v, "p": p} for a in _SHARPNESS for v, p in zip(x, sparse_sigmoid(x, a), strict=True)]
    )


def plot_sigmoid(table: pd.DataFrame, points: Mapping[str, float], threshold: float) -> go.Figure:
    """The sparse sigmoid as it is trained (a from 1 to 8) and the step as which it is used, with chosen pairs' x on it."""
    figure = go.Figure()
    for a, rows in table.groupby("a"):
        figure.add_scatter(
            x=rows["x"], y=rows["p"], mode="lines", line={"color": _GREYS[a], "dash": _SHARPNESS[a], "width": 1.4},
            name=f"as trained, a = {_NAMED}", legendgroup="trained", showlegend=a == 8.0,
            hovertemplate=f"x = %{{x:.2f}}: %{{y:.3f}}<extra>a = {a:g}</extra>",
        )  # fmt: skip
    figure.add_scatter(
        x=[-3, threshold, threshold, 3], y=[0, 0, 1, 1], mode="lines", line={"color": "#0072B2", "width": 2.4},
        name="as used, a = ∞", hoverinfo="skip",
    )  # fmt: skip
    for symbol, (name, x) in zip(("circle", "diamond"), points.items(), strict=False):
        figure.add_scatter(
            x=[float(np.clip(x, -3, 3))],
            y=[float(x > threshold)],
            mode="markers",
            marker={"symbol": symbol, "size": 12, "color": "#D55E00", "line": {"width": 1.5, "color": "#FFFFFF"}},
            name=plain(name),
            hovertemplate=f"x = {x:.3f}<extra></extra>",
        )
    figure.update_xaxes(title="gate logit x of a pair", range=[-3, 3])
    figure.update_yaxes(title="kept, σ(x)", range=[-0.06, 1.06])
    return figure.update_layout(height=480, showlegend=True)

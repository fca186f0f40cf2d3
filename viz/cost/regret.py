"""The dense attention that went to evicted keys, by layer and head."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sparsity_core.record import Trace
from viz.looks import SEQUENTIAL


def regret_table(trace: Trace, step: int | None = None) -> pd.DataFrame:
    """One row per layer and query head: the dense attention that went to evicted keys, mean over the queries up to `step`."""
    end = trace.n_tokens if step is None else step + 1
    regret = trace.regret[:, :, :end].mean(axis=2)
    layers, heads = regret.shape
    return pd.DataFrame(
        {
            "layer": np.repeat(np.arange(layers), heads),
            "head": np.tile(np.arange(heads), layers),
            "kv_head": np.tile(np.arange(heads) // (heads // trace.n_kv_heads), layers),
            "regret": regret.ravel(),
            "retained": 1 - regret.ravel(),
        }
    )


def plot_regret(table: pd.DataFrame, most: float | None = None) -> go.Figure:
    """Regret of each layer and head; `most` fixes the colour scale's end so that two figures share it."""
    layers, heads = np.unique(table["layer"]), np.unique(table["head"])
    figure = go.Figure(
        go.Heatmap(
            z=table["regret"].to_numpy(np.float32).reshape(len(layers), len(heads)).T,
            x=layers,
            y=heads,
            zmin=0,
            zmax=most or max(1e-6, float(table["regret"].max())),
            colorscale=SEQUENTIAL,
            colorbar={"title": {"text": "regret"}, "tickformat": ".0%"},
            hovertemplate="layer %{x}, head %{y}<br>%{z:.2%} of the dense attention went to evicted keys<extra></extra>",
        )
    )
    figure.update_xaxes(title="layer")
    figure.update_yaxes(title="query head", dtick=max(1, len(heads) // 8), showgrid=False)
    return figure.update_layout(height=120 + 18 * min(12, len(heads)))

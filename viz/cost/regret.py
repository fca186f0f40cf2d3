"""The dense attention that went to evicted keys, by layer and head."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sparsity_core.record import Trace
from viz.looks import SEQUENTIAL
from viz.text import plain


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


def plot_regret(tables: Mapping[str, pd.DataFrame]) -> go.Figure:
    """Regret of each layer and head, a map for each pipeline by its name, one above the other under one colour scale."""
    names = [plain(name) for name in tables]
    figure = make_subplots(
        len(tables),
        1,
        shared_xaxes=True,
        vertical_spacing=0.26 / len(tables),
        subplot_titles=names if names[1:] else None,
    )
    shown = 0
    for row, table in enumerate(tables.values(), 1):
        layers, heads = np.unique(table["layer"]), np.unique(table["head"])
        shown += min(12, len(heads))
        figure.add_heatmap(
            z=table["regret"].to_numpy(np.float32).reshape(len(layers), len(heads)).T,
            x=layers,
            y=heads,
            coloraxis="coloraxis",
            hovertemplate="layer %{x}, head %{y}<br>%{z:.2%} of the dense attention went to evicted keys<extra></extra>",
            row=row,
            col=1,
        )
        figure.update_yaxes(title="query head", dtick=max(1, len(heads) // 4), showgrid=False, row=row, col=1)
    figure.update_xaxes(title="layer", row=len(tables), col=1)
    most = max(1e-6, *(float(table["regret"].max()) for table in tables.values()))
    bar = {"title": {"text": "regret"}, "tickformat": ".0%"}
    scale = {"cmin": 0, "cmax": most, "colorscale": SEQUENTIAL, "colorbar": bar}
    return figure.update_layout(height=90 + 40 * len(tables) + 18 * shown, coloraxis=scale)

"""Which channels of a head stand out."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sparsity_core.methods.decode.double_sparsity.channels import Channels
from viz.channels.names import STATISTIC_NAMES
from viz.chosen import CHOSEN
from viz.looks import SEQUENTIAL


def magnitude_table(
    channels: Channels, statistic: str, *, layer: int | None = None, head: int | None = None
) -> pd.DataFrame:
    """One row per channel and layer (of a KV head, or the heads' mean) or, with `layer`, per channel and KV head.

    Columns: layer, head (−1: the mean), channel, magnitude, place (0 for the largest of its row).
    """
    values = channels.per_kv_head(statistic)  # [L, Hkv, D]
    if layer is not None:
        rows, names = values[layer], [(layer, h) for h in range(values.shape[1])]
    else:
        rows = values.mean(1) if head is None else values[:, head]
        names = [(i, -1 if head is None else head) for i in range(values.shape[0])]
    place = np.argsort(np.argsort(-rows, axis=1, kind="stable"), axis=1)
    n, dim = rows.shape
    return pd.DataFrame(
        {
            "layer": np.repeat([a for a, _ in names], dim),
            "head": np.repeat([b for _, b in names], dim),
            "channel": np.tile(np.arange(dim), n),
            "magnitude": rows.ravel(),
            "place": place.ravel(),
        }
    )


def plot_magnitudes(table: pd.DataFrame, r: int, statistic: str, *, selected: int | None = None) -> go.Figure:
    """Magnitudes as a heatmap, relative to the row's median; the r outliers of each row are marked."""
    by = "layer" if table["layer"].nunique() > 1 else "head"
    rows = table[by].unique()
    values = table["magnitude"].to_numpy().reshape(len(rows), -1)
    relative = values / np.maximum(np.median(values, axis=1, keepdims=True), 1e-30)
    outliers = table[table["place"] < r]
    figure = go.Figure(
        go.Heatmap(
            z=np.log2(np.maximum(relative, 1e-6)),
            x=table["channel"].unique(),
            y=rows,
            customdata=values,
            colorscale=SEQUENTIAL,
            zmin=-3,
            zmax=3,
            colorbar={
                "title": {"text": "× the row's median"},
                "tickvals": [-3, -2, -1, 0, 1, 2, 3],
                "ticktext": ["≤ ⅛", "¼", "½", "1", "2", "4", "≥ 8"],
            },
            hovertemplate=f"{by} %{{y}}, channel %{{x}}<br>{STATISTIC_NAMES[statistic]}: %{{customdata:.4g}}<extra></extra>",
        )
    )
    figure.add_scatter(
        x=outliers["channel"],
        y=outliers[by],
        mode="markers",
        marker={
            "symbol": "circle",
            "size": 4 if r <= 16 else 3,
            "color": "#FFFFFF",
            "line": {"width": 0.75, "color": "#1F2430"},
        },
        name=f"the {r} largest of the row",
        hoverinfo="skip",
    )
    if selected is not None and by == "layer":
        across = {"x0": -0.5, "x1": values.shape[1] - 0.5, "y0": selected - 0.5, "y1": selected + 0.5}
        figure.add_shape(name=CHOSEN, type="rect", **across, line={"width": 1.5})
    tall = by == "layer"
    figure.update_xaxes(title="channel of the head", showgrid=False, range=[-0.5, values.shape[1] - 0.5])
    figure.update_yaxes(
        title=by if tall else "KV head",
        showgrid=False,
        dtick=None if tall else 1,
        range=[rows[0] - 0.5, rows[-1] + 0.5],
    )
    return figure.update_layout(height=150 + (10 if tall else 26) * len(rows), showlegend=False)

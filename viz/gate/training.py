"""How a gate was trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go


def training_table(recipe: Mapping[str, Any]) -> pd.DataFrame:
    """One row per step of a gate's training: step, loss (nats a token) and kept, and their running means."""
    curve = recipe["curve"]
    table = pd.DataFrame({"step": np.arange(1, len(curve["loss"]) + 1), "loss": curve["loss"], "kept": curve["kept"]})
    smooth = table[["loss", "kept"]].rolling(20, min_periods=1).mean()
    return table.assign(loss_mean=smooth["loss"], kept_mean=smooth["kept"])


def plot_training(table: pd.DataFrame, distilled: bool) -> go.Figure:
    """The gated model's loss and the share of tokens that it keeps, step by step."""
    figure = go.Figure()
    for name, colour, axis, dash in (("loss", "#D55E00", "y", "solid"), ("kept", "#0072B2", "y2", "5px,2px")):
        figure.add_scatter(
            x=table["step"], y=table[name], mode="markers", marker={"size": 3, "color": colour, "opacity": 0.35},
            yaxis=axis, hoverinfo="skip", showlegend=False,
        )  # fmt: skip
        figure.add_scatter(
            x=table["step"], y=table[f"{name}_mean"], mode="lines", line={"color": colour, "dash": dash}, yaxis=axis,
            name={"loss": "off, left axis", "kept": "kept, right axis"}[name],
            hovertemplate="step %{x}: %{y:.3f}<extra></extra>",
        )  # fmt: skip
    figure.update_layout(
        yaxis={"title": {"text": "KL to dense (nats)" if distilled else "−log p (nats)"}, "type": "log"},
        yaxis2={
            "title": {"text": "kept"},
            "overlaying": "y",
            "side": "right",
            "range": [0, 1],
            "tickvals": [0, 0.25, 0.5, 0.75, 1],
            "tickformat": ".0%",
            "showgrid": False,
        },
        height=300,
        showlegend=True,
    )
    return figure.update_xaxes(title="step")

"""Whether the calibrated channels stay the right ones while a run goes on."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sparsity_core.record import Trace
from viz.maps import height
from viz.shares import plot_shares


def drift_table(trace: Trace) -> pd.DataFrame:
    """One row per layer and new ranking of its channels: layer, read (tokens by then), stayed (of the calibrated channels)."""
    layers, steps = trace.drift.shape
    table = pd.DataFrame(
        {
            "layer": np.repeat(np.arange(layers), steps),
            "read": np.tile(trace.drift_steps, layers),
            "stayed": trace.drift.ravel(),
        }
    )
    return table.dropna()


def plot_drift(table: pd.DataFrame) -> go.Figure:
    """How many of the calibrated channels each layer still keeps as it ranks them again on what it reads."""
    z = table.pivot(index="layer", columns="read", values="stayed")
    hover = "layer %{y}, after %{x} tokens: %{z:.0%} of the calibrated channels"
    figure = plot_shares(z, "channels that stayed", hover, least=math.floor(10 * table["stayed"].min()) / 10)
    figure.update_xaxes(title="tokens read")
    return figure.update_yaxes(title="layer").update_layout(height=height(len(z)))

"""Which pipelines are really better or worse than one of them, over passages that all have read."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sparsity_core.evaluate import paired
from viz.looks import Look
from viz.text import plain


def tested_table(losses: Mapping[str, np.ndarray], against: str) -> pd.DataFrame:
    """One row per other pipeline: pipeline, n, loss, difference, low, high, verdict.

    `losses` holds each pipeline's mean −log p of the same passages; a difference below 0 is better than `against`. See
    `sparsity_core.evaluate.paired`, which says when it raises ValueError.
    """
    rows = []
    for name, own in losses.items():
        if name != against:
            found = paired(own, losses[against])
            rows.append((name, found.n, float(own.mean()), found.difference, found.low, found.high, found.verdict))
    return pd.DataFrame(rows, columns=["pipeline", "n", "loss", "difference", "low", "high", "verdict"])


def plot_tested(table: pd.DataFrame, looks: Mapping[str, Look]) -> go.Figure:
    """A mark per pipeline with the interval of its difference."""
    figure = go.Figure()
    for row in table.itertuples():
        look, name = looks[str(row.pipeline)], plain(str(row.pipeline))
        figure.add_scatter(
            x=[row.difference],
            y=[name.partition(":")[0]],
            mode="markers",
            marker={"color": look.colour, "symbol": look.symbol, "size": 10},
            error_x={
                "array": [row.high - row.difference],
                "arrayminus": [row.difference - row.low],
                "symmetric": False,
            },
            name=name,
            hovertemplate=f"%{{x:+.4f}} nats a token: {row.verdict}<extra>{name}</extra>",
        )
    figure.add_vline(0.0, line={"width": 1, "dash": "dot"})
    figure.update_xaxes(title="difference of the loss (nats a token)")
    figure.update_yaxes(autorange="reversed", type="category")
    return figure.update_layout(height=150 + 30 * len(table), showlegend=True)

"""How a policy learned."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sparsity_core.studies import History
from viz.looks import method_colour
from viz.spectra.names import BEFORE
from viz.text import plain


def history_table(history: History) -> pd.DataFrame:
    """One row per episode: episode, and the means over the layers of ks (of the policy's choice) and reward."""
    return pd.DataFrame(
        {
            "episode": np.arange(1, len(history.ks) + 1),
            "ks": np.asarray(history.ks),
            "reward": np.asarray(history.reward),
        }
    )


def plot_history(table: pd.DataFrame, *, method: str, starts: Mapping[str, float] | None = None) -> go.Figure:
    """Mean D and mean reward by episode, side by side; `starts` are the mean D of what training set out from, dotted."""
    figure = make_subplots(1, 2, horizontal_spacing=0.2)
    for column, (name, title) in enumerate((("ks", "mean D of the policy's choice"), ("reward", "mean reward")), 1):
        figure.add_scatter(
            x=table["episode"],
            y=table[name],
            mode="lines+markers",
            line={"color": method_colour(method)},
            name="policy",
            showlegend=column == 1,
            hovertemplate=f"episode %{{x}}: {title} %{{y:.4g}}<extra></extra>",
            row=1,
            col=column,
        )
        figure.update_xaxes(title="episode", row=1, col=column)
        figure.update_yaxes(title=title, row=1, col=column)
    for dash, (name, value) in zip(("2px,2px", "6px,3px", "9px,2px,1.5px,2px"), (starts or {}).items(), strict=False):
        figure.add_scatter(
            x=[1, max(1, len(table))],
            y=[value, value],
            mode="lines",
            line={"color": BEFORE, "dash": dash, "width": 1.5},
            name=f"keeping the largest {plain(name)}",
            hovertemplate=f"largest {plain(name)}: mean D %{{y:.4f}}<extra></extra>",
            row=1,
            col=1,
        )
    return figure.update_layout(height=320, showlegend=True)

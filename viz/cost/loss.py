"""How much worse than the dense model's each token's prediction is."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sparsity_core.record import Trace
from viz.chosen import mark_x
from viz.looks import Look
from viz.text import plain


def loss_table(trace: Trace) -> pd.DataFrame:
    """One row per predicted token: −log p dense and pruned, their difference, KL to dense, whether the top token agrees."""
    n = trace.n_tokens
    return pd.DataFrame(
        {
            "position": np.arange(1, n),
            "token": trace.tokens[1:],
            "nll": trace.nll[:-1],
            "dense_nll": trace.dense_nll[:-1],
            "extra_nll": trace.nll[:-1] - trace.dense_nll[:-1],
            "kl_to_dense": trace.kl_to_dense[:-1],
            "top1_agrees": trace.top1_agrees[:-1],
        }
    )


def spikes(kl: np.ndarray) -> list[int]:
    """The queries at which a KL [query] stands out: higher than both neighbours and a tenth of the highest of all, at least."""
    found = np.nan_to_num(kl)
    if not found.size or found.max() <= 0:
        return []
    before, after = np.r_[-np.inf, found[:-1]], np.r_[found[1:], -np.inf]
    return [int(at) for at in np.flatnonzero((found > before) & (found >= after) & (found >= found.max() / 10))]


def plot_loss(tables: Mapping[str, pd.DataFrame], looks: Mapping[str, Look], step: int | None = None) -> go.Figure:
    """KL of the next-token distribution to the dense model's at each token, a line for each pipeline by its name."""
    figure = go.Figure()
    for name, table in tables.items():
        look = looks[name]
        figure.add_scatter(
            x=table["position"],
            y=table["kl_to_dense"],
            mode="lines",
            line={"color": look.colour, "dash": look.dash, "width": 1.2},
            name=plain(name),
            customdata=np.stack([[plain(t) for t in table["token"]], table["extra_nll"].round(3).astype(str)], axis=1),
            hovertemplate="before token %{x} “%{customdata[0]}”<br>KL %{y:.3f} nats, −log p %{customdata[1]} above dense"
            "<extra></extra>",
        )
    mark_x(figure, step)
    figure.update_xaxes(title="token position")
    figure.update_yaxes(title="KL to dense (nats)", nticks=6)
    return figure.update_layout(height=240, showlegend=len(tables) > 1)

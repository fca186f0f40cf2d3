"""How much of the context each query still sees, by layer."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sparsity_core.record import Trace
from viz.maps import height
from viz.shares import plot_shares

_COLUMNS = 256  # of a heatmap over positions


def kept_table(trace: Trace) -> pd.DataFrame:
    """One row per layer and stretch of queries: the share of the tokens before them that they still see, mean over heads."""
    n = trace.n_tokens
    edges = np.unique(np.linspace(1, n, min(_COLUMNS, max(1, n - 1)) + 1).astype(int))
    rows = []
    for layer in range(trace.n_layers):
        # a key k is seen by the queries k … evicted_at − 1: differences, summed up
        change = np.zeros(n + 1)
        change[:n] += trace.n_kv_heads
        np.subtract.at(change, trace.evicted_at[layer].clip(max=n).ravel(), 1.0)
        seen = change[:n].cumsum() / trace.n_kv_heads - 1.0  # not its own
        share = seen[1:] / np.arange(1, n)
        for first, end in itertools.pairwise(edges):
            rows.append((layer, int(first), int(end) - 1, float(share[first - 1 : end - 1].mean())))
    return pd.DataFrame(rows, columns=["layer", "first", "last", "kept"])


def plot_kept(table: pd.DataFrame) -> go.Figure:
    """Kept context by depth and by position of the query."""
    z = table.pivot(index="layer", columns="first", values="kept")
    hover = "layer %{y}, query %{x}: sees %{z:.0%} of what is before it"
    figure = plot_shares(z, "context kept", hover).update_xaxes(title="position of the query")
    return figure.update_yaxes(title="layer").update_layout(height=height(len(z)))

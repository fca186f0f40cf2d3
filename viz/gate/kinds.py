"""What kinds of tokens are dropped, by layer."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sparsity_core.record import Trace
from viz.shares import plot_shares
from viz.text import plain


def kinds_table(trace: Trace) -> pd.DataFrame:
    """One row per layer and kind of token: the share of its tokens dropped by the end, mean over heads, and their count."""
    kinds = np.asarray(trace.classes)
    gone = (trace.evicted_at < trace.n_tokens).mean(axis=1)  # [L, T]
    return pd.DataFrame(
        [
            {
                "layer": layer,
                "kind": kind,
                "tokens": int((kinds == kind).sum()),
                "dropped": float(gone[layer, kinds == kind].mean()),
            }
            for layer in range(trace.n_layers)
            for kind in sorted(set(trace.classes))
        ]
    )


def plot_kinds(table: pd.DataFrame) -> go.Figure:
    """What kinds of tokens go, by layer."""
    counts = table.groupby("kind")["tokens"].first()
    z = table.pivot(index="kind", columns="layer", values="dropped").rename(
        index=lambda kind: f"{plain(kind)} ({counts[kind]})"
    )
    figure = plot_shares(z, "dropped", "layer %{x}, %{y} tokens: %{z:.0%} dropped").update_xaxes(title="layer")
    return figure.update_layout(height=140 + 34 * len(z))

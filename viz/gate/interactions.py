"""What a gate thinks of each pair of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sparsity_core.studies import GateLook
from viz.chosen import mark_x, mark_y
from viz.text import plain

_FAR = 4.0  # gate logits beyond are drawn as this


def interaction_table(look: GateLook, tokens: Sequence[str]) -> pd.DataFrame:
    """One row per pair of tokens (query after key) of the look: query, key, their texts, x, and whether it drops."""
    n = look.x.shape[0]
    query, key = np.tril_indices(n, -1)
    x = look.x[query, key]
    texts = np.asarray(tokens, dtype=object)
    return pd.DataFrame(
        {
            "query": query + look.start,
            "key": key + look.start,
            "query_token": texts[query + look.start],
            "key_token": texts[key + look.start],
            "x": x,
            "drops": x <= 0,
        }
    )


def plot_interactions(look: GateLook, tokens: Sequence[str], step: int, token: int) -> go.Figure:
    """x of each pair as a heatmap, the first query that drops each key marked; lines at the step and the chosen token."""
    n, start = look.x.shape[0], look.start
    x = np.where(np.tri(n, n, -1, dtype=bool), look.x, np.nan)
    names = [plain(t) for t in tokens[start : start + n]]
    figure = go.Figure(
        go.Heatmap(
            z=np.clip(x, -_FAR, _FAR),
            x=np.arange(start, start + n),
            y=np.arange(start, start + n),
            colorscale="RdBu",
            zmin=-_FAR,
            zmax=_FAR,
            customdata=x,
            colorbar={"title": {"text": "x: above 0 keeps"}},
            hovertemplate="query %{y}, key %{x}<br>x = %{customdata:.2f}<extra></extra>",
        )
    )
    drops = np.where(np.isnan(x), False, x <= 0)
    gone = np.flatnonzero(drops.any(0))
    first = drops.argmax(0)[gone]
    figure.add_scatter(
        x=gone + start,
        y=first + start,
        mode="markers",
        marker={"symbol": "x-thin", "size": 4, "line": {"width": 1, "color": "#1F2430"}, "color": "#1F2430"},
        customdata=[[names[k], names[q]] for k, q in zip(gone, first, strict=True)],
        hovertemplate="“%{customdata[1]}” (%{y}) drops “%{customdata[0]}” (%{x})<extra></extra>",
        name="drops",
    )
    mark_y(figure, step if start <= step < start + n else None)
    mark_x(figure, token if start <= token < start + n else None)
    figure.update_xaxes(title="key: the token that may go", showgrid=False, constrain="domain")
    figure.update_yaxes(title="query: the token that decides", showgrid=False, autorange="reversed")
    return figure.update_layout(height=480, showlegend=False)

"""One decode step: which keys it reads, and which it should have read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sparsity_core.studies import Read
from viz.looks import NEUTRAL
from viz.text import plain

_LEAST = 1e-6  # attention below is drawn there, so that every step has the same axes

_FATES = {
    "read, rightly": ("#009E73", "circle"),
    "read, one of the exact top keys was not": ("#E69F00", "diamond"),
    "missed": ("#D55E00", "x"),
    "left unread": (NEUTRAL, "circle-open"),
}


def read_table(
    read: Read, tokens: Sequence[str], head: int, step: int, share: float, dropped: np.ndarray
) -> pd.DataFrame:
    """One row per key that the query nearest to `step` sees: position, token, exact, read, ideal, fate, dropped.

    `dropped` bool [T] says which keys an eviction method has lost by then.
    """
    i = int(np.abs(read.queries - step).argmin())
    query = int(read.queries[i])
    exact, rank = read.exact[head, i, : query + 1], read.rank[head, i, : query + 1]
    visible = rank < read.rank.shape[2]
    n_read = int(np.ceil(share * visible.sum()))
    order = np.argsort(-np.where(visible, exact, -1), kind="stable")
    ideal = np.zeros(len(exact), bool)
    ideal[order[:n_read]] = True
    chosen = visible & (rank < n_read)
    fate = np.select([chosen & ideal, chosen, ideal], list(_FATES)[:3], list(_FATES)[3])
    table = pd.DataFrame(
        {"query": query, "position": np.arange(query + 1), "token": list(tokens[: query + 1]), "exact": exact,
         "read": chosen, "ideal": ideal, "fate": fate, "dropped": dropped[: query + 1]}
    )  # fmt: skip
    return table[visible]


def plot_read(table: pd.DataFrame) -> go.Figure:
    """The exact attention of each key, marked by whether the labels chose it and whether it should have been."""
    figure = go.Figure()
    for fate, (colour, symbol) in _FATES.items():
        own = table[table["fate"] == fate]
        figure.add_scatter(
            x=own["position"],
            y=np.maximum(own["exact"], _LEAST),
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 7},
            name=fate,
            text=[plain(t) for t in own["token"]],
            hovertemplate="token %{x} “%{text}”<br>exact attention %{y:.2%}" + f"<extra>{fate}</extra>",
        )
    lost = table[table["dropped"]]
    if len(lost):
        figure.add_scatter(
            x=lost["position"],
            y=np.maximum(lost["exact"], _LEAST),
            mode="markers",
            marker={"color": NEUTRAL, "symbol": "square-open", "size": 10, "opacity": 0.6},
            name="dropped by the eviction method",
            hoverinfo="skip",
        )
    figure.update_xaxes(title="token position")
    figure.update_yaxes(
        title="exact attention, mean of the query heads", type="log", exponentformat="power", range=[-6.1, 0.1]
    )
    return figure.update_layout(height=380, showlegend=True)

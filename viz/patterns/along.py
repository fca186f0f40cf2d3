"""How much attention each key gets, and whether the query that is read sees it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sparsity_core.record import Trace
from sparsity_core.studies import AttentionLook
from viz.chosen import mark_x
from viz.looks import BLUE, NEUTRAL
from viz.patterns.pattern import of_head
from viz.patterns.segments import reads_at
from viz.text import plain


def along_table(trace: Trace, look: AttentionLook, layer: int, head: int | str, step: int) -> pd.DataFrame:
    """One row per token of the prompt up to `step`: position, token, importance (the mean dense attention that it gets from the
    queries that can see it), sees (the share of the KV heads whose query at `step` sees it)."""
    step = min(step, trace.n_at_once - 1)
    position = np.arange(step + 1)
    return pd.DataFrame(
        {
            "position": position,
            "token": trace.tokens[: step + 1],
            "importance": of_head(look.importance, trace.n_kv_heads, head)[: step + 1],
            "sees": reads_at(trace, layer, head, step),
        }
    )


def plot_along(table: pd.DataFrame, token: int | None = None) -> go.Figure:
    """Importance along the text: filled marks are seen, open ones are not."""
    figure = go.Figure()
    seen = table["sees"] >= 0.5
    for name, rows, marker in (
        (
            "not seen",
            table[~seen],
            {
                "symbol": "circle-open",
                "size": 5,
                "color": NEUTRAL,
                "line": {"width": 1},
            },
        ),
        (
            "seen by the query",
            table[seen],
            {"symbol": "circle", "size": 5, "color": BLUE},
        ),
    ):
        figure.add_scatter(
            x=rows["position"],
            y=rows["importance"],
            mode="markers",
            marker=marker,
            name=f"{name} ({len(rows):,})",
            customdata=[plain(text) for text in rows["token"]],
            hovertemplate="%{x} “%{customdata}”: %{y:.2%}<extra>" + name + "</extra>",
        )
    mark_x(figure, token)
    figure.update_xaxes(title="token position", range=[-0.5, len(table) - 0.5])
    figure.update_yaxes(title="mean attention it gets", type="log", exponentformat="power")
    return figure.update_layout(height=280, showlegend=True)

"""How close the kept keys are to the ideal ones, by layer."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go

from sparsity_core.record import Trace
from viz.chosen import mark_x
from viz.cost.names import method_of
from viz.looks import Look
from viz.text import plain

MEASURES = {
    "ideal_cosine": "cosine with the ideal mask",
    "ideal_recall": "share of the ideal keys that is kept",
    "retained": "dense attention mass retained",
}


def similarity_table(traces: Mapping[str, Trace], head: int | str = "mean") -> pd.DataFrame:
    """One row per pipeline and layer: cosine and recall against the ideal mask, mass retained, and the ideal's own mass.

    Means over the queries at which something had been dropped, over all where nothing ever was. `head` is a KV head, or
    "mean" over them.
    """
    rows = []
    for name, trace in traces.items():
        if not trace.compared:
            continue
        first = int(trace.evicted_at.min()) % trace.n_tokens  # 0 where nothing was dropped
        late = trace.probe_steps >= first  # never empty: the last query is a probe
        heads = slice(None) if head in ("mean", "first", "last") else slice(int(head), int(head) + 1)
        group = trace.n_heads // trace.n_kv_heads
        query_heads = slice(None) if heads == slice(None) else slice(int(head) * group, (int(head) + 1) * group)
        for layer in range(trace.n_layers):
            values = (
                float(trace.ideal_cosine[layer, heads][:, late].mean()),
                float(trace.ideal_recall[layer, heads][:, late].mean()),
                float(1 - trace.regret[layer, query_heads, first:].mean()),
                float(trace.ideal_mass[layer, heads][:, late].mean()),
            )
            rows.append((name, method_of(trace), layer, *values))
    columns = ["pipeline", "method", "layer", "ideal_cosine", "ideal_recall", "retained", "ideal_retained"]
    return pd.DataFrame(rows, columns=columns)


def plot_similarity(
    table: pd.DataFrame, looks: Mapping[str, Look], measure: str = "ideal_cosine", layer: int | None = None
) -> go.Figure:
    """A line per pipeline over the layers; for the mass retained also the ideal's, which no method of its size can pass."""
    figure = go.Figure()
    series = list(table.groupby("pipeline", sort=False))
    for name, rows in series:
        look = looks[str(name)]
        figure.add_scatter(
            x=rows["layer"],
            y=rows[measure],
            mode="lines+markers",
            line={"color": look.colour, "dash": look.dash},
            marker={"symbol": look.symbol},
            name=plain(str(name)),
            hovertemplate="layer %{x}: %{y:.3f}<extra></extra>",
        )
        if measure == "retained":
            figure.add_scatter(
                x=rows["layer"],
                y=rows["ideal_retained"],
                mode="lines",
                line={"color": look.colour, "dash": "dot", "width": 1},
                name="the ideal set of as many keys",
                legendgroup="ideal",
                showlegend=name == series[0][0],
                hovertemplate=f"layer %{{x}}: %{{y:.3f}}<extra>ideal, {plain(str(name))}</extra>",
            )
    mark_x(figure, layer)
    figure.update_xaxes(title="layer")
    figure.update_yaxes(title=MEASURES[measure])
    return figure.update_layout(height=340, showlegend=True)

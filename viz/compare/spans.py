"""Who loses what: how much of each named span every pipeline keeps, and how far its prediction is from the dense model's."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sparsity_core.record import Trace, spans_of
from viz.looks import Look
from viz.text import plain

SPAN_MEASURES = {"kept": "share kept of the span", "kl": "KL to dense of the span's tokens, nats"}


def spans_table(traces: Mapping[str, Trace], own: str = "", step: int | None = None) -> pd.DataFrame:
    """One row per pipeline and span: pipeline, span, tokens, kept, kl.

    `kept` is the share of the span's keys, over all layers and KV heads, that the query at `step` (default: the last) still
    holds of those that came before it; `kl` the mean over the predictions of the span's tokens up to there, NaN where none
    was compared. Raises ValueError as `spans_of` does.
    """
    rows = []
    for name, trace in traces.items():
        last = trace.n_tokens - 1 if step is None else min(step, trace.n_tokens - 1)
        held = (trace.evicted_at > last)[:, :, : last + 1].mean((0, 1))
        for span, tokens in spans_of(trace.texts, own, trace.n_prompt).items():
            at = np.flatnonzero(tokens[: last + 1])
            kl = trace.kl_to_dense[at[at > 0] - 1] if trace.compared else np.empty(0)
            known = kl[~np.isnan(kl)]
            mean = float(known.mean()) if len(known) else np.nan
            kept = float(held[at].mean()) if len(at) else np.nan
            rows.append({"pipeline": name, "span": span, "tokens": len(at), "kept": kept, "kl": mean})
    return pd.DataFrame(rows)


def plot_spans(table: pd.DataFrame, looks: Mapping[str, Look], measure: str) -> go.Figure:
    """A row per span, a mark per pipeline."""
    figure = go.Figure()
    sizes = table.groupby("span", sort=False)["tokens"].max()
    names = {span: plain(f"{span} ({tokens})") for span, tokens in sizes.items()}
    for name, rows in table.groupby("pipeline", sort=False):
        look = looks[str(name)]
        figure.add_scatter(
            x=rows[measure],
            y=[names[span] for span in rows["span"]],
            mode="markers",
            marker={"color": look.colour, "symbol": look.symbol, "size": 11},
            name=plain(str(name)),
            hovertemplate="%{y}: %{x:.1%}<extra></extra>"
            if measure == "kept"
            else "%{y}: %{x:.3f} nats<extra></extra>",
        )
    figure.update_xaxes(title=SPAN_MEASURES[measure], rangemode="tozero")
    if measure == "kept":
        figure.update_xaxes(tickformat=".0%", range=[-0.03, 1.03])
    figure.update_yaxes(title="span (tokens)", autorange="reversed", showgrid=True)
    return figure.update_layout(height=170 + 34 * len(names), showlegend=True)

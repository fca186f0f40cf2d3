"""One knob over its range: what each value costs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sparsity_core.record import Trace
from viz.looks import NEUTRAL, method_colour

COSTS = {
    "perplexity": "perplexity ÷ dense",
    "regret": "regret (attention on evicted keys)",
    "recall": "share of the ideal keys kept",
    "cosine": "cosine with the ideal mask",
}


def sweep_table(traces: Mapping[float, Trace]) -> pd.DataFrame:
    """One row per value of the knob and layer: regret, recall, cosine; perplexity relative to dense is the run's."""
    rows = []
    for value, trace in sorted(traces.items()):
        late = trace.probe_steps >= int(trace.evicted_at.min()) % trace.n_tokens  # all where nothing was dropped
        ratio = float(np.exp(np.nanmean(trace.nll) - np.nanmean(trace.dense_nll)))
        for layer in range(trace.n_layers):
            rows.append(
                {
                    "value": value,
                    "layer": layer,
                    "perplexity": ratio,
                    "regret": float(trace.regret[layer].mean()),
                    "recall": float(trace.ideal_recall[layer][:, late].mean()),
                    "cosine": float(trace.ideal_cosine[layer][:, late].mean()),
                }
            )
    return pd.DataFrame(rows)


def plot_sweep(table: pd.DataFrame, cost: str, *, knob: str, method: str, layer: int | None = None) -> go.Figure:
    """The mean over layers, the band of the middle half of the layers, and the chosen layer's own line."""
    grouped = table.groupby("value")[cost]
    mean, low, high = grouped.mean(), grouped.quantile(0.25), grouped.quantile(0.75)
    colour = method_colour(method)
    figure = go.Figure()
    if cost != "perplexity":
        figure.add_scatter(
            x=[*mean.index, *mean.index[::-1]],
            y=[*high, *low[::-1]],
            fill="toself",
            mode="lines",
            line={"width": 0, "color": colour},
            opacity=0.25,
            name="middle half of the layers",
            hoverinfo="skip",
        )
    figure.add_scatter(
        x=mean.index,
        y=mean,
        mode="lines+markers",
        line={"color": colour},
        name="mean of the layers" if cost != "perplexity" else "whole model",
        hovertemplate=f"{knob} %{{x}}: %{{y:.4g}}<extra></extra>",
    )
    if layer is not None and cost != "perplexity":
        own = table[table["layer"] == layer]
        figure.add_scatter(
            x=own["value"],
            y=own[cost],
            mode="lines+markers",
            line={"dash": "dash", "color": NEUTRAL},
            marker={"symbol": "diamond"},
            name=f"layer {layer}",
            hovertemplate=f"{knob} %{{x}}: %{{y:.4g}}<extra>layer {layer}</extra>",
        )
    best = mean.idxmin() if cost in ("perplexity", "regret") else mean.idxmax()
    height = float(
        np.log10(mean[best]) if cost == "perplexity" else mean[best]
    )  # a log axis is annotated in powers of 10
    figure.add_annotation(x=best, y=height, text=f"best: {best:g}", showarrow=True, arrowhead=2, ay=-30, ax=0)
    figure.update_xaxes(title=knob)
    figure.update_yaxes(title=COSTS[cost], type="log" if cost == "perplexity" else "linear")
    return figure.update_layout(height=340, showlegend=True)

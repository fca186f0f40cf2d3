"""The KL divergence of every pipeline along the text, a row for each."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sparsity_core.record import Trace
from viz.chosen import mark_x
from viz.looks import SEQUENTIAL
from viz.maps import FIRST_AXIS
from viz.text import plain

_LEAST, _MOST = 1e-4, 10.0  # nats, between which the colour tells values apart
_TICKS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)


def kl_table(traces: Mapping[str, Trace], window: tuple[int, int] | None = None) -> pd.DataFrame:
    """One row per pipeline compared with dense and query within `window`: pipeline, position, token, kl, top1_agrees.

    `kl` is that of the prediction made after reading the token.
    """
    tables = []
    for name, trace in traces.items():
        if trace.compared:
            start, end = (0, trace.n_tokens) if window is None else (window[0], min(window[1], trace.n_tokens))
            tables.append(
                pd.DataFrame(
                    {
                        "pipeline": name,
                        "position": np.arange(start, end),
                        "token": trace.tokens[start:end],
                        "kl": trace.kl_to_dense[start:end],
                        "top1_agrees": trace.top1_agrees[start:end],
                    }
                )
            )
    columns = ["pipeline", "position", "token", "kl", "top1_agrees"]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)


def plot_kl(table: pd.DataFrame, step: int | None = None) -> go.Figure:
    """A row per pipeline, a column per token; the colour is the KL on a logarithmic scale."""
    names, positions = list(table["pipeline"].unique()), np.unique(table["position"])
    wide = table.pivot(index="pipeline", columns="position", values="kl").loc[names]
    tokens = table.pivot(index="pipeline", columns="position", values="token").loc[names].fillna("")
    letters = [str(name).partition(":")[0] for name in names]
    cells = go.Heatmap(
        z=np.log10(wide.clip(_LEAST, _MOST)).to_numpy(np.float32),
        x=positions,
        y=[plain(letter) for letter in letters],
        customdata=np.stack(
            [
                tokens.map(plain).to_numpy(object),
                wide.map("{:.3g}".format).to_numpy(object),
            ],
            axis=-1,
        ),
        zmin=np.log10(_LEAST),
        zmax=np.log10(_MOST),
        colorscale=SEQUENTIAL,
        colorbar={
            "title": {"text": "KL (nats)"},
            "tickvals": np.log10(_TICKS).tolist(),
            "ticktext": [f"{tick:g}" for tick in _TICKS],
        },
        hovertemplate="%{y}, after token %{x} “%{customdata[0]}”: KL %{customdata[1]} nats<extra></extra>",
    )
    figure = go.Figure([FIRST_AXIS, cells])
    mark_x(figure, step)
    figure.update_xaxes(title="token position")
    figure.update_yaxes(autorange="reversed", showgrid=False, type="category")
    return figure.update_layout(height=150 + 28 * len(names), showlegend=False)

"""Which neurons of a layer are cut."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from viz.looks import STATE_STYLE
from viz.text import plain


def neuron_table(importance: np.ndarray, row_norm: np.ndarray, leverage: np.ndarray, kept: np.ndarray) -> pd.DataFrame:
    """One row per neuron of a layer: neuron, importance (nan where the method ranks none), row_norm, leverage, kept."""
    return pd.DataFrame(
        {
            "neuron": np.arange(len(kept)),
            "importance": importance if len(importance) else np.full(len(kept), np.nan),
            "row_norm": row_norm,
            "leverage": leverage,
            "kept": kept,
        }
    )


def plot_neurons(table: pd.DataFrame, *, first: str) -> go.Figure:
    """Importance over row norm and over leverage; kept and cut neurons differ by symbol and colour.

    Where the method ranks no neurons, leverage over row norm. `first` is the matrix whose rows are measured.
    """
    axes = {"row_norm": f"row norm ‖w‖ in {plain(first)}", "leverage": f"leverage score in {plain(first)}"}
    ranked = bool(table["importance"].notna().any())
    panels = list(axes) if ranked else ["row_norm"]
    up = "importance" if ranked else "leverage"
    figure = make_subplots(1, len(panels), shared_yaxes=True, horizontal_spacing=0.04)
    for state, symbol, colour, size in (
        ("kept", "circle-open", STATE_STYLE["kept"].dark, 5),
        ("cut", "x-thin", STATE_STYLE["dropped"].dark, 6),
    ):
        own = table[table["kept"] == (state == "kept")]
        for column, axis in enumerate(panels, start=1):
            figure.add_scatter(
                x=own[axis],
                y=own[up],
                mode="markers",
                marker={"symbol": symbol, "size": size, "color": colour, "line": {"width": 1.3, "color": colour}},
                customdata=own["neuron"],
                name=f"{state} ({len(own):,})",
                legendgroup=state,
                showlegend=column == 1,
                hovertemplate="neuron %{customdata}: row of gate and up, column of down<br>"
                f"{up} %{{y:.4g}}, {axes[axis].split(' in ')[0]} %{{x:.4g}}<extra>{state}</extra>",
                row=1,
                col=column,
            )
            figure.update_xaxes(title=axes[axis], row=1, col=column)
    spread = table.loc[table[up] > 0, up]
    wide = len(spread) == int(table[up].notna().sum()) and float(spread.max()) > 30 * float(spread.min())
    figure.update_yaxes(type="log" if wide else "linear", exponentformat="power")
    figure.update_yaxes(title=up if ranked else axes["leverage"], row=1, col=1)
    return figure.update_layout(height=360, showlegend=True)

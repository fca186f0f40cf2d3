"""Where in the model a judge's order of the keys is that of what dropping them does."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from sparsity_core.studies import ALL_LAYERS, JudgeStudy
from viz.chosen import mark_x
from viz.judges.verdicts import look_of_judge, short
from viz.text import plain


def judge_layers_table(study: JudgeStudy, judges: Sequence[str], effect: str = "kl") -> pd.DataFrame:
    """One row per judge and layer from which tokens were dropped by themselves: judge, layer, rho, low, high."""
    rho, (low, high) = study.rho(effect), study.interval(effect)
    rows = [
        (judge, int(layer), rho[j, p], low[j, p], high[j, p])
        for j, judge in enumerate(study.judges)
        for p, layer in enumerate(study.places)
        if judge in judges and layer != ALL_LAYERS
    ]
    return pd.DataFrame(rows, columns=["judge", "layer", "rho", "low", "high"]).sort_values(
        ["judge", "layer"], ignore_index=True
    )


def plot_judge_layers(table: pd.DataFrame, layer: int | None = None) -> go.Figure:
    """A line per judge over the layers."""
    figure = go.Figure()
    for judge, rows in table.groupby("judge", sort=False):
        look = look_of_judge(str(judge))
        figure.add_scatter(
            x=rows["layer"],
            y=rows["rho"],
            mode="lines+markers",
            line={"color": look.colour, "dash": look.dash},
            marker={"symbol": look.symbol},
            name=plain(short(str(judge))),
            customdata=rows[["low", "high"]],
            hovertemplate="layer %{x}: ρ = %{y:.2f} (%{customdata[0]:.2f} to %{customdata[1]:.2f})",
        )
    figure.add_hline(0.0, line={"width": 1, "dash": "dot"})
    mark_x(figure, layer)
    figure.update_xaxes(title="layer from which the tokens are dropped")
    least = float(table["rho"].min()) if len(table) else 0.0
    figure.update_yaxes(title="Spearman's ρ", range=[min(-0.05, 1.1 * least), 1.03])
    return figure.update_layout(height=340, showlegend=True)

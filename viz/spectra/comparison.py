"""Every weights method at one ratio: how far the spectra moved, and what it cost."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from sparsity_core.studies import WeightStudy
from viz.looks import method_colour, method_symbol
from viz.spectra.names import BEFORE, method_name
from viz.text import plain


def comparison_table(studies: Sequence[WeightStudy], matrix: str) -> pd.DataFrame:
    """One row per study: method, spelled, ratio, mean D of the matrix over the layers, perplexity, its rise, true cut."""
    rows = [
        {
            "method": method_name(study.method),
            "spelled": study.method,
            "ratio": study.ratio,
            "mean_ks": float(study.measure("ks")[:, study.matrices.index(matrix)].mean()),
            "perplexity": study.perplexity,
            "perplexity_rise": study.perplexity - study.dense_perplexity,
            "cut_of_model": study.true_cut,
        }
        for study in studies
    ]
    return pd.DataFrame(rows)


def plot_comparison(table: pd.DataFrame, matrix: str, chosen: str | None = None) -> go.Figure:
    """Mean D against the rise in perplexity, a mark per method; several seeds of one are a mean with its extremes.

    `chosen` is the spelling of the study that a ring marks.
    """
    figure = go.Figure()
    rises = table["perplexity_rise"]
    for method, rows in table.groupby("method", sort=True):
        colour = method_colour(str(method))
        x, y = float(rows["mean_ks"].mean()), float(rows["perplexity_rise"].mean())
        many = len(rows) > 1
        name = plain(str(method)) + (f" ({len(rows)} seeds)" if many else "")
        figure.add_scatter(
            x=[x],
            y=[y],
            mode="markers",
            marker={"symbol": method_symbol(str(method)), "size": 12, "color": colour},
            error_x=spread_visible(rows["mean_ks"], x, colour) if many else None,
            error_y=spread_visible(rows["perplexity_rise"], y, colour) if many else None,
            name=name,
            hovertemplate=f"{plain(str(rows['spelled'].iloc[0])) if not many else name}<br>mean D %{{x:.4f}}"
            "<br>perplexity +%{y:,.4g}<extra></extra>",
        )
    own = table[table["spelled"] == chosen]
    if len(own):
        figure.add_scatter(
            x=own["mean_ks"],
            y=own["perplexity_rise"],
            mode="markers",
            marker={"symbol": "circle-open", "size": 24, "color": BEFORE, "line": {"width": 2}},
            name="chosen",
            hoverinfo="skip",
        )
    log = bool((rises > 0).all()) and float(rises.max()) > 10 * float(rises.min())
    figure.update_xaxes(title=f"mean D of {matrix} over the layers", rangemode="tozero")
    figure.update_yaxes(title="rise in perplexity", type="log" if log else "linear", exponentformat="power")
    if log:
        figure.update_yaxes(dtick=1, minor={"ticks": "outside", "ticklen": 2})
    return figure.update_layout(height=420, showlegend=True)


def spread_visible(values: pd.Series, mean: float, colour: str) -> dict[str, object]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [float(values.max()) - mean],
        "arrayminus": [mean - float(values.min())],
        "color": colour,
        "thickness": 1.5,
        "width": 4,
    }

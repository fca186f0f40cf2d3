"""Every weights method at one ratio: how far the spectra moved, and what it cost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sparsity_core.studies import WeightStudy
from viz.chosen import CHOSEN
from viz.labels import label, place_labels
from viz.looks import distinct_looks
from viz.spectra.names import BEFORE, method_name
from viz.text import plain

_WIDTH, _TEXT = 700, 13  # px, of a page; a file places its labels again at its own size


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
    """Mean D against the rise in perplexity, a named mark per method; several seeds of one are a mean with its extremes.

    `chosen` is the spelling of the study that a ring marks.
    """
    figure = go.Figure()
    rises = table["perplexity_rise"]
    log = bool((rises > 0).all()) and float(rises.max()) > 10 * float(rises.min())
    groups = list(table.groupby("method", sort=True))
    for (method, rows), look in zip(groups, distinct_looks([str(name) for name, _ in groups]), strict=True):
        x, y, many = float(rows["mean_ks"].mean()), float(rows["perplexity_rise"].mean()), len(rows) > 1
        name = plain(str(method)) + (f" ({len(rows)} seeds)" if many else "")
        figure.add_scatter(
            x=[x],
            y=[y],
            mode="markers",
            marker={"symbol": look.symbol, "size": 9, "color": look.colour, "opacity": 0.85},
            error_x=_extremes(rows["mean_ks"], x, look.colour) if many else None,
            error_y=_extremes(rows["perplexity_rise"], y, look.colour) if many else None,
            name=name,
            hovertemplate=f"{plain(str(rows['spelled'].iloc[0])) if not many else name}<br>mean D %{{x:.4f}}"
            "<br>perplexity +%{y:,.4g}<extra></extra>",
        )
        figure.add_annotation(label(x, float(np.log10(y)) if log else y, name))
    own = table[table["spelled"] == chosen]
    if len(own):
        figure.add_scatter(
            x=own["mean_ks"],
            y=own["perplexity_rise"],
            mode="markers",
            marker={"symbol": "circle-open", "size": 22, "color": BEFORE, "line": {"width": 2}},
            name="chosen",
            meta=CHOSEN,
            hoverinfo="skip",
        )
    _set_axes(figure, table, matrix, log)
    return place_labels(figure.update_layout(height=440, margin={"t": 16}, showlegend=False), _WIDTH, 440, _TEXT)


def _set_axes(figure: go.Figure, table: pd.DataFrame, matrix: str, log: bool) -> None:
    """Ranges with room around the marks: labels are placed within them."""
    rises = np.log10(table["perplexity_rise"]) if log else table["perplexity_rise"]
    low, high, most = float(rises.min()), float(rises.max()), float(table["mean_ks"].max())
    room = 0.08 * (high - low) or 1.0
    figure.update_xaxes(title=f"mean D of {plain(matrix)} over the layers", range=[-0.05 * most, 1.12 * most or 1.0])
    figure.update_yaxes(
        title="rise in perplexity",
        type="log" if log else "linear",
        range=[low - room, high + room],
        exponentformat="power",
    )
    if log:
        figure.update_yaxes(dtick=1, minor={"ticks": "outside", "ticklen": 2})


def tell_cost(table: pd.DataFrame) -> str:
    """Why the cut that moves the spectrum least may cost most, in a sentence with this table's numbers; "" without a case."""
    cuts = table[(table["mean_ks"] > 0) & ~table["method"].str.startswith("random")]
    chance = table.loc[table["method"].str.startswith("random"), "perplexity_rise"]
    if len(cuts) < 2 or chance.empty:
        return ""
    least, cheapest = cuts.loc[cuts["mean_ks"].idxmin()], cuts.loc[cuts["perplexity_rise"].idxmin()]
    if least["perplexity_rise"] <= chance.max() or cheapest["method"] == least["method"]:
        return ""
    chances = f"+{chance.min():,.4g} to +{chance.max():,.4g}"
    return (
        f"{least['method']} moves the spectrum least (mean D {least['mean_ks']:.3f}) and costs more than a random cut "
        f"(+{least['perplexity_rise']:,.4g} against {chances}): D sees the weights alone, not how strongly a text's "
        f"activations use what is cut. {cheapest['method']} moves it more (mean D {cheapest['mean_ks']:.3f}) and costs least "
        f"(+{cheapest['perplexity_rise']:,.4g})."
    )


def _extremes(values: pd.Series, mean: float, colour: str) -> dict[str, object]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [float(values.max()) - mean],
        "arrayminus": [mean - float(values.min())],
        "color": colour,
        "thickness": 1.5,
        "width": 4,
    }

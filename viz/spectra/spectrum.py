"""Singular values of one matrix before and after a cut."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from viz.looks import method_colour
from viz.spectra.names import BEFORE

_BRACKET = "#CC79A7"


def spectrum_table(before: np.ndarray, after: np.ndarray) -> pd.DataFrame:
    """One row per singular value: state (before, after), rank, sigma, above (share of values larger), at_most (share ≤)."""
    frames = []
    for state, values in (("before", before), ("after", after)):
        ordered = np.sort(values)[::-1]
        ascending, n = ordered[::-1], len(ordered)
        at_most = np.searchsorted(ascending, ordered, side="right") / n
        frames.append(
            pd.DataFrame(
                {
                    "state": state,
                    "rank": np.arange(1, n + 1),
                    "sigma": ordered,
                    "above": 1.0 - at_most,
                    "at_most": at_most,
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def risen(before: np.ndarray, after: np.ndarray) -> float:
    """The share of the singular values after a cut that are larger than the one of their rank before, beyond rounding."""
    whole, left = (np.sort(values)[::-1] for values in (before, after))
    return float(np.mean(left > whole[: len(left)] + 1e-4 * whole[0]))


def plot_spectrum(
    table: pd.DataFrame, measures: Mapping[str, float], *, method: str, view: str = "distribution"
) -> go.Figure:
    """Both spectra, with D as a bracket at the singular value where it is reached.

    `view`: "distribution" draws the empirical distribution functions, whose largest vertical gap is D. "linear" and "log"
    draw the values in descending order over the share of larger ones: there D lies level, at the height of that value.
    """
    figure = go.Figure()
    for state, colour, dash in (("before", BEFORE, "6px,3px"), ("after", method_colour(method), "solid")):
        own = table[table["state"] == state].sort_values("sigma")
        flat = view == "distribution"
        figure.add_scatter(
            x=own["sigma"] if flat else own["above"],
            y=own["at_most"] if flat else own["sigma"],
            mode="lines",
            line={"color": colour, "dash": dash, "shape": "hv" if flat else "vh"},
            name=state,
            customdata=own["rank"],
            hovertemplate="σ %{x:.4g}: %{y:.1%} are at most so large" + f"<extra>{state}</extra>"
            if flat
            else "σ %{y:.4g}, number %{customdata}" + f"<extra>{state}</extra>",
        )
    _add_bracket(figure, table, measures, view)
    if view == "distribution":
        figure.update_xaxes(title="singular value σ", rangemode="tozero")
        figure.update_yaxes(title="share of values ≤ σ", range=[-0.01, 1.01], tickformat=".0%")
    else:
        positive = table.loc[table["sigma"] > 0, "sigma"]
        figure.update_xaxes(title="share of values above σ", range=[-0.01, 1.01], tickformat=".0%")
        figure.update_yaxes(title="singular value σ", type="log" if view == "log" else "linear", exponentformat="power")
        if view == "log" and len(positive):
            low = max(float(positive.min()), 1e-6 * float(positive.max()))
            figure.update_yaxes(range=[np.log10(low / 1.2), np.log10(float(positive.max()) * 1.2)], dtick="D2")
    return figure.update_layout(height=380, showlegend=True)


def _add_bracket(figure: go.Figure, table: pd.DataFrame, measures: Mapping[str, float], view: str) -> None:
    if measures["ks"] <= 0:
        return
    at = measures["ks_at"]
    # a stored spectrum is float32, and `at` is one of its values in float64
    shares = [float((own["sigma"] <= at * (1 + 1e-6)).mean()) for _, own in table.groupby("state", sort=False)]
    low, high = min(shares), max(shares)
    ends, level = ([low, high], [at, at]) if view == "distribution" else ([1 - high, 1 - low], [at, at])
    x, y = (level, ends) if view == "distribution" else (ends, level)
    figure.add_scatter(
        x=x,
        y=y,
        mode="lines+markers",
        line={"color": _BRACKET, "width": 3},
        marker={
            "symbol": "line-ew-open" if view == "distribution" else "line-ns-open",
            "size": 14,
            "color": _BRACKET,
            "line": {"width": 3, "color": _BRACKET},
        },
        name="D",
        showlegend=False,
        hovertemplate=f"D = {measures['ks']:.4f} at σ = {at:.4g}<extra></extra>",
    )
    flat = view == "distribution"
    left = not flat and ends[0] > 0.5  # right of it there is no room
    figure.add_annotation(  # where neither curve passes
        x=at if flat else ends[0 if left else 1],
        y=low if flat else (np.log10(at) if view == "log" and at > 0 else at),
        text=f"<b>D = {measures['ks']:.3f}</b> at σ = {at:.3g}",
        showarrow=False,
        xanchor="right" if left else "left",
        xshift=-14 if left else 14,
        yanchor="top" if flat or left else "bottom",
        yshift=-2 if flat or left else 4,
    )

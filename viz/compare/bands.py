"""Whether a picture of one text is typical: bands over many texts, with one text drawn over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sparsity_core.evaluate import Profile
from viz.compare.grid import panel_grid
from viz.looks import Look
from viz.text import plain

BAND_MEASURES = {
    "kl": "KL to dense along the text",
    "depth": "Share kept by depth in the text",
    "layer": "Share kept by layer",
}
_AXES = {
    "kl": ("place in the text", "KL to dense (nats)"),
    "depth": ("place in the text", "share of keys kept"),
    "layer": ("layer", "share of keys kept"),
}
_EDGES = (0.1, 0.5, 0.9)


def bands_table(
    profiles: Mapping[str, Sequence[Profile]], one: Mapping[str, Profile], measure: str = "kl"
) -> pd.DataFrame:
    """One row per pipeline and place: pipeline, at, low, median, high, one, n.

    `at` is the middle of a share of the text, or the layer. `low`, `median` and `high` are the 10 %, 50 % and 90 % quantiles
    over the n texts that have a value there, linear between them; `one` is the value of the one text, nan where there is none.
    """
    tables = []
    for name, texts in profiles.items():
        values = np.stack([_values(profile, measure) for profile in texts])
        own = _values(one[name], measure) if name in one else np.full(values.shape[1], np.nan)
        n = (~np.isnan(values)).sum(axis=0)
        edges = np.full((3, values.shape[1]), np.nan)
        edges[:, n > 0] = np.nanquantile(values[:, n > 0], _EDGES, axis=0)
        places = np.arange(values.shape[1])
        at = places if measure == "layer" else (places + 0.5) / len(places)
        low, median, high = edges
        tables.append(
            pd.DataFrame({"pipeline": name, "at": at, "low": low, "median": median, "high": high, "one": own, "n": n})
        )
    return pd.concat(tables, ignore_index=True)


def _values(profile: Profile, measure: str) -> np.ndarray:
    return {"kl": profile.kl, "depth": profile.kept_by_depth, "layer": profile.kept_by_layer}[measure]


def plot_bands(
    table: pd.DataFrame, looks: Mapping[str, Look], measure: str = "kl", one: str = "this text"
) -> go.Figure:
    """A panel per pipeline: the band and median of the texts, and one text's own line."""
    names = list(table["pipeline"].unique())
    grid, (x, y) = panel_grid(names), _AXES[measure]
    figure, rows = grid.figure, grid.rows
    for at, (name, place) in enumerate(zip(names, grid.places, strict=True)):
        for line in _lines(table[table["pipeline"] == name], looks[name], measure, one, first=not at):
            figure.add_trace(line, *place)
    grid.title_columns(x)
    figure.update_yaxes(title=y, col=1)
    figure.update_yaxes(rangemode="tozero", tickformat=None if measure == "kl" else ".0%")
    figure.update_xaxes(tickformat=None if measure == "layer" else ".0%")
    above = {"y": 1 + 26 / (210 * rows)}  # above the panels' names
    return figure.update_layout(height=150 + 210 * rows, showlegend=True, legend=above, margin={"t": 70})


def _lines(own: pd.DataFrame, look: Look, measure: str, one: str, first: bool) -> list[go.Scatter]:
    form = ".3f" if measure == "kl" else ".1%"
    edge = {"mode": "lines", "line": {"width": 0, "color": look.colour}, "hoverinfo": "skip"}
    band = go.Scatter(x=own["at"], y=own["high"], fill="tonexty", name=f"10 to 90 % of {own['n'].max()} texts", **edge)
    median = go.Scatter(
        x=own["at"],
        y=own["median"],
        mode="lines",
        line={"color": look.colour, "dash": "dash"},
        name="median",
        customdata=np.stack([own["low"], own["high"], own["n"]], axis=1),
        hovertemplate=f"median %{{y:{form}}}, 10 to 90 % of %{{customdata[2]}} texts: %{{customdata[0]:{form}}} to "
        f"%{{customdata[1]:{form}}}<extra></extra>",
    )
    mine = go.Scatter(
        x=own["at"],
        y=own["one"],
        mode="lines",
        line={"color": look.colour, "width": 2.5},
        name=plain(one),
        hovertemplate=f"{plain(one)}: %{{y:{form}}}<extra></extra>",
    )
    lines = [go.Scatter(x=own["at"], y=own["low"], showlegend=False, **edge), band, median]
    lines += [] if own["one"].isna().all() else [mine]
    return [each.update(legendgroup=each.name, showlegend=first and each.showlegend is None) for each in lines]

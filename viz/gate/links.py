"""Which token dropped which."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sparsity_core.record import Trace
from viz.chosen import CHOSEN
from viz.looks import BLUE, NEUTRAL, VERMILLION
from viz.text import plain

_MOST_NAMES = 26  # on an axis as narrow as a column of a paper


def link_table(trace: Trace, layer: int, window: tuple[int, int]) -> pd.DataFrame:
    """One row per token of the window that another token dropped: position, token, dropped_by, by_token, distance."""
    by = trace.dropped_by(layer).max(axis=0)  # a gate serves all heads; −1 in those where eviction came first
    position = np.flatnonzero(by >= 0)
    position = position[(position >= window[0]) & (position < window[1])]
    return pd.DataFrame(
        {
            "position": position,
            "token": [trace.tokens[p] for p in position],
            "dropped_by": by[position],
            "by_token": [trace.tokens[b] for b in by[position]],
            "distance": by[position] - position,
        }
    )


def plot_links(table: pd.DataFrame, window: tuple[int, int], *, selected: int | None = None) -> go.Figure:
    """An arc from each dropped token to the token that dropped it, named below; those of the selected token stand out."""
    figure = go.Figure()
    mine = table[(table["position"] == selected) | (table["dropped_by"] == selected)]
    _add_arcs(figure, table, NEUTRAL, 0.8, "dropped by")
    if len(mine):
        _add_arcs(figure, mine, VERMILLION, 2.0, f"with token {selected}", meta=CHOSEN)
    for own, other, symbol, colour, name, verb in (
        ("dropped_by", "position", "triangle-up", VERMILLION, "the token that drops", "drops"),
        ("position", "dropped_by", "x-thin", BLUE, "the token that is dropped", "is dropped by"),
    ):
        texts = {"position": table["token"], "dropped_by": table["by_token"]}
        figure.add_scatter(
            x=table[own],
            y=np.zeros(len(table)),
            mode="markers",
            marker={"symbol": symbol, "size": 6, "color": colour, "line": {"width": 1.2, "color": colour}},
            name=name,
            customdata=np.stack([table[other].astype(str), _plain(texts[own]), _plain(texts[other])], axis=1)
            if len(table)
            else None,
            hovertemplate=f"token %{{x}} “%{{customdata[1]}}” {verb} token %{{customdata[0]}} “%{{customdata[2]}}”"
            "<extra></extra>",
        )
    names = _names(table, window, selected)
    figure.update_xaxes(
        title="token and its position", range=[window[0] - 1, window[1]], showgrid=False,
        tickvals=list(names), ticktext=[f"{plain(text)} {at}" for at, text in names.items()], tickangle=-90,
    )  # fmt: skip
    inside = table.loc[table["dropped_by"] < window[1], "distance"]
    figure.update_yaxes(visible=False, range=[-0.5, 0.52 * inside.max() + 1 if len(inside) else 1])
    return figure.update_layout(height=320, showlegend=True)


def _add_arcs(
    figure: go.Figure, rows: pd.DataFrame, colour: str, width: float, name: str, meta: str | None = None
) -> None:
    x, y = _arcs(rows)
    figure.add_scatter(
        x=x,
        y=y,
        mode="lines",
        line={"color": colour, "width": width, "shape": "spline", "smoothing": 1.0},
        opacity=0.55 if width < 1 else 1.0,
        name=name,
        hoverinfo="skip",
        meta=meta,
    )


def _names(table: pd.DataFrame, window: tuple[int, int], selected: int | None) -> dict[int, str]:
    """The tokens that the axis names, by position: the selected one, then those that drop most, as many as fit."""
    texts = dict(zip(table["position"], table["token"], strict=True))
    texts |= dict(zip(table["dropped_by"], table["by_token"], strict=True))
    wanted = [selected, *table["dropped_by"].value_counts().index, *table["position"]]
    apart = max(1.0, (window[1] - window[0]) / _MOST_NAMES)
    named: list[int] = []
    for at in wanted:
        if at in texts and all(abs(at - other) >= apart for other in named):
            named.append(int(at))
    return {at: texts[at] for at in sorted(named)}


def _plain(tokens: pd.Series) -> list[str]:
    return [plain(token) for token in tokens]


def _arcs(rows: pd.DataFrame, points: int = 25) -> tuple[np.ndarray, np.ndarray]:
    """Half circles over each pair, as one line with gaps."""
    angle = np.linspace(0.0, np.pi, points)
    middle = (rows["position"].to_numpy() + rows["dropped_by"].to_numpy())[:, None] / 2.0
    radius = rows["distance"].to_numpy()[:, None] / 2.0
    gap = np.full((len(rows), 1), np.nan)
    x = np.hstack([middle + radius * np.cos(angle), gap])
    y = np.hstack([radius * np.sin(angle), gap])
    return x.ravel(), y.ravel()

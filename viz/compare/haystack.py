"""A needle at many depths of haystacks of many lengths: how unlikely each pipeline finds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sparsity_core.evaluate import NeedleFound
from viz.chosen import CHOSEN
from viz.compare.grid import panel_grid
from viz.looks import SEQUENTIAL, VERMILLION
from viz.text import plain

_COLUMNS = ["pipeline", "length", "depth", "tokens", "needle_at", "loss", "found", "written"]
_WRITTEN = 6  # lengths of a panel whose cells have room for what is in them


def haystack_table(found: Mapping[str, Sequence[NeedleFound]]) -> pd.DataFrame:
    """One row per pipeline, length and depth: pipeline, length, depth, tokens, needle_at, loss, found, written.

    `tokens` are those of the prompt, `needle_at` the one at which the needle begins, and `loss` is the answer's mean −log p a
    token, in nats.
    """
    return pd.DataFrame(
        [
            (name, n.length, n.depth, n.n_tokens, n.at, each.loss, each.found, each.written)
            for name, cells in found.items()
            for each in cells
            for n in (each.needle,)
        ],
        columns=_COLUMNS,
    )


def plot_haystack(table: pd.DataFrame, selected: tuple[int, float] | None = None) -> go.Figure:
    """A panel per pipeline, a row per depth and a column per length; one colour axis. `selected` is a (length, depth)."""
    names = list(table["pipeline"].unique())
    grid = panel_grid(names, vertical_spacing=0.12 if len(names) <= 6 else 0.08)
    figure, rows = grid.figure, grid.rows
    for name, place in zip(names, grid.places, strict=True):
        figure.add_trace(_cells(table[table["pipeline"] == name]), *place)
        if selected is not None:
            _mark(figure, table, selected, *place)
    grid.title_columns("tokens of the prompt")
    figure.update_yaxes(autorange="reversed", showgrid=False, type="category")
    figure.update_yaxes(title="depth of the needle", col=1)
    figure.update_xaxes(showgrid=False, type="category")
    bar = {"title": {"text": "loss (nats a token)"}}
    most = float(table["loss"].max())
    figure.update_layout(coloraxis={"colorscale": SEQUENTIAL, "colorbar": bar, "cmin": 0.0, "cmax": max(most, 0.1)})
    return figure.update_layout(height=110 + rows * (60 + 36 * table["depth"].nunique()), showlegend=False)


def _cells(own: pd.DataFrame) -> go.Heatmap:
    wide = {name: own.pivot(index="depth", columns="length", values=name) for name in ("loss", "found", "written")}
    told = wide["found"].map({True: "found", False: "lost"}.get).to_numpy(object)
    losses = wide["loss"].map("{:.2f}".format).to_numpy(object)
    said = wide["written"].map(lambda text: plain(" ".join(str(text).split()))).to_numpy(object)
    return go.Heatmap(
        z=wide["loss"].to_numpy(np.float32),
        x=[f"{length:,}" for length in wide["loss"].columns],
        y=[f"{depth:.0%}" for depth in wide["loss"].index],
        coloraxis="coloraxis",
        text=losses + "<br>" + told,
        texttemplate="%{text}" if len(wide["loss"].columns) <= _WRITTEN else None,
        customdata=np.stack([told, said], axis=-1),
        hovertemplate="%{x} tokens, needle at %{y}: %{z:.3f} nats a token, %{customdata[0]}<br>wrote “%{customdata[1]}”"
        "<extra></extra>",
    )


def _mark(figure: go.Figure, table: pd.DataFrame, selected: tuple[int, float], row: int, column: int) -> None:
    """A frame around the chosen cell."""
    lengths, depths = sorted(table["length"].unique()), sorted(table["depth"].unique())
    if selected[0] not in lengths or selected[1] not in depths:
        return
    x, y = lengths.index(selected[0]), depths.index(selected[1])
    frame = {"x0": x - 0.5, "x1": x + 0.5, "y0": y - 0.5, "y1": y + 0.5, "line": {"width": 3, "color": VERMILLION}}
    figure.add_shape(type="rect", name=CHOSEN, **frame, row=row, col=column)

"""What maps of layers by tokens share: their height, the marks of what is chosen, and the names of their columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from viz.chosen import CHOSEN
from viz.text import plain

FIRST_AXIS = go.Scatter(x=[None], y=[None], hoverinfo="skip", showlegend=False)  # an axis without a trace is not drawn

MARGIN = {"l": 56, "r": 96, "t": 40, "b": 52}  # px around the atlas's cells; measured by Plotly it would be drawn twice

GREY, PALE = (128, 136, 150), 0.10  # of a cell whose token is in the cache: its colour and opacity
ABOVE = {"y": 1, "yref": "paper", "yanchor": "bottom", "showarrow": False}


def height(n_layers: int) -> int:
    """Of a map of layers by tokens, in px."""
    return 150 + 10 * n_layers


def marks(selected: tuple[int, int] | None, positions: np.ndarray) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(shapes, annotations) of the chosen (layer, position) in a map of layers by tokens: the row's frame, a tip above."""
    if selected is None:
        return [], []
    layer, position = selected
    row = {"x0": positions[0] - 0.5, "x1": positions[-1] + 0.5, "y0": layer - 0.5, "y1": layer + 0.5}
    tip = {"name": CHOSEN, **ABOVE, "x": position, "xanchor": "center", "text": "▼", "borderpad": 0}
    frame = {"name": CHOSEN, "type": "rect", **row, "line": {"width": 1.5}}
    return [frame], [tip] if positions[0] <= position <= positions[-1] else []


def named_columns(positions: np.ndarray, tokens: Sequence[str]) -> dict[str, Any]:
    """A hidden axis on which `%{x}` in a hover text says position and token: 12 “the”. For maps of layers by tokens.

    Its labels hold each token once; as the text of every cell they would be most of the figure. Use it as "x2", beside
    `FIRST_AXIS`.
    """
    return {
        "overlaying": "x",
        "matches": "x",
        "tickmode": "array",
        "tickvals": positions,
        "ticktext": [f"{position} “{plain(token)}”" for position, token in zip(positions, tokens, strict=True)],
        "showticklabels": False,
        "ticks": "",
        "showline": False,
        "showgrid": False,
    }


def swatch(name: str, colour: str) -> go.Scatter:
    """A legend's entry for cells of one colour."""
    marker = {"symbol": "square", "size": 10, "color": colour, "line": {"width": 1, "color": f"rgb{GREY}"}}
    return go.Scatter(x=[None], y=[None], mode="markers", name=name, marker=marker, hoverinfo="skip")

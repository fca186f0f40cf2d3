"""A panel per pipeline, side by side, with one pair of axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from viz.text import plain

_BESIDE = 3  # panels in a row


@dataclass(frozen=True)
class Grid:
    """A figure with a panel for each name; `places` are their (row, column), from 1."""

    figure: go.Figure
    rows: int
    places: list[tuple[int, int]]

    def title_columns(self, title: str) -> None:
        """Titles the x axis of the lowest panel of each column."""
        lowest = {column: (row, column) for row, column in self.places}
        for row, column in lowest.values():
            self.figure.update_xaxes(title=title, showticklabels=True, row=row, col=column)


def panel_grid(names: Sequence[str], **spacing: Any) -> Grid:
    rows, columns = -(-len(names) // _BESIDE), min(_BESIDE, len(names))
    titles = [plain(name) for name in names]
    figure = make_subplots(
        rows, columns, shared_xaxes="all", shared_yaxes="all", subplot_titles=titles, horizontal_spacing=0.03, **spacing
    )
    return Grid(figure, rows, [(at // _BESIDE + 1, at % _BESIDE + 1) for at in range(len(names))])

"""Marks of what is chosen on a page (a frame, a tip, a line at the step): drawn on the screen, left out of files."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

CHOSEN = "chosen"  # the name of such a shape or annotation, and the `meta` of such a trace
_LINE = {"width": 1, "dash": "dot"}


def mark_x(figure: go.Figure, x: float | None) -> go.Figure:
    """A dotted line across the plot at a chosen step or layer; none for None."""
    return figure if x is None else figure.add_vline(x, line=_LINE, name=CHOSEN)


def mark_y(figure: go.Figure, y: float | None) -> go.Figure:
    return figure if y is None else figure.add_hline(y, line=_LINE, name=CHOSEN)


def without_chosen(figure: go.Figure) -> go.Figure:
    """A copy of a figure without the marks of what was chosen, and without its template, which each look brings itself."""
    layout: dict[str, Any] = figure.layout.to_plotly_json()
    layout["template"] = "none"  # a copy checks all of a template, which takes longer than all else of most figures
    for kind in ("shapes", "annotations"):
        if kind in layout:
            layout[kind] = [item for item in layout[kind] if item.get("name") != CHOSEN]
    return go.Figure([trace for trace in figure.data if trace.meta != CHOSEN], layout)

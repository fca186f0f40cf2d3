"""A figure as it is drawn for a paper: Plotly's structure without what nobody sees."""

from __future__ import annotations

import html
from collections.abc import Iterator
from typing import Any

import numpy as np
import plotly.graph_objects as go

from viz.labels import place_labels
from viz.text import printable
from viz.theme import PAPER, style

_MARGIN = {"l": 40, "r": 6, "t": 6, "b": 33}  # px around the plot, as axes with a title take in the paper look
_NOT_DRAWN = {"hovertemplate", "hovertext", "customdata", "template", "meta", "family", "hoverlabel"}


def drawn(figure: go.Figure, width: float, height: float) -> dict[str, Any]:
    """The figure in the paper look at a size in px, without traces that nobody can see, and with printable text."""
    spec = place_labels(style(figure, "paper"), width, height, PAPER.layout.font.size, _MARGIN).to_dict()
    spec["data"] = [trace for trace in spec["data"] if not _invisible(trace)]
    return printable_texts(spec)


def _invisible(trace: dict[str, Any]) -> bool:
    only_markers = trace.get("mode") == "markers"
    return trace.get("opacity") == 0 or (only_markers and trace.get("marker", {}).get("opacity") == 0)


def printable_texts(value: Any) -> Any:
    """The same structure with `printable` text: one control character makes the SVG, and so the PDF, unreadable."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {key: printable_texts(item) for key, item in value.items()}
    if isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.dtype.kind in "OU"):
        return [printable_texts(item) for item in value]
    return value


def text_of(drawing: dict[str, Any]) -> str:
    """All text that a picture of what is `drawn` shows, in any order: no hover text and no hidden tick labels."""
    return html.unescape("\n".join(_texts(drawing)))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        hidden = set(_NOT_DRAWN)
        if value.get("showticklabels") is False:
            hidden.add("ticktext")
        if "text" not in str(value.get("mode", "text")) or (
            value.get("type") == "heatmap" and "texttemplate" not in value
        ):
            hidden.add("text")
        for key, item in value.items():
            if key not in hidden:
                yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)

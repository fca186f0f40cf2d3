"""How high a file is: as the plot's shape asks, and higher by what a legend of several lines takes."""

from __future__ import annotations

import re

import plotly.graph_objects as go

from viz.labels import LABEL
from viz.theme import PX_PER_INCH, has_legend, style

USUAL = 0.62  # height over width of a figure that asks for none
_LABEL = 0.21  # inches for each mark that is named beside it
_PER_CHARACTER, _SYMBOL, _LINE = (
    0.52,
    45,
    1.6,
)  # of the text's size; px of an entry's line and its gaps; of the text's size


def natural_height(figure: go.Figure, width: float, shape: float = USUAL) -> float:
    """Inches of a file `width` inches wide, `shape` times as high and more: a legend must not eat the plot, names need room."""
    styled = style(figure, "paper")
    lines = legend_lines(styled, width * PX_PER_INCH)
    text = styled.layout.template.layout.legend.font.size
    named = sum(note.name == LABEL for note in figure.layout.annotations)
    return max(shape * width + max(0, lines - 1) * _LINE * text / PX_PER_INCH, named * _LABEL)


def legend_lines(figure: go.Figure, width: float) -> int:
    """Lines of text of the legend: all entries in one row if they fit, otherwise columns as wide as the widest."""
    if not has_legend(figure):
        return 0
    size = figure.layout.template.layout.legend.font.size
    names = [
        re.sub("<(?!br)[^>]*>", "", t.name).split("<br>") for t in figure.data if t.name and t.showlegend is not False
    ]
    if not names:
        return 0
    widths = [_SYMBOL + _PER_CHARACTER * size * max(map(len, lines)) for lines in names]
    columns = len(widths) if sum(widths) <= width else max(1, int(width // max(widths)))
    rows = [names[i : i + columns] for i in range(0, len(names), columns)]
    return sum(max(map(len, row)) for row in rows)

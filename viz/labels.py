"""Names written beside marks, without overlap, for a figure of a known size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import plotly.graph_objects as go

LABEL = "label"  # the name of an annotation that is placed here; its x and y are those of its mark
_MARGIN = {"l": 60, "r": 12, "t": 12, "b": 44}  # px around the plot, as axes with a title take on a page
_RADIUS = 8.0  # px of a mark
_PER_CHARACTER, _LINE = 0.56, 1.25  # of the text's size
_CROSSING = 4000.0  # as much as covering 40 px² of another label

_Point = tuple[float, float]


class _Box(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: _Box) -> float:
        across = min(self.right, other.right) - max(self.left, other.left)
        down = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, across) * max(0.0, down)

    def holds(self, point: _Point) -> bool:
        return self.left < point[0] < self.right and self.top < point[1] < self.bottom


class _Place(NamedTuple):
    """Where a label is anchored, px from its mark, and by which of its edges."""

    dx: float
    dy: float
    xanchor: str
    yanchor: str


def label(x: float, y: float, text: str, colour: str | None = None) -> dict[str, object]:
    """An annotation that `place_labels` puts beside the mark at x and y (powers of ten on a logarithmic axis)."""
    font = {} if colour is None else {"font": {"color": colour}}
    return {"name": LABEL, "x": x, "y": y, "text": text, "showarrow": False, **font}


def place_labels(
    figure: go.Figure, width: float, height: float, size: float, margin: Mapping[str, float] = _MARGIN
) -> go.Figure:
    """Moves every label to where it covers least, in a figure of width × height px with text of `size` px.

    Each takes the nearest place that is free of marks, of the labels before it and of their lines; one far from its mark
    gets a line to it. The axes' ranges must be set. `margin`: px around the plot.
    """
    labels = [note for note in figure.layout.annotations if note.name == LABEL]
    marks = [_mark(figure, note, width, height, margin) for note in labels]
    taken = [_around(mark) for mark in marks]
    lines: list[list[_Point]] = []
    plot = _Box(margin["l"], 0, width - margin["r"], height - margin["b"])
    crowd = [sum(abs(own - y) < 3 * size for _, y in marks) for _, own in marks]
    crowded = sorted(
        range(len(labels)), key=lambda i: (-crowd[i], -len(str(labels[i].text)))
    )  # a short name fits anywhere
    for i in crowded:
        text = len(str(labels[i].text)) * _PER_CHARACTER * size, _LINE * size
        options = [(place, _box(marks[i], text, place)) for place in _places(size)]
        others = taken[:i] + taken[i + 1 :]
        costs = [
            _cost(box, place, taken, plot) + _crossed(_line(marks[i], place), others) + _hidden(lines, box)
            for place, box in options
        ]
        place, box = options[costs.index(min(costs))]
        taken.append(box)
        lines.append(_line(marks[i], place))
        _put(labels[i], place)
    return figure


def _mark(
    figure: go.Figure, note: go.layout.Annotation, width: float, height: float, margin: Mapping[str, float]
) -> _Point:
    (left, right), (low, high) = figure.layout.xaxis.range, figure.layout.yaxis.range
    across, down = width - margin["l"] - margin["r"], height - margin["t"] - margin["b"]
    x, y = (note.x - left) / (right - left), (high - note.y) / (high - low)
    return margin["l"] + x * across, margin["t"] + y * down


def _around(mark: _Point) -> _Box:
    x, y = mark
    return _Box(x - _RADIUS, y - _RADIUS, x + _RADIUS, y + _RADIUS)


def _places(size: float) -> Iterator[_Place]:
    """Right, left, above and below, then further and further away; nearer ones first."""
    for step in range(7):
        far = _RADIUS + 1 + step * 0.7 * size
        shifts = (0.0,) if step == 0 else (0.0, -step * 0.8 * size, step * 0.8 * size)
        for shift in shifts:
            yield _Place(far, shift, "left", "middle")
            yield _Place(-far, shift, "right", "middle")
        yield _Place(0, -far, "center", "bottom")
        yield _Place(0, far, "center", "top")


def _box(mark: tuple[float, float], text: tuple[float, float], place: _Place) -> _Box:
    left = mark[0] + place.dx - text[0] * {"left": 0, "center": 0.5, "right": 1}[place.xanchor]
    top = mark[1] + place.dy - text[1] * {"top": 0, "middle": 0.5, "bottom": 1}[place.yanchor]
    return _Box(left, top, left + text[0], top + text[1])


def _cost(box: _Box, place: _Place, taken: list[_Box], plot: _Box) -> float:
    outside = (box.right - box.left) * (box.bottom - box.top) - box.overlap(plot)
    return 100 * (sum(map(box.overlap, taken)) + outside) + abs(place.dx) + abs(place.dy)


def _line(mark: _Point, place: _Place) -> list[_Point]:
    """Points of the line from a mark to its label; none where no line is drawn."""
    shares = [i / 12 for i in range(1, 12)] if _is_far(place) else []
    return [(mark[0] + place.dx * share, mark[1] + place.dy * share) for share in shares]


def _crossed(line: list[_Point], others: list[_Box]) -> float:
    """What a line costs that passes other marks, or labels."""
    return _CROSSING * sum(any(box.holds(point) for point in line) for box in others)


def _hidden(lines: list[list[_Point]], box: _Box) -> float:
    """What a label costs that lies on lines of others."""
    return _CROSSING * sum(any(box.holds(point) for point in line) for line in lines)


def _is_far(place: _Place) -> bool:
    """Whether a label stands so far from its mark that a line must lead to it."""
    return abs(place.dx) + abs(place.dy) > _RADIUS + 2


def _put(note: go.layout.Annotation, place: _Place) -> None:
    far = _is_far(place)
    note.update(xanchor=place.xanchor, yanchor=place.yanchor, showarrow=far)
    if far:
        note.update(ax=place.dx, ay=place.dy, xshift=0, yshift=0, arrowhead=0, arrowwidth=0.75, standoff=_RADIUS - 2)
    else:
        note.update(xshift=place.dx, yshift=-place.dy)

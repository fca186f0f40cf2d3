"""Names beside marks: each there once, none on another, at every size."""

from __future__ import annotations

import itertools

import plotly.graph_objects as go
import pytest

from viz.labels import _MARGIN, _box, _mark, _Place, label, place_labels


def crowd(n: int) -> go.Figure:
    """Marks of which the first four lie on nearly one spot."""
    figure = go.Figure().update_xaxes(range=[0, 1]).update_yaxes(range=[0, 1])
    for i in range(n):
        x, y = (0.3 + i / 500, 0.5 + i / 100) if i < 4 else ((i % 4) / 4, i / n)
        figure.add_annotation(label(x, y, f"method_{i}"))
    return figure


@pytest.mark.parametrize(("width", "height"), [(700, 440), (528, 327), (312, 240)])
def test_names_do_not_overlap(width: float, height: float) -> None:
    size = 10.0
    figure = place_labels(crowd(9), width, height, size)
    boxes = []
    for note in figure.layout.annotations:
        place = (
            _Place(note.ax, note.ay, note.xanchor, note.yanchor)
            if note.showarrow
            else _Place(note.xshift, -note.yshift, note.xanchor, note.yanchor)
        )
        boxes.append(
            _box(_mark(figure, note, width, height, _MARGIN), (len(note.text) * 0.56 * size, 1.25 * size), place)
        )
    assert all(a.overlap(b) == 0 for a, b in itertools.combinations(boxes, 2))


def test_no_line_to_a_name_crosses_another_name() -> None:
    figure = go.Figure().update_xaxes(range=[0, 1]).update_yaxes(range=[0, 1])
    for x, y, name in [
        (0.15, 0.1, "a_long_name"),
        (0.16, 0.11, "flap"),
        (0.15, 0.2, "over_both"),
        (0.0, 0.2, "at_the_edge"),
    ]:
        figure.add_annotation(label(x, y, name))
    place_labels(figure, 312, 240, 10)
    boxes, lines = {}, {}
    for note in figure.layout.annotations:
        mark = _mark(figure, note, 312, 240, _MARGIN)
        dx, dy = (note.ax, note.ay) if note.showarrow else (note.xshift, -note.yshift)
        boxes[note.text] = _box(mark, (len(note.text) * 5.6, 12.5), _Place(dx, dy, note.xanchor, note.yanchor))
        if note.showarrow:
            lines[note.text] = [(mark[0] + dx * share / 50, mark[1] + dy * share / 50) for share in range(50)]
    crossed = [(a, b) for a, line in lines.items() for b, box in boxes.items() if a != b and any(map(box.holds, line))]
    assert lines and not crossed


def test_a_lone_mark_has_its_name_at_its_right_and_no_line() -> None:
    (note,) = place_labels(go.Figure(layout={"xaxis": {"range": [0, 1]}, "yaxis": {"range": [0, 1]}}).add_annotation(
        label(0.5, 0.5, "alone")), 500, 300, 10).layout.annotations  # fmt: skip
    assert (note.xanchor, note.showarrow) == ("left", False)
    assert note.xshift > 0


def test_a_name_that_would_leave_the_plot_is_put_on_the_other_side() -> None:
    (note,) = place_labels(go.Figure(layout={"xaxis": {"range": [0, 1]}, "yaxis": {"range": [0, 1]}}).add_annotation(
        label(1.0, 0.5, "at the edge")), 500, 300, 10).layout.annotations  # fmt: skip
    assert note.xanchor == "right"

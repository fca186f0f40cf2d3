"""Panels of a sheet share axes: one range, and its labels once."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import pytest

from viz.paper.shared import share_axes


def curve(y: list[float], title: str = "loss", x: list[float] | None = None, **axis: object) -> go.Figure:
    figure = go.Figure(go.Scatter(x=list(range(len(y))) if x is None else x, y=y, mode="lines"))
    return figure.update_xaxes(title="step").update_yaxes(title=title, **axis)


def labels(figure: go.Figure, axis: str) -> bool:
    found = figure.layout[f"{axis}axis"]
    if figure.data:
        assert (found.title.text is None) == (found.showticklabels is False), "both or neither"
    return found.showticklabels is not False


def test_a_row_shares_y_and_a_column_x() -> None:
    given = [curve([0, 10]), curve([5, 20]), curve([0, 1], x=[0, 100]), curve([2, 3])]
    a, b, c, d = share_axes(given, 2)
    assert a.layout.yaxis.range == b.layout.yaxis.range == pytest.approx((-0.5, 20.75))  # 5 % beyond each one's data
    assert c.layout.yaxis.range == d.layout.yaxis.range == pytest.approx((-0.05, 3.05))
    assert a.layout.xaxis.range == c.layout.xaxis.range == pytest.approx((-5, 105))
    assert [labels(figure, "y") for figure in (a, b, c, d)] == [True, False, True, False]
    assert [labels(figure, "x") for figure in (a, b, c, d)] == [False, False, True, True]
    assert given[1].layout.yaxis.range is None and given[1].layout.yaxis.title.text == "loss", "copies alone change"


def test_axes_of_other_titles_kinds_or_names_are_left_alone() -> None:
    names = go.Figure(go.Scatter(x=["a", "b"], y=["p", "q"])).update_yaxes(title="loss")
    several = curve([0, 1]).add_scatter(y=[1], yaxis="y2").update_layout(yaxis2={"overlaying": "y"})
    for other in (
        curve([0, 1], "KL"),
        curve([1, 10], type="log"),
        curve([0, 1], tickformat=".0%"),
        curve([0, 1], autorange="reversed"),
        curve([0, 1], tickvals=[0, 1]),
        names,
        several,
        go.Figure(),
    ):
        a, b = share_axes([curve([0, 10]), other], 2)
        assert labels(a, "y") and labels(b, "y")
        assert a.layout.yaxis.range is None


def test_logarithmic_axes_share_their_powers_of_ten() -> None:
    a, b = share_axes([curve([1, 100], type="log"), curve([10, 1000, 0, np.nan], type="log")], 2)
    assert a.layout.yaxis.range == b.layout.yaxis.range == pytest.approx((-0.1, 3.1))


def test_cells_share_an_axis_only_where_they_have_the_same() -> None:
    def cells(top: float) -> go.Figure:
        figure = go.Figure(go.Heatmap(z=[[1.0, 2.0]]))
        return figure.update_yaxes(title="layer", range=[-0.5, top]).update_xaxes(title="token")

    a, b = share_axes([cells(29.5), cells(29.5)], 2)
    assert not labels(b, "y") and labels(b, "x") and a.layout.yaxis.range == (-0.5, 29.5)
    assert labels(share_axes([cells(29.5), cells(11.5)], 2)[1], "y")


def test_a_row_of_three_shares_with_neighbours_only() -> None:
    a, b, c = share_axes([curve([0, 1]), curve([0, 1], "KL"), curve([0, 1])], 3)
    assert all(labels(figure, "y") for figure in (a, b, c))

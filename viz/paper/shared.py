"""Axes that the panels of a sheet share: one range for a row's or a column's neighbours, and its labels once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

_PAD = 0.05  # of a range, beyond the data, as Plotly leaves beside lines


def share_axes(figures: Sequence[go.Figure], columns: int) -> list[go.Figure]:
    """Copies, row by row in so many columns, in which neighbours with the same title of an axis have it in common.

    Neighbours of a row share the axis of y, and of a column that of x. Its range holds the data of all of them, and its title
    and numbers stand once: at the left, and at the foot. Lines alone are stretched to a common range; what is drawn in cells
    shares an axis where its ranges are equal already. A figure of several plots, or with an axis of names, shares none.
    """
    copies = [go.Figure(figure) for figure in figures]
    for start in range(0, len(copies), columns):
        for run in _runs(list(range(start, min(start + columns, len(copies)))), copies, "y"):
            _join([copies[i] for i in run], "y", keeps=0)
    for column in range(columns):
        for run in _runs(list(range(column, len(copies), columns)), copies, "x"):
            _join([copies[i] for i in run], "x", keeps=-1)
    return copies


def _runs(places: list[int], figures: Sequence[go.Figure], axis: str) -> list[list[int]]:
    """The stretches of two neighbours or more that can share an axis."""
    found: list[list[int]] = []
    for place in places:
        if found and _alike(figures[found[-1][-1]], figures[place], axis):
            found[-1].append(place)
        else:
            found.append([place])
    return [run for run in found if len(run) > 1]


def _alike(one: go.Figure, other: go.Figure, axis: str) -> bool:
    ranges = [_range(figure, axis) for figure in (one, other)]
    if any(found is None for found in ranges) or _look(one, axis) != _look(other, axis) or not _look(one, axis)[0]:
        return False
    return ranges[0] == ranges[1] or all(_only_lines(figure) for figure in (one, other))


def _look(figure: go.Figure, axis: str) -> tuple[Any, ...]:
    """What two axes must have in common."""
    found = figure.layout[f"{axis}axis"]
    return found.title.text, found.type or "linear", found.tickformat, found.visible is not False


def _only_lines(figure: go.Figure) -> bool:
    return all(trace.type == "scatter" for trace in figure.data)


def _range(figure: go.Figure, axis: str) -> tuple[float, float] | None:
    """The ends of an axis, in powers of ten of a logarithmic one; None where the axis is none of numbers, or one of several."""
    layout = figure.layout.to_plotly_json()
    if any(name.startswith((f"{axis}axis", "grid")) and name != f"{axis}axis" for name in layout):
        return None
    own = figure.layout[f"{axis}axis"]
    if own.type not in (None, "linear", "log", "-") or own.autorange == "reversed" or own.tickvals is not None:
        return None
    if own.range is not None:
        return float(own.range[0]), float(own.range[1])
    values = [_numbers(trace, axis) for trace in figure.data]
    if any(found is None for found in values) or not any(found.size for found in values if found is not None):
        return None
    return _ends(np.concatenate([found for found in values if found is not None]), own.type == "log")


def _numbers(trace: Any, axis: str) -> np.ndarray | None:
    """What a trace has along an axis; None where that is not numbers."""
    given = trace[axis]
    if given is None:
        return None
    try:
        found = np.asarray([np.nan if value is None else value for value in given], np.float64)
    except (TypeError, ValueError):
        return None
    return found[np.isfinite(found)]


def _ends(values: np.ndarray, log: bool) -> tuple[float, float] | None:
    if log:
        values = np.log10(values[values > 0])
    if not values.size:
        return None
    low, high = float(values.min()), float(values.max())
    pad = _PAD * (high - low or 1.0)
    return low - pad, high + pad


def _join(figures: Sequence[go.Figure], axis: str, keeps: int) -> None:
    """One range for all, and the labels at the one that keeps them."""
    ends = [found for figure in figures if (found := _range(figure, axis)) is not None]
    common = [min(low for low, _ in ends), max(high for _, high in ends)]
    keeper = figures[keeps]
    for figure in figures:
        figure.layout[f"{axis}axis"].range = common
        if figure is not keeper:
            figure.layout[f"{axis}axis"].update(title=None, showticklabels=False)

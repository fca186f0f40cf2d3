"""The looks of every figure: light and dark for the screen, white and at final size for paper."""

from __future__ import annotations

import textwrap
from typing import Any, Literal

import plotly.graph_objects as go

from viz.looks import HUES, SEQUENTIAL

PX_PER_INCH = 96

PX_PER_PT = PX_PER_INCH / 72


def _template(
    *,
    family: str,
    text: float,
    small: float,
    ink: str,
    soft: str,
    grid: str,
    axis: str,
    thin: float,
    line: float,
    marker: float,
    ground: str,
    hover: str,
    colourbar: dict[str, Any],
    layout: dict[str, Any],
) -> go.layout.Template:
    colourbar = {
        "outlinewidth": 0,
        "tickfont": {"size": small, "color": soft},
        "title": {"side": "right", "font": {"size": text, "color": ink}},
        "ticks": "outside",
        "tickwidth": thin,
        "tickcolor": axis,
        **colourbar,
    }
    axes = _axes(text=text, small=small, ink=ink, soft=soft, grid=grid, axis=axis, thin=thin, tick=colourbar["ticklen"])
    coloured = {"colorscale": SEQUENTIAL, "colorbar": colourbar}
    return go.layout.Template(
        layout={
            "paper_bgcolor": ground,
            "plot_bgcolor": ground,
            "font": {"family": family, "size": text, "color": ink},
            "colorway": list(HUES),
            "colorscale": {"sequential": SEQUENTIAL, "sequentialminus": SEQUENTIAL},
            "coloraxis": coloured,
            "xaxis": {**axes, "showgrid": False},
            "yaxis": axes,
            "hoverlabel": {
                "bgcolor": hover,
                "bordercolor": axis,
                "align": "left",
                "font": {"family": family, "size": text, "color": ink},
            },
            "annotationdefaults": {"font": {"size": text, "color": ink}, "arrowcolor": axis, "arrowwidth": thin},
            "shapedefaults": {"line": {"color": axis, "width": thin}},
            **layout,
        },
        data={
            "heatmap": [coloured],
            "scatter": [
                {"line": {"width": line}, "marker": {"size": marker, "line": {"width": 0}, **coloured}},
            ],
            "bar": [{"marker": {"line": {"width": 0}}}],
            "box": [{"line": {"width": line}, "marker": {"size": marker}}],
        },
    )


def _axes(
    *, text: float, small: float, ink: str, soft: str, grid: str, axis: str, thin: float, tick: float
) -> dict[str, Any]:
    """What both axes share."""
    return {
        "automargin": True,
        "showline": True,
        "linecolor": axis,
        "linewidth": thin,
        "ticks": "outside",
        "tickcolor": axis,
        "tickwidth": thin,
        "ticklen": tick,
        "tickfont": {"size": small, "color": soft},
        "title": {"font": {"size": text, "color": ink}, "standoff": 2 * tick},
        "gridcolor": grid,
        "gridwidth": thin,
        "zeroline": False,
    }


def _screen(*, ink: str, soft: str, grid: str, axis: str, hover: str) -> go.layout.Template:
    return _template(
        family="system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif",
        text=13,
        small=12,
        ink=ink,
        soft=soft,
        grid=grid,
        axis=axis,
        thin=1,
        line=2,
        marker=6,
        ground="rgba(0,0,0,0)",
        hover=hover,
        colourbar={"thickness": 12, "ticklen": 4, "xpad": 8},
        layout={
            "margin": {"l": 8, "r": 8, "t": 40, "b": 8},
            "title": {"font": {"size": 16}, "x": 0, "xref": "paper", "xanchor": "left", "yref": "container", "y": 0.98},
            "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"},
            "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": soft, "activecolor": ink},
        },
    )


LIGHT = _screen(ink="#1F2430", soft="#4B5262", grid="#E4E7EC", axis="#B4BAC5", hover="#FFFFFF")

DARK = _screen(ink="#F2F4F8", soft="#BAC1CE", grid="#2B303C", axis="#565D6C", hover="#1B1F29")

PAPER = _template(
    family="Arial, 'Liberation Sans', Helvetica, 'DejaVu Sans', sans-serif",
    text=8 * PX_PER_PT,
    small=7 * PX_PER_PT,
    ink="#000000",
    soft="#000000",
    grid="#E6E6E6",
    axis="#000000",
    thin=0.5 * PX_PER_PT,
    line=1.2 * PX_PER_PT,
    marker=3 * PX_PER_PT,
    ground="#FFFFFF",
    hover="#FFFFFF",
    colourbar={"thickness": 8, "ticklen": 3, "xpad": 6, "ypad": 0, "len": 1, "outlinewidth": 0.5 * PX_PER_PT},
    layout={
        "margin": {"l": 3, "r": 6, "t": 6, "b": 3},
        "legend": {
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "y": 1,
            "yref": "container",
            "yanchor": "top",
            "font": {"size": 7 * PX_PER_PT},
            "itemwidth": 30,
            "tracegroupgap": 2,
        },
    },
)

_TEMPLATES = {"light": LIGHT, "dark": DARK, "paper": PAPER}

_NAME, _TITLE = 42, 26  # characters of a legend's line and of an axis upwards, as a column of 3 inches holds them

SCREEN_ONLY = ("title", "width", "height", "autosize", "font", "paper_bgcolor", "plot_bgcolor", "margin")


def style(figure: go.Figure, theme: Literal["light", "dark", "paper"], *, in_place: bool = False) -> go.Figure:
    """A copy of the figure that carries the theme itself, since `import streamlit` replaces Plotly's default template.

    For paper, what belongs to a screen goes: title, size, grounds, margins, menus and sliders. `in_place` changes the
    figure itself: a copy of an atlas takes as long as drawing it.
    """
    if theme not in _TEMPLATES:
        raise ValueError(f"theme is {theme!r}; allowed are {', '.join(map(repr, _TEMPLATES))}")
    styled = figure if in_place else go.Figure(figure)
    layout = styled.layout
    if theme == "paper":
        for name in SCREEN_ONLY:
            layout[name] = None
        layout.updatemenus = layout.sliders = ()
        layout.legend.y = layout.legend.yanchor = None  # above a screen's marks
        _fit_annotations(styled)
        for trace in styled.data:
            if trace.name and "<" not in trace.name:
                trace.name = _lines(trace.name, _NAME)
        for axis in styled.select_yaxes():
            if axis.title.text and "<" not in axis.title.text:
                axis.title.text = _lines(axis.title.text, _TITLE)
    elif layout.title.text and layout.margin.t is None:
        layout.margin.t = 72  # the title above the legend
    layout.template = _TEMPLATES[theme]
    return styled


def _lines(text: str, most: int) -> str:
    return "<br>".join(textwrap.wrap(text, most, break_long_words=False, break_on_hyphens=False)) or text


def _fit_annotations(figure: go.Figure) -> None:
    """Room above the plot for the titles of `make_subplots`, which are annotations of 16 px, and no text above 8 pt."""
    layout, text = figure.layout, PAPER.layout.font.size
    for annotation in layout.annotations:
        annotation.font.size = min(annotation.font.size or text, text)
    if any(a.yref == "paper" and (a.y or 0) >= 1 and a.yanchor == "bottom" for a in layout.annotations):
        layout.margin.t = PAPER.layout.margin.t + 1.5 * text * (1 + has_legend(figure))


def has_legend(figure: go.Figure) -> bool:
    if figure.layout.showlegend is not None:
        return figure.layout.showlegend
    named = [t for t in figure.data if (t.showlegend is None and t.type != "heatmap") or t.showlegend]
    return len(named) > 1 or any(trace.showlegend for trace in named)

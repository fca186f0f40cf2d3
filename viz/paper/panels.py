"""Several figures on one sheet: panels (a), (b), (c), with one legend where theirs are the same."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from PIL import Image
from pypdf import PdfReader, PdfWriter
from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject, StreamObject

from sparsity_core.record import Provenance
from viz.chosen import without_chosen
from viz.paper import compat
from viz.paper.browser import render
from viz.paper.formats.csv import csv_bytes
from viz.paper.formats.pdf import PT_PER_INCH, contents_of, cut_to_size, describe
from viz.paper.formats.png import described, drawn_png
from viz.paper.formats.svg import about, drawn_svg
from viz.paper.height import legend_lines, natural_height
from viz.paper.shared import share_axes
from viz.paper.sheet import Sheet, check_size
from viz.theme import PX_PER_INCH, has_legend, style

LETTERS = "abcdefghijkl"
MOST = len(LETTERS)
_GAP = 0.15  # inches between two panels
_LETTER = 0.18  # inches of a panel's letter
_STRETCHED = 1.5  # times its height, at most, that a panel grows to be as high as those beside it
_SCALE = 4.0  # PNG dots per 1/96 inch

Draw = Callable[[float], tuple[go.Figure, float | None]]  # (figure, its own height) for a width; inches


@dataclass(frozen=True)
class Panel:
    """A figure of a sheet: what draws it for a width, its table, and where it comes from."""

    draw: Draw
    table: pd.DataFrame
    provenance: Provenance


@dataclass(frozen=True)
class _Placed:
    sheet: Sheet
    left: float  # inches from the sheet's left edge, and from its top
    top: float


def compose(panels: Sequence[Panel], form: str, *, width: float, columns: int = 2) -> bytes:
    """A PDF, SVG or PNG of panels in so many columns, `width` inches wide, row by row.

    Each panel gets a letter above its plot. Where all legends are the same, one stands above all panels; neighbours with the
    same axis share it (`share_axes`). A PDF has every
    panel's table attached; the file brings back the view of the first. Raises ValueError for no panels or too many.
    """
    if form not in _WRITERS:
        raise ValueError(f"a sheet of panels is {', '.join(_WRITERS)}; got {form!r}")
    if not 1 <= len(panels) <= MOST:
        raise ValueError(f"a sheet holds 1 to {MOST} panels, (a) to ({LETTERS[-1]}); got {len(panels)}: take some off")
    if columns not in (1, 2, 3, 4):
        raise ValueError(f"panels stand in 1 to 4 columns; got {columns}")
    check_size(width)
    placed, height = _placed(panels, width, min(columns, len(panels)))
    check_size(height, "height of all rows together")
    return _WRITERS[form](placed, panels, together([panel.provenance for panel in panels]), width, height)


def together(made: Sequence[Provenance]) -> Provenance:
    """What stands behind a sheet: the first panel's record, with all captions, pipelines and commands."""
    pipelines = dict.fromkeys(text for each in made for text in each.pipeline.split(" | ") if text)
    caption = " ".join(f"({letter}) {each.caption}" for letter, each in zip(LETTERS, made, strict=False))
    commands = dict.fromkeys(line for each in made for line in each.command.splitlines())
    return replace(made[0], caption=caption, pipeline=" | ".join(pipelines), command="\n".join(commands))


def _placed(panels: Sequence[Panel], width: float, columns: int) -> tuple[list[_Placed], float]:
    """Every panel, and the legend if one is shared, with its place; and the height of all."""
    own = (width - _GAP * (columns - 1)) / columns
    check_size(own, "width of one panel")
    drawings = [(without_chosen(figure), height) for figure, height in (panel.draw(own) for panel in panels)]
    legend = _shared_legend([figure for figure, _ in drawings])
    joined = share_axes([figure for figure, _ in drawings], columns)
    drawings = [(figure, height) for figure, (_, height) in zip(joined, drawings, strict=True)]
    placed, top = list[_Placed](), 0.0
    if legend is not None:
        legend_height = legend_lines(style(legend, "paper"), width * PX_PER_INCH) * 0.16 + 0.06
        nothing = pd.DataFrame()
        placed.append(
            _Placed(Sheet(legend, nothing, panels[0].provenance, width, max(0.5, legend_height), _SCALE), 0, 0)
        )
        top = legend_height
    sized = [(_lettered(f, LETTERS[i], legend is not None), h) for i, (f, h) in enumerate(drawings)]
    heights = [(natural_height(f, own) if h is None else h) + _LETTER for f, h in sized]
    for start in range(0, len(panels), columns):
        row = range(start, min(start + columns, len(panels)))
        high = max(heights[i] for i in row)
        for column, i in enumerate(row):
            tall = high if high <= _STRETCHED * heights[i] else heights[i]
            sheet = Sheet(sized[i][0], panels[i].table, panels[i].provenance, own, tall, _SCALE)
            placed.append(_Placed(sheet, column * (own + _GAP), top))
        top += high + _GAP
    return placed, top - _GAP


def _lettered(figure: go.Figure, letter: str, without_legend: bool) -> go.Figure:
    """A copy with its letter at the top left corner of its plot."""
    copy = go.Figure(figure)
    if without_legend:
        copy.update_layout(showlegend=False)
    axis = figure.layout.yaxis
    # left of the plot, where no legend is, if the axis makes room there
    beside = axis.visible is not False and axis.showticklabels is not False
    where: dict[str, Any] = {"xanchor": "right", "xshift": -2} if beside else {"xanchor": "left"}
    place = {"x": 0, "y": 1, "xref": "paper", "yref": "paper", "yanchor": "bottom", **where}
    return copy.add_annotation(text=f"<b>({letter})</b>", showarrow=False, **place)


def _shared_legend(figures: Sequence[go.Figure]) -> go.Figure | None:
    """A figure of the legend alone, where two panels or more have one and all name the same lines; None otherwise."""
    having = [figure for figure in figures if has_legend(figure) and _named(figure)]
    if len(having) < 2 or any(trace.type != "scatter" for figure in having for trace in _named(figure)):
        return None
    entries = [[(t.name, t.line.color, t.line.dash) for t in _named(figure)] for figure in having]
    if any(found != entries[0] for found in entries):
        return None
    marked = max(having, key=lambda figure: sum("markers" in (t.mode or "") for t in _named(figure)))
    legend = go.Figure()
    for trace in _named(marked):
        look = {"mode": trace.mode, "line": trace.line, "marker": trace.marker, "fill": trace.fill}
        legend.add_scatter(x=[None], y=[None], name=trace.name, showlegend=True, **look)
    return legend.update_xaxes(visible=False).update_yaxes(visible=False)


def _named(figure: go.Figure) -> list[Any]:
    return [trace for trace in figure.data if trace.name and trace.showlegend is not False and trace.type != "heatmap"]


def _pdf(placed: list[_Placed], panels: Sequence[Panel], made: Provenance, width: float, height: float) -> bytes:
    writer = PdfWriter()
    writer.pdf_header = "%PDF-1.7"
    page = writer.add_blank_page(width=width * PT_PER_INCH, height=height * PT_PER_INCH)
    drawn = DictionaryObject()
    strokes = []
    for at, item in enumerate(placed):
        up = (height - item.top - item.sheet.height) * PT_PER_INCH
        drawn[NameObject(f"/Panel{at}")] = compat.add_object(writer, _form(item.sheet, writer))
        strokes.append(b"q 1 0 0 1 %.6f %.6f cm /Panel%d Do Q" % (item.left * PT_PER_INCH, up, at))
    page[NameObject("/Resources")] = DictionaryObject({NameObject("/XObject"): drawn})
    contents = DecodedStreamObject()
    contents.set_data(b"\n".join(strokes))
    page.replace_contents(contents.flate_encode())
    describe(writer, made)
    for letter, panel in zip(LETTERS, panels, strict=False):
        writer.add_attachment(f"data-{letter}.csv", csv_bytes(panel.table, panel.provenance))
    writer.add_attachment("provenance.json", made.to_json().encode())
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


def _form(sheet: Sheet, writer: PdfWriter) -> StreamObject:
    """One panel at its exact size, as a drawing that the page of `writer` places."""
    alone = compat.writer_of(PdfReader(io.BytesIO(render(sheet, "pdf"))))
    page = alone.pages[0]
    cut_to_size(page, sheet)
    form = DecodedStreamObject()
    form.set_data(contents_of(page))
    form[NameObject("/Type")], form[NameObject("/Subtype")] = NameObject("/XObject"), NameObject("/Form")
    form[NameObject("/BBox")] = page.mediabox.clone(writer)
    form[NameObject("/Resources")] = page["/Resources"].clone(writer)
    return form.flate_encode()


def _svg(placed: list[_Placed], panels: Sequence[Panel], made: Provenance, width: float, height: float) -> bytes:
    box = f"0 0 {width * PX_PER_INCH:.6g} {height * PX_PER_INCH:.6g}"
    opening = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{width:g}in" height="{height:g}in" viewBox="{box}">'
    )
    parts = [
        drawn_svg(item.sheet, f"panel{at}", f' x="{item.left * PX_PER_INCH:.6g}" y="{item.top * PX_PER_INCH:.6g}"')
        for at, item in enumerate(placed)
    ]
    return (opening + about(made) + "".join(parts) + "</svg>").encode()


def _png(placed: list[_Placed], panels: Sequence[Panel], made: Provenance, width: float, height: float) -> bytes:
    dpi = PX_PER_INCH * _SCALE
    whole = Image.new("RGB", (round(width * dpi), math.ceil(height * dpi)), "white")
    for item in placed:
        whole.paste(drawn_png(item.sheet), (round(item.left * dpi), round(item.top * dpi)))
    return described(whole, made, dpi)


_WRITERS = {"pdf": _pdf, "svg": _svg, "png": _png}

"""Makes a file of a figure and its table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pandas as pd
import plotly.graph_objects as go

from sparsity_core.record import Provenance
from viz.chosen import without_chosen
from viz.paper.drawing import drawn, text_of
from viz.paper.fonts import say_missing, without_glyph
from viz.paper.formats import FORMATS
from viz.paper.height import natural_height
from viz.paper.sheet import Sheet

__all__ = ["FORMATS", "export", "exports", "missing_glyphs"]


def export(
    figure: go.Figure,
    table: pd.DataFrame,
    fmt: str,
    provenance: Provenance,
    *,
    width: float = 5.5,
    height: float | None = None,
    scale: float = 4,
    chosen: bool = False,
) -> bytes:
    """The figure as a file of the format, in the paper look whatever the screen's theme.

    width, height: inches at final size; height is `natural_height` unless given. scale: PNG dots per 1/96 inch.
    chosen: with the marks of what is chosen on a page (frame, tip, line at the step), which are left out otherwise.
    HTML keeps the figure's own size and interaction in the light theme; CSV is the table (see `read_csv`).
    Traces that nobody can see (opacity 0, as selection layers have) are left out of PDF, SVG and PNG. Where no font of
    this machine has a character, the provenance of a PDF or PNG says so under "missing glyphs".
    """
    made = exports(figure, table, [fmt], provenance, width=width, height=height, scale=scale, chosen=chosen)
    return made[fmt]


def exports(
    figure: go.Figure,
    table: pd.DataFrame,
    forms: Iterable[str],
    provenance: Provenance,
    *,
    width: float = 5.5,
    height: float | None = None,
    scale: float = 4,
    chosen: bool = False,
) -> dict[str, bytes]:
    """As `export`, the figure in several formats, by their names; it is brought into the paper look once."""
    wanted = list(forms)
    if unknown := [form for form in wanted if form not in FORMATS]:
        raise ValueError(f"format is {unknown[0]!r}; allowed are {', '.join(FORMATS)}")
    figure = figure if chosen else without_chosen(figure)
    sheet = Sheet(figure, table, provenance, width, natural_height(figure, width) if height is None else height, scale)
    embedding = _with_missing(sheet) if any(FORMATS[form].embeds for form in wanted) else sheet
    return {form: FORMATS[form].write(embedding if FORMATS[form].embeds else sheet) for form in wanted}


def missing_glyphs(figure: go.Figure) -> str:
    """The characters of a figure's text that no font of this machine has, each once; empty where that is not known."""
    return without_glyph(text_of(drawn(figure, 1000, 1000)))


def _with_missing(sheet: Sheet) -> Sheet:
    """The sheet whose provenance says which characters of its text no font of this machine has, if any."""
    missing = without_glyph(text_of(sheet.drawing))
    if not missing:
        return sheet
    facts = {**sheet.provenance.facts, "missing glyphs": say_missing(missing)}
    return sheet.with_provenance(replace(sheet.provenance, facts=facts))

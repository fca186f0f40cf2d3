"""PDF: a page of the exact size with fonts embedded, sharp heatmap cells, and its data and provenance attached."""

from __future__ import annotations

import io
import math
import zlib

import numpy as np
from pypdf import PageObject, PdfReader, PdfWriter
from pypdf.generic import (
    DecodedStreamObject,
    DictionaryObject,
    NameObject,
    NumberObject,
    RectangleObject,
    StreamObject,
    TextStringObject,
)

from sparsity_core.record import Provenance
from viz.paper import compat
from viz.paper.browser import render
from viz.paper.formats.csv import csv_bytes
from viz.paper.sheet import CREATOR, Format, Sheet

PT_PER_INCH = 72
_CELL_DPI = 300


def _write(sheet: Sheet) -> bytes:
    writer = compat.writer_of(PdfReader(io.BytesIO(render(sheet, "pdf"))))
    writer.pdf_header = "%PDF-1.7"
    cut_to_size(writer.pages[0], sheet)
    describe(writer, sheet.provenance)
    writer.add_attachment("data.csv", csv_bytes(sheet.table, sheet.provenance))
    writer.add_attachment("provenance.json", sheet.provenance.to_json().encode())
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


def cut_to_size(page: PageObject, sheet: Sheet) -> None:
    """The page at its exact size, its bitmaps with repeated cells."""
    width, height = sheet.width, sheet.height
    across, down = width * PT_PER_INCH, height * PT_PER_INCH
    # Chromium rounds pages up to 0.24 pt; the drawing starts at the top left
    up = down - float(page.mediabox.top)
    # Written as bytes: for pypdf to read every operator of a page takes longer than for the browser to draw it.
    moved = DecodedStreamObject()
    moved.set_data(b"q 1 0 0 1 0 %.6f cm\n" % up + contents_of(page) + b"\nQ")
    page.replace_contents(moved.flate_encode())
    for box in ("/MediaBox", "/CropBox", "/TrimBox", "/BleedBox", "/ArtBox"):
        page[NameObject(box)] = RectangleObject((0, 0, across, down))
    for item in page["/Resources"].get("/XObject", {}).values():
        _sharpen(item.get_object(), width, height)


def contents_of(page: PageObject) -> bytes:
    """What a page draws, as PDF spells it."""
    found = page.get_contents()
    return b"" if found is None else found.get_data()


def describe(writer: PdfWriter, provenance: Provenance) -> None:
    """Title, keywords, a field for each fact, and the caption as the figure's text for screen readers."""
    for item in compat.objects_of(writer):
        if isinstance(item, DictionaryObject) and item.get("/S") == "/Figure":
            item[NameObject("/Alt")] = TextStringObject(provenance.caption)
    fields = {key: _scalar_text(value) for key, value in provenance.fields.items()}
    writer.metadata = {
        **{f"/{key}": value for key, value in fields.items()},
        "/Title": _scalar_text(provenance.caption),
        "/Creator": CREATOR,
        "/Keywords": "; ".join(f"{key}: {value}" for key, value in fields.items()),
    }


def _scalar_text(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _sharpen(item: StreamObject, width: float, height: float) -> None:
    """Repeat the cells of a heatmap's bitmap: it has one pixel a cell, which PDF viewers blur when they enlarge it.

    Done here and not in z, so that categories, text in cells and selection stay as they were.
    """
    if item.get("/Subtype") == "/Form":
        for inner in item.get("/Resources", {}).get("/XObject", {}).values():
            _sharpen(inner.get_object(), width, height)
        return
    if item.get("/Subtype") != "/Image" or item.get("/Filter") != "/FlateDecode" or "/DecodeParms" in item:
        return
    columns, rows = item["/Width"], item["/Height"]
    cells = np.frombuffer(item.get_data(), np.uint8)
    if item["/BitsPerComponent"] != 8 or cells.size % (columns * rows):
        return
    across, down = max(1, math.ceil(_CELL_DPI * width / columns)), max(1, math.ceil(_CELL_DPI * height / rows))
    cells = cells.reshape(rows, columns, -1).repeat(down, axis=0).repeat(across, axis=1)
    compat.set_compressed(item, zlib.compress(cells.tobytes()))
    item[NameObject("/Width")], item[NameObject("/Height")] = NumberObject(columns * across), NumberObject(rows * down)
    if "/SMask" in item:
        _sharpen(item["/SMask"].get_object(), width, height)


FORMAT = Format("pdf", "application/pdf", place=1, write=_write, rendered=True, embeds=True)

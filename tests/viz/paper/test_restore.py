"""What every exported file says of itself is read back, and what is not ours gets a sentence."""

from __future__ import annotations

import io
import re
import zipfile
from dataclasses import replace

import pandas as pd
import plotly.graph_objects as go
import pytest
from PIL import Image
from pypdf import PdfReader, PdfWriter

from tests.viz.paper.nasty import NASTY, PROVENANCE
from viz import paper

LINK = {
    "page": "tokens",
    "pipeline": "eviction=a2sf(budget=64)",
    "layer": "3",
    "text": "".join(NASTY) + ",=1;@a </metadata>",
}
MADE = replace(PROVENANCE, link=LINK)


@pytest.mark.parametrize("form", ["csv", "json", "html"])
def test_a_file_without_a_browser_brings_its_record_back(heatmap: go.Figure, table: pd.DataFrame, form: str) -> None:
    data = paper.export(heatmap, table, form, MADE)
    assert paper.read_provenance(data) == MADE
    assert data == paper.export(heatmap, table, form, MADE)
    if form == "csv":
        pd.testing.assert_frame_equal(paper.read_csv(data), table)
        assert not re.search(rb"[,;\t][=+\-@]", data.split(b"\n# provenance: ")[1].split(b"\n")[0])


@pytest.mark.parametrize("form", ["pdf", "svg", "png"])
def test_a_drawn_file_brings_its_record_back_and_is_the_same_again(
    browser: None, heatmap: go.Figure, table: pd.DataFrame, form: str
) -> None:
    first, second = (paper.export(heatmap, table, form, MADE, width=3.25, height=2) for _ in range(2))
    assert paper.read_provenance(first) == MADE
    assert _undated(first) == _undated(second)


def _undated(data: bytes) -> bytes:
    return re.sub(rb"D:\d{14}[+\-Z\d']*", b"", data)


def test_a_long_prompt_is_kept_whole_in_a_png_and_takes_little_room(
    browser: None, heatmap: go.Figure, table: pd.DataFrame
) -> None:
    long = replace(MADE, link={**LINK, "text": "the same words again " * 4000})
    data = paper.export(heatmap, table, "png", long, width=3.25, height=2)
    assert paper.read_provenance(data) == long
    assert len(data) - len(paper.export(heatmap, table, "png", MADE, width=3.25, height=2)) < 4000


def test_a_zip_brings_back_the_first_record_in_it(heatmap: go.Figure, table: pd.DataFrame) -> None:
    data = paper.export(heatmap, table, "csv", MADE)
    assert paper.read_provenance(paper.kit.zipped({"caption.txt": b"words", "a.csv": data})) == MADE


def _zip_of(count: int) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for i in range(count):
            archive.writestr(f"{i}.txt", "x")
    return out.getvalue()


def _foreign_pdf() -> bytes:
    writer, out = PdfWriter(), io.BytesIO()
    writer.add_blank_page(72, 72)
    writer.write(out)
    return out.getvalue()


def _foreign_png() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (2, 2)).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "the file is empty"),
        (b"just words", "this is none of PDF, PNG, zip, SVG, HTML, JSON, CSV"),
        (_foreign_pdf(), "this PDF is not from SparseLens"),
        (b"%PDF-1.7\nbroken", "this PDF is not from SparseLens, or it is broken"),
        (_foreign_pdf()[:200], "this PDF is not from SparseLens"),
        (_foreign_png(), "this PNG is not from SparseLens"),
        (_foreign_png()[:30], "this PNG is not from SparseLens"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "this SVG is not from SparseLens"),
        (b"<!doctype html><p>", "this HTML is not from SparseLens"),
        (b'{"provenance": {"caption": 3}}', "this JSON is not from SparseLens"),
        (b'{"provenance": {"caption": "c", "fields": {}, "link": {"a": 1}}}', "this JSON is not from SparseLens"),
        (b"# a comment\na,b\n", "this CSV is not from SparseLens"),
        (b"PK\x03\x04 broken", "this zip is not from SparseLens"),
        (_zip_of(2), "no file in this zip is from SparseLens"),
        (_zip_of(1001), "the zip holds 1,001 files"),
    ],
)
def test_what_is_not_ours_gets_a_sentence(data: bytes, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        paper.read_provenance(data)


def test_no_metadata_key_of_the_pdf_holds_the_prompt(browser: None, heatmap: go.Figure, table: pd.DataFrame) -> None:
    data = paper.export(heatmap, table, "pdf", replace(MADE, link={**LINK, "text": "secret words"}), height=2)
    assert not any("secret words" in str(value) for value in dict(PdfReader(io.BytesIO(data)).metadata or {}).values())

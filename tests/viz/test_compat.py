"""What the export asks of Kaleido, Choreographer and pypdf beyond their documents must still be there."""

from __future__ import annotations

import inspect
import io

import kaleido
import pytest
from choreographer.browsers.chromium import Chromium
from pypdf import PdfReader, PdfWriter
from pypdf.generic import DecodedStreamObject

from viz.paper import compat


def test_kaleido_takes_our_page_without_margins_and_without_mathematics() -> None:
    assert "<head>" in kaleido.PageGenerator.header
    assert {"path", "page_generator"} <= set(inspect.signature(kaleido.Kaleido.__init__).parameters) | {"path"}
    browser = compat.kaleido_without_margins(compat.browser_path() or pytest.skip("no Chromium or Chrome here"))
    assert {"calc_fig", "open", "close"} <= set(dir(browser))
    kept = [name for name in vars(type(browser)) if name.startswith("_return")]
    assert kept and all(hasattr(kaleido.Kaleido, name) for name in kept), "what gives a page back has another name"
    assert "tabs_ready" in vars(browser)


def test_the_browser_is_looked_for_without_starting_it() -> None:
    assert "skip_local" in inspect.signature(Chromium.find_browser).parameters
    assert all(issubclass(error, Exception) for error in compat.lost_browser_errors())


def test_pypdf_clones_a_document_lists_its_objects_and_takes_raw_bytes() -> None:
    blank = PdfWriter()
    blank.add_blank_page(10, 10)
    file = io.BytesIO()
    blank.write(file)
    writer = compat.writer_of(PdfReader(file))
    assert len(writer.pages) == 1
    assert compat.objects_of(writer)
    before = len(compat.objects_of(writer))
    assert compat.add_object(writer, DecodedStreamObject()).get_object() is compat.objects_of(writer)[before]
    stream = DecodedStreamObject()
    compat.set_compressed(stream, b"raw")
    assert stream.get_data() == b"raw"

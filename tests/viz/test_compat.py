"""What the export asks of Kaleido, Choreographer and pypdf beyond their documents must still be there."""

from __future__ import annotations

import inspect
import io
import os
import threading

import kaleido
import pytest
from choreographer.browsers.chromium import Chromium
from choreographer.errors import ChannelClosedError
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


def test_an_answer_is_read_whatever_a_process_of_the_browser_printed_before_it() -> None:
    assert compat.answer(b'{"id":1,"result":{}}') == {"id": 1, "result": {}}
    assert compat.answer(b'libva info: [0]\n{"id":2}') == {"id": 2}
    assert compat.answer(b"no answer at all") is None and compat.answer(b'{"cut') is None


def test_pieces_of_an_answer_are_put_together_and_a_closed_pipe_is_told() -> None:
    pipe = compat._pipe()()
    pipe.open()
    said = b'warning\n{"id":1,"data":"' + b"x" * 200_000 + b'"}\0{"id":2}\0'
    threading.Thread(target=_write, args=(pipe.from_external_to_choreo, said)).start()
    found: list[dict[str, object]] = []
    while len(found) < 2:
        found += pipe.read_jsons()[0]
    assert [each["id"] for each in found] == [1, 2] and len(str(found[0]["data"])) == 200_000
    os.write(pipe.from_external_to_choreo, b"printed as it ended{bye}\n")
    with pytest.raises(ChannelClosedError):
        pipe.read_jsons()
    with pytest.raises(ChannelClosedError):
        pipe.read_jsons()


def _write(end: int, data: bytes) -> None:
    while data:
        data = data[os.write(end, data[:50_000]) :]


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

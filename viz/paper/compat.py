"""What the export asks of Kaleido, Choreographer and pypdf beyond their documented interfaces, and nowhere else.

`tests/viz/test_compat.py` says what each must still do; it is the first to read when one of them is upgraded.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from pypdf import PdfReader, PdfWriter
from pypdf.generic import NameObject, NumberObject, PdfObject, StreamObject

PAGES = 2  # on which the browser draws at the same time
_FIGURES_A_PAGE = 50  # after which the browser's page is loaded anew, so that nothing piles up in it


def browser_path() -> str | None:
    """The Chromium or Chrome that Kaleido would start: $BROWSER_PATH, its own download, or one on the path."""
    from choreographer.browsers.chromium import Chromium

    path = Chromium.find_browser(skip_local=False)
    return path if path and Path(path).is_file() else None


def lost_browser_errors() -> tuple[type[Exception], ...]:
    """What a call raises whose browser has died."""
    from choreographer.errors import BrowserClosedError, BrowserFailedError, ChannelClosedError

    return BrowserClosedError, BrowserFailedError, ChannelClosedError


def kaleido_without_margins(path: str) -> Any:
    """A Kaleido that prints a PDF to the edge of its page, typesets no mathematics and fetches nothing.

    It keeps its page, with Plotly loaded, for the next figures: loading it anew takes longer than drawing most figures.
    """
    import kaleido

    class Page(kaleido.PageGenerator):
        # without this Chromium adds 0.1 inch around the PDF and shrinks the figure, text included, to fit between
        header = kaleido.PageGenerator.header.replace("<head>", "<head><style>@page { margin: 0 }</style>")

    class Browser(kaleido.Kaleido):
        drawn = 0

        async def _return_kaleido_tab(self, tab: Any) -> None:
            self.drawn += 1
            if self.drawn % _FIGURES_A_PAGE:
                await self.tabs_ready.put(tab)
            else:
                await super()._return_kaleido_tab(tab)

    return Browser(n=PAGES, path=path, page_generator=Page(mathjax=False), channel_cls=_pipe())


def _pipe() -> type:
    """Choreographer's pipe from the browser, read so that no answer is lost.

    The browser's standard output is that pipe. What any of its processes prints there stands before the next answer, which
    then is no JSON: Choreographer drops it, and whoever waits for it waits for good. Also, it joins a picture of megabytes
    anew for every 10 kB.
    """
    from choreographer.channels import Pipe
    from choreographer.errors import ChannelClosedError

    class Read(Pipe):
        def read_jsons(self, *, blocking: bool = True) -> tuple[list[Any], float]:
            if not self.is_ready():
                raise ChannelClosedError
            source = self._read_from_browser
            pieces: list[bytes] = []
            try:
                os.set_blocking(source, blocking)
                while not pieces or not pieces[-1].endswith(b"\0"):
                    pieces.append(os.read(source, 1 << 20))
                    os.set_blocking(source, True)
                    if not pieces[-1] or pieces[-1].endswith(b"{bye}\n"):  # which `close` writes to whoever reads
                        raise OSError("the browser has closed its end")
            except BlockingIOError:
                return [], time.perf_counter()
            except OSError as error:
                self.close()
                raise ChannelClosedError from error
            told = [answer(message) for message in b"".join(pieces).split(b"\0") if message]
            return [each for each in told if each is not None], time.perf_counter()

    return Read


def answer(message: bytes) -> Any:
    """What the browser says in a message, whatever was printed before it; None where it says nothing."""
    begins = message.find(b'{"')
    try:
        return json.loads(message[begins:]) if begins >= 0 else None
    except ValueError:
        return None


def is_alive(browser: Any) -> bool:
    return browser.subprocess.poll() is None


def writer_of(reader: PdfReader) -> PdfWriter:
    """A writer that begins with all of a document."""
    reader.trailer[NameObject("/Size")] = NumberObject(1 << 20)  # else pypdf warns: it clones an object twice
    return PdfWriter(clone_from=reader)


def objects_of(writer: PdfWriter) -> list[Any]:
    return list(writer._objects)


def add_object(writer: PdfWriter, item: PdfObject) -> PdfObject:
    """Adds an object to a document; returns the reference to it."""
    return writer._add_object(item)


def set_compressed(stream: StreamObject, data: bytes) -> None:
    """Replaces the bytes of a stream that are already compressed by its filter."""
    stream._data = data

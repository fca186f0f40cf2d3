"""What the export asks of Kaleido, Choreographer and pypdf beyond their documented interfaces, and nowhere else.

`tests/viz/test_compat.py` says what each must still do; it is the first to read when one of them is upgraded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pypdf import PdfReader, PdfWriter
from pypdf.generic import NameObject, NumberObject, PdfObject, StreamObject

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

    return Browser(path=path, page_generator=Page(mathjax=False))


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

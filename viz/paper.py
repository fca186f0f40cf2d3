"""Figures for papers: exact width, text at final size, fonts embedded, the data and its provenance inside the file."""

from __future__ import annotations

import asyncio
import atexit
import base64
import concurrent.futures
import csv
import html
import io
import json
import math
import re
import threading
import zlib
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io
from PIL import Image, PngImagePlugin
from pypdf import PdfReader, PdfWriter, Transformation
from pypdf.errors import PyPdfError
from pypdf.generic import DictionaryObject, NameObject, NumberObject, RectangleObject, StreamObject, TextStringObject

from viz.theme import PX_PER_INCH, printable, style

WIDTHS: dict[str, float] = {
    "NeurIPS / ICLR": 5.5,
    "ICML column": 3.25,
    "ICML page": 6.75,
    "AAAI column": 3.3,
    "AAAI page": 6.975,
    "CVPR column": 3.25,
    "ACL column": 3.03,
}
FORMATS = ("pdf", "svg", "png", "html", "csv")

_CREATOR = "SparseLens"
_PT_PER_INCH = 72
_CELL_DPI = 300
_RENDER_SECONDS = 60
_START_SECONDS = 60
_STOP_SECONDS = 10


class NoBrowser(RuntimeError):
    """PDF, SVG and PNG need Chromium or Chrome, and there is none that starts."""


@dataclass(frozen=True)
class Provenance:
    """What a figure shows and where it comes from: caption stub, and model, revision, prompt hash, pipeline, seed, …"""

    caption: str
    fields: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key, value in self.fields.items():
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9 ._-]{0,63}", key):
                raise ValueError(f"provenance key {key!r}: a letter, then up to 63 of ASCII letters, digits, ' ._-'")
            if not isinstance(value, str):
                raise ValueError(f"provenance field {key!r} is {type(value).__name__}; give it as text")

    def to_json(self) -> str:
        """ASCII JSON, which every container can hold."""
        return json.dumps({"caption": self.caption, "fields": self.fields})

    @classmethod
    def from_json(cls, text: str | bytes) -> Provenance:
        """The record that `to_json` wrote; ValueError for anything else."""
        record = json.loads(text)
        if not isinstance(record, dict) or not isinstance(record.get("caption"), str):
            raise ValueError("provenance is a JSON object with the keys 'caption' and 'fields'")
        if not isinstance(record.get("fields"), dict):
            raise ValueError("provenance 'fields' is an object of text by name")
        return cls(record["caption"], record["fields"])


def export(
    figure: go.Figure,
    table: pd.DataFrame,
    fmt: str,
    provenance: Provenance,
    *,
    width: float = 5.5,
    height: float | None = None,
    scale: float = 4,
) -> bytes:
    """The figure as a file of the format, in the paper look whatever the screen's theme.

    width, height: inches at final size; height is 0.62 of the width unless given. scale: PNG dots per 1/96 inch.
    HTML keeps the figure's own size and interaction in the light theme; CSV is the table (see `read_csv`).
    Traces that nobody can see (opacity 0, as selection layers have) are left out of PDF, SVG and PNG.
    """
    if fmt not in FORMATS:
        raise ValueError(f"format is {fmt!r}; allowed are {', '.join(FORMATS)}")
    if fmt == "csv":
        return _csv(table, provenance)
    if fmt == "html":
        return _html(figure, table, provenance)
    height = 0.62 * width if height is None else height
    for name, value, low, high in (("width", width, 0.5, 40), ("height", height, 0.5, 40), ("scale", scale, 0.5, 20)):
        if not low <= value <= high:
            raise ValueError(f"{name} is {value}; allowed is {low} to {high}{'' if name == 'scale' else ' inches'}")
    # Chromium stretches fractional pixels, so render whole ones and cut the page to size
    pixels = {"width": math.ceil(width * PX_PER_INCH - 1e-9), "height": math.ceil(height * PX_PER_INCH - 1e-9)}
    rendered = _renderer.render(_drawn(figure), {"format": fmt, "scale": scale if fmt == "png" else 1, **pixels})
    if fmt == "pdf":
        return _pdf(rendered, table, provenance, width, height)
    if fmt == "svg":
        return _svg(rendered, provenance, width, height)
    return _png(rendered, provenance, width, height, scale)


def can_render() -> bool:
    """Whether a browser is there for PDF, SVG and PNG; looks for the file, starts nothing."""
    return _browser_path() is not None


def read_csv(data: bytes) -> pd.DataFrame:
    """The table of an exported CSV, cell for cell and with its dtypes.

    `pd.read_csv(path, comment="#")` reads it too, but guesses types: a token "NaN" goes missing there.
    Missing text comes back as the empty string.
    """
    comments = re.match(rb"(?:#[^\n]*\n)*", data)[0]
    found = re.search(rb"^# columns: (\{.*\})$", comments, re.MULTILINE)
    types = json.loads(found[1]) if found else {}
    return pd.read_csv(
        io.BytesIO(data[len(comments) :]),
        dtype=types or None,
        keep_default_na=False,
        na_values={name: [""] for name, dtype in types.items() if dtype != "str"},
    )


def read_pdf(data: bytes) -> tuple[Provenance, pd.DataFrame]:
    """Provenance and table out of an exported PDF; ValueError where the file is no such PDF."""
    try:
        attached = PdfReader(io.BytesIO(data)).attachments
        return Provenance.from_json(attached["provenance.json"][0]), read_csv(attached["data.csv"][0])
    except (PyPdfError, KeyError, IndexError) as error:
        raise ValueError("not a PDF exported by SparseLens, or its attachments are gone: export it again") from error


def _drawn(figure: go.Figure) -> dict[str, Any]:
    spec = style(figure, "paper").to_dict()
    spec["data"] = [trace for trace in spec["data"] if not _invisible(trace)]
    return _printable(spec)


def _invisible(trace: dict[str, Any]) -> bool:
    only_markers = trace.get("mode") == "markers"
    return trace.get("opacity") == 0 or (only_markers and trace.get("marker", {}).get("opacity") == 0)


def _printable(value: Any) -> Any:
    """The same structure with `printable` text: one control character makes the SVG, and so the PDF, unreadable."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {key: _printable(item) for key, item in value.items()}
    if isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.dtype.kind in "OU"):
        return [_printable(item) for item in value]
    return value


def _csv(table: pd.DataFrame, provenance: Provenance) -> bytes:
    types = {
        str(name): str(dtype) if pd.api.types.is_numeric_dtype(dtype) else "str" for name, dtype in table.dtypes.items()
    }
    header = {"columns": json.dumps(types), "caption": provenance.caption, **provenance.fields}
    comments = "".join(f"# {key}: " + "\n#   ".join(value.splitlines()) + "\n" for key, value in header.items())
    # text is always quoted: a cell or column that starts with '#' must not read as a comment
    cells = table.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    return (comments + cells).encode("utf-8", "backslashreplace")


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; \
style-src 'unsafe-inline'; img-src data: blob:; worker-src blob:">
<title>{title}</title>
<style>
body {{ max-width: 70rem; margin: 2rem auto; padding: 0 1rem; background: #fff; color: #1F2430;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; }}
figure {{ margin: 0; }}
figcaption {{ margin: 1rem 0; }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1rem; font-size: 13px; }}
dt {{ color: #4B5262; }}
dd {{ margin: 0; overflow-wrap: anywhere; white-space: pre-wrap; }}
</style>
</head>
<body>
<figure>
{figure}
<figcaption dir="auto">{caption}</figcaption>
</figure>
<p><a download="data.csv" href="data:text/csv;charset=utf-8;base64,{csv}">The numbers behind it (CSV)</a></p>
<details open>
<summary>Where it comes from</summary>
<dl>
{fields}
</dl>
</details>
</body>
</html>
"""


def _html(figure: go.Figure, table: pd.DataFrame, provenance: Provenance) -> bytes:
    drawing = plotly.io.to_html(
        _printable(style(figure, "light").to_dict()),
        config={"typesetMath": False, "displaylogo": False, "responsive": True},
        include_plotlyjs=True,
        include_mathjax=False,
        full_html=False,
        default_height="520px",
        div_id="figure",
        validate=False,
    )
    caption = html.escape(printable(provenance.caption))
    fields = "\n".join(
        f'<dt>{html.escape(key)}</dt><dd dir="auto">{html.escape(printable(value))}</dd>'
        for key, value in provenance.fields.items()
    )
    page = _PAGE.format(
        title=caption or _CREATOR,
        figure=drawing,
        caption=caption,
        csv=base64.b64encode(_csv(table, provenance)).decode(),
        fields=fields,
    )
    return page.encode()


def _svg(rendered: bytes, provenance: Provenance, width: float, height: float) -> bytes:
    """The SVG in inches (a pixel is 1/96 inch in some programs and 1/72 in others), described, with sharp cells."""
    text = re.sub(
        r'xlink:href="data:image/png;base64,([^"]+)"', lambda m: f'xlink:href="{_sharp_png(m[1])}"', rendered.decode()
    )
    opening, drawing = re.match(r"<svg[^>]*>", text)[0], text[text.index(">") + 1 :]
    for name, value in (("width", f"{width:g}in"), ("height", f"{height:g}in")):
        opening = re.sub(rf'\s{name}="[^"]*"', f' {name}="{value}"', opening, count=1)
    box = f' viewBox="0 0 {width * PX_PER_INCH:.6g} {height * PX_PER_INCH:.6g}"'
    opening = re.sub(r'\sviewBox="[^"]*"', box, opening, count=1)
    record, caption = html.escape(provenance.to_json()), html.escape(printable(provenance.caption))
    fields = html.escape(printable("\n".join(f"{key}: {value}" for key, value in provenance.fields.items())))
    about = f"<title>{caption}</title><desc>{fields}</desc><metadata>{record}</metadata>"
    return (opening + about + drawing).encode()


def _sharp_png(encoded: str) -> str:
    image = Image.open(io.BytesIO(base64.b64decode(encoded)))
    across, down = (max(1, math.ceil(1000 / size)) for size in image.size)
    out = io.BytesIO()
    image.resize((image.width * across, image.height * down), Image.Resampling.NEAREST).save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def _png(rendered: bytes, provenance: Provenance, width: float, height: float, scale: float) -> bytes:
    dpi = PX_PER_INCH * scale
    about = PngImagePlugin.PngInfo()
    notes = {"Title": provenance.caption, "Software": _CREATOR, **provenance.fields, "provenance": provenance.to_json()}
    for key, value in notes.items():
        about.add_text(key, value.encode("utf-8", "replace").decode())
    image = Image.open(io.BytesIO(rendered)).convert("RGB").crop((0, 0, round(width * dpi), round(height * dpi)))
    out = io.BytesIO()
    image.save(out, "PNG", pnginfo=about, dpi=(dpi, dpi))
    return out.getvalue()


def _pdf(rendered: bytes, table: pd.DataFrame, provenance: Provenance, width: float, height: float) -> bytes:
    reader = PdfReader(io.BytesIO(rendered))
    reader.trailer[NameObject("/Size")] = NumberObject(1 << 20)  # else pypdf warns: it clones an object twice
    writer = PdfWriter(clone_from=reader)
    writer.pdf_header = "%PDF-1.7"
    page = writer.pages[0]
    across, down = width * _PT_PER_INCH, height * _PT_PER_INCH
    # Chromium rounds pages up to 0.24 pt; the drawing starts at the top left
    page.add_transformation(Transformation().translate(0, down - float(page.mediabox.top)))
    for box in ("/MediaBox", "/CropBox", "/TrimBox", "/BleedBox", "/ArtBox"):
        page[NameObject(box)] = RectangleObject((0, 0, across, down))
    for item in page["/Resources"].get("/XObject", {}).values():
        _sharpen(item.get_object(), width, height)
    for item in writer._objects:
        if isinstance(item, DictionaryObject) and item.get("/S") == "/Figure":
            item[NameObject("/Alt")] = TextStringObject(provenance.caption)
    fields = {key: _scalar_text(value) for key, value in provenance.fields.items()}
    writer.metadata = {
        **{f"/{key}": value for key, value in fields.items()},
        "/Title": _scalar_text(provenance.caption),
        "/Creator": _CREATOR,
        "/Keywords": "; ".join(f"{key}: {value}" for key, value in fields.items()),
    }
    writer.add_attachment("data.csv", _csv(table, provenance))
    writer.add_attachment("provenance.json", provenance.to_json().encode())
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


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
    item._data = zlib.compress(cells.tobytes())
    item[NameObject("/Width")], item[NameObject("/Height")] = NumberObject(columns * across), NumberObject(rows * down)
    if "/SMask" in item:
        _sharpen(item["/SMask"].get_object(), width, height)


def _browser_path() -> str | None:
    from choreographer.browsers.chromium import Chromium

    path = Chromium.find_browser(skip_local=False)
    return path if path and Path(path).is_file() else None


class _Renderer:
    """One browser for the process on an event loop of its own, so that any thread may render; one figure at a time.

    Not `kaleido.start_sync_server`: that one hangs for good where the browser does not start or dies, and prints a
    traceback from its thread. Choreographer passes --no-sandbox, which root in a container needs.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._kaleido: Any = None

    def render(self, figure: dict[str, Any], options: dict[str, Any]) -> bytes:
        from choreographer.errors import BrowserClosedError, BrowserFailedError, ChannelClosedError

        lost = (BrowserClosedError, BrowserFailedError, ChannelClosedError, concurrent.futures.CancelledError)
        with self._lock:
            try:
                return self._calculate(figure, options)
            except lost:  # the browser died since the last figure, or under this one: once more with a new one
                self._stop()
                return self._calculate(figure, options)
            except TimeoutError:
                self._stop()
                raise TimeoutError(
                    f"the browser took more than {_RENDER_SECONDS} s for this figure: draw fewer cells, or choose HTML"
                ) from None

    def close(self) -> None:
        with self._lock:
            self._stop()

    def _calculate(self, figure: dict[str, Any], options: dict[str, Any]) -> bytes:
        self._start()
        return self._wait(self._kaleido.calc_fig(figure, options), _RENDER_SECONDS)

    def _wait(self, work: Coroutine[Any, Any, Any], seconds: float) -> Any:
        return asyncio.run_coroutine_threadsafe(asyncio.wait_for(work, seconds), self._loop).result()

    def _start(self) -> None:
        if self._kaleido is not None:
            if self._kaleido.subprocess.poll() is None:
                return
            self._stop()
        path = _browser_path()
        if path is None:
            raise NoBrowser(
                "no Chromium or Chrome found, so PDF, SVG and PNG are not available: "
                "install Chromium, or download HTML or CSV"
            )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=_serve, args=(self._loop,), name="paper-export", daemon=True)
        self._thread.start()
        try:
            self._kaleido = self._wait(_open(path), _START_SECONDS)
        except Exception as error:
            self._stop()
            raise NoBrowser(
                f"{path} does not start, so PDF, SVG and PNG are not available: "
                "set BROWSER_PATH to another Chromium or Chrome, or download HTML or CSV"
            ) from error

    def _stop(self) -> None:
        if self._kaleido is not None:
            with suppress(Exception, concurrent.futures.CancelledError):
                self._wait(self._kaleido.close(), _STOP_SECONDS)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_STOP_SECONDS)
        self._kaleido = self._loop = self._thread = None


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    with asyncio.Runner(loop_factory=lambda: loop) as runner:  # cancels what is left when the loop stops
        runner.get_loop().run_forever()


async def _open(path: str) -> Any:
    import kaleido

    class Page(kaleido.PageGenerator):
        # without this Chromium adds 0.1 inch around the PDF and shrinks the figure, text included, to fit between
        header = kaleido.PageGenerator.header.replace("<head>", "<head><style>@page { margin: 0 }</style>")

    # no MathJax: $x$ is text, and nothing is fetched from a network
    browser = kaleido.Kaleido(path=path, page_generator=Page(mathjax=False))
    try:
        await browser.open()
    except BaseException:
        await browser.close()
        raise
    return browser


_renderer = _Renderer()
atexit.register(_renderer.close)

"""The browser that draws PDF, SVG and PNG: one for the process."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import tempfile
import threading
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from viz.paper import compat
from viz.paper.drawing import drawn
from viz.paper.sheet import Sheet

_RENDER_SECONDS = 60
_START_SECONDS = 60
_STOP_SECONDS = 10
_LONGEST_FOLDER = 60  # characters: with what Chromium adds, the name of its socket stays within the 108 that Linux has


class NoBrowser(RuntimeError):
    """PDF, SVG and PNG need Chromium or Chrome, and there is none that starts."""


def can_render() -> bool:
    """Whether a browser is there for PDF, SVG and PNG; looks for the file, starts nothing."""
    return compat.browser_path() is not None


def render(sheet: Sheet, form: str, scale: float = 1) -> bytes:
    """The figure of a sheet in the paper look, as the browser draws it in whole pixels. Raises NoBrowser."""
    figure = drawn(sheet.figure, **sheet.pixels)
    for at, trace in enumerate(figure["data"]):
        trace["uid"] = f"{at:06}"  # or Plotly draws one at random: equal figures are to be equal files
    return _renderer.render(figure, {"format": form, "scale": scale, **sheet.pixels})


class Renderer:
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
        lost: tuple[type[BaseException], ...] = (*compat.lost_browser_errors(), concurrent.futures.CancelledError)
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
            if compat.is_alive(self._kaleido):
                return
            self._stop()
        path = compat.browser_path()
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
                f"set {_remedy()}, or download HTML or CSV"
            ) from error

    def _stop(self) -> None:
        if self._kaleido is not None:
            with suppress(Exception, concurrent.futures.CancelledError):
                self._wait(self._kaleido.close(), _STOP_SECONDS)
        if self._loop is not None and self._thread is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_STOP_SECONDS)
        self._kaleido = self._loop = self._thread = None


def _remedy() -> str:
    if len(tempfile.gettempdir()) > _LONGEST_FOLDER:
        return f"TMPDIR to a folder with a name of less than {_LONGEST_FOLDER} characters, which its socket needs"
    return "BROWSER_PATH to another Chromium or Chrome"


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    with asyncio.Runner(loop_factory=lambda: loop) as runner:  # cancels what is left when the loop stops
        runner.get_loop().run_forever()


async def _open(path: str) -> Any:
    browser = compat.kaleido_without_margins(path)
    try:
        await browser.open()
    except BaseException:
        await browser.close()
        raise
    return browser


_renderer = Renderer()
atexit.register(_renderer.close)

"""The browser that draws PDF, SVG and PNG: one for the process."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import tempfile
import threading
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from viz.paper import compat
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
    # Without a uid Plotly draws one at random: equal figures are to be equal files.
    named = [{**trace, "uid": f"{at:06}"} for at, trace in enumerate(sheet.drawing["data"])]
    figure = {**sheet.drawing, "data": named}
    return _renderer.render(figure, {"format": form, "scale": scale, **sheet.pixels})


class Renderer:
    """One browser for the process on an event loop of its own, so that any thread may render; `PAGES` figures at a time.

    Not `kaleido.start_sync_server`: that one hangs for good where the browser does not start or dies, and prints a
    traceback from its thread. Choreographer passes --no-sandbox, which root in a container needs.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # of starting and ending
        self._pages = threading.BoundedSemaphore(compat.PAGES)
        self._running: _Running | None = None

    def render(self, figure: dict[str, Any], options: dict[str, Any]) -> bytes:
        lost: tuple[type[BaseException], ...] = (*compat.lost_browser_errors(), concurrent.futures.CancelledError)
        with self._pages:
            used = self._started()
            try:
                return used.wait(used.kaleido.calc_fig(figure, options), _RENDER_SECONDS)
            except lost:  # the browser died since the last figure, or under this one: once more with a new one
                self._end(used)
                again = self._started()
                return again.wait(again.kaleido.calc_fig(figure, options), _RENDER_SECONDS)
            except TimeoutError:
                self._end(used)
                raise TimeoutError(
                    f"the browser took more than {_RENDER_SECONDS} s for this figure: draw fewer cells, or choose HTML"
                ) from None

    def close(self) -> None:
        self._end(self._running)

    def _started(self) -> _Running:
        """The browser, a new one where there is none or it has died."""
        with self._lock:
            if self._running is not None and not compat.is_alive(self._running.kaleido):
                self._running.end()
                self._running = None
            if self._running is None:
                self._running = _start()
            return self._running

    def _end(self, used: _Running | None) -> None:
        """Ends the browser that was used, unless another thread has."""
        with self._lock:
            if used is not None and self._running is used:
                self._running = None
                used.end()


@dataclass(frozen=True, eq=False)
class _Running:
    """A browser, and the loop and thread that speak with it."""

    kaleido: Any
    loop: asyncio.AbstractEventLoop
    thread: threading.Thread

    def wait(self, work: Coroutine[Any, Any, Any], seconds: float) -> Any:
        return _wait(self.loop, work, seconds)

    def end(self) -> None:
        with suppress(Exception, concurrent.futures.CancelledError):
            self.wait(self.kaleido.close(), _STOP_SECONDS)
        _stop(self.loop, self.thread)


def _start() -> _Running:
    path = compat.browser_path()
    if path is None:
        raise NoBrowser(
            "no Chromium or Chrome found, so PDF, SVG and PNG are not available: "
            "install Chromium, or download HTML or CSV"
        )
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=_serve, args=(loop,), name="paper-export", daemon=True)
    thread.start()
    try:
        return _Running(_wait(loop, _open(path), _START_SECONDS), loop, thread)
    except Exception as error:
        _stop(loop, thread)
        raise NoBrowser(
            f"{path} does not start, so PDF, SVG and PNG are not available: set {_remedy()}, or download HTML or CSV"
        ) from error


def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    loop.call_soon_threadsafe(loop.stop)
    thread.join(_STOP_SECONDS)


def _wait(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], seconds: float) -> Any:
    """What the work gives. Waits a little longer than the loop does, for one that was stopped before it began."""
    return asyncio.run_coroutine_threadsafe(asyncio.wait_for(work, seconds), loop).result(seconds + 1)


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

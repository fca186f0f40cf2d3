"""A real server of the app and a real browser, for tests; skips loudly where there is no browser."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def browser_path() -> str:
    """Chromium or Chrome on this machine; skips the test, with a warning, where there is none."""
    found = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    if found is None:
        warnings.warn("the app is not tested in a browser: no Chromium or Chrome is installed", stacklevel=2)
        pytest.skip("no Chromium or Chrome is installed")
    return found


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A browser that Playwright drives."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    path = browser_path()
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextlib.contextmanager
def serving(cache: Path, script: Path = ROOT / "app.py") -> Iterator[str]:
    """The address of a fresh server of the app, or of another script, whose results are kept in `cache`."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", str(script), f"--server.port={port}"]
    command += ["--server.headless=true", "--server.fileWatcherType=none"]
    environment = {**os.environ, "SPARSELENS_CACHE": str(cache)}
    with (cache / "server.log").open("wb") as log:
        server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        try:
            address = f"http://localhost:{port}"
            wait_for(f"{address}/_stcore/health")
            yield address
        finally:
            server.terminate()
            server.wait()


def wait_for(address: str, most: float = 120) -> None:
    deadline = time.monotonic() + most
    while time.monotonic() < deadline:
        with contextlib.suppress(urllib.error.URLError, OSError):
            urllib.request.urlopen(address, timeout=2)
            return
        time.sleep(0.2)
    raise RuntimeError(f"no server at {address} within {most:.0f} s")


def cache_with_models(folder: Path) -> Path:
    """A cache folder with no results, that shares the converted models of the tests' own."""
    own = Path(os.environ["SPARSELENS_CACHE"]) / "models"
    own.mkdir(parents=True, exist_ok=True)
    (folder / "models").symlink_to(own, target_is_directory=True)
    return folder


def settle(page: Any, most: float = 150) -> None:
    """Waits until the page's script has run to its end."""
    page.wait_for_function(
        "document.querySelector('[data-testid=stApp]')?.dataset.testScriptState === 'notRunning'", timeout=1000 * most
    )

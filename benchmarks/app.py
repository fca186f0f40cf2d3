"""What a visitor waits for, in a real browser on a real server: the first picture, and every choice after it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.measure import Row

_ROOT = Path(__file__).parents[1]
_RUNS = 5
_LOADED = "[data-testid=stApp]"
_PICTURE = "[class*=st-key-look_] img"
_CHART = ".js-plotly-plot .heatmaplayer image"
_READY = "[data-testid=stCaptionContainer]:has-text(': ready')"
_QUIET = 700  # ms without a change, after which a choice is drawn to its end

# The page's own clock: asked from outside, a page that loads Plotly answers half a second late.
_WATCH = """
window.firstSeen = {};
const drawn = new Set();
const look = () => {
  for (const selector of drawn) firstSeen[selector] ??= performance.now();  // painted with the frame before
  for (const selector of SELECTORS) if (document.querySelector(selector)) drawn.add(selector);
  requestAnimationFrame(look);
};
requestAnimationFrame(look);
window.lastChange = 0;
new MutationObserver(() => requestAnimationFrame(() => (lastChange = performance.now())))
  .observe(document, { subtree: true, childList: true, attributes: true, characterData: true });
"""

_SMALLEST = """import plotly.graph_objects as go
import streamlit as st

st.title("The smallest app with a heatmap")
st.plotly_chart(go.Figure(go.Heatmap(z=[[1, 2], [3, 4]])))
"""


def main(data: Path) -> list[Row]:
    from playwright.sync_api import sync_playwright

    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    if browser_path is None:
        print("no Chromium or Chrome found: the app is not measured")
        return []
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        smallest = Path(folder, "smallest.py")
        smallest.write_text(_SMALLEST)
        with _served(smallest) as address:
            _, (least,), _ = _visits(browser, address, (_CHART,))
        with _served(_ROOT / "app.py") as address:
            rows = _measure(browser, address, least)
        start = Row("second start to model ready, the browser on the same cores", _start(browser), "s", 10.0)
        print(start, flush=True)
        rows.append(start)
        browser.close()
    return rows


@contextlib.contextmanager
def _served(script: Path) -> Iterator[str]:
    """The address of a Streamlit server of its own."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", str(script), f"--server.port={port}", "--server.headless=true"]
    server = subprocess.Popen(command, cwd=_ROOT, env=os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        address = f"http://localhost:{port}"
        _wait_for(f"{address}/_stcore/health")
        yield address
    finally:
        server.terminate()
        server.wait()


def _start(browser) -> float:  # type: ignore[no-untyped-def]
    """Seconds from a server's command to the page that says that the model is ready: a median, the first start left out."""
    times = []
    for _ in range(_RUNS + 1):
        began = time.perf_counter()
        with _served(_ROOT / "app.py") as address:
            page = browser.new_page()
            page.set_default_timeout(180_000)
            page.goto(address)
            page.wait_for_selector(_READY)
            times.append(time.perf_counter() - began)
            page.close()
    return median(times[1:])


def _visits(browser, address: str, seen: tuple[str, ...], pause: float = 0) -> tuple[list[float], list[float], Any]:  # type: ignore[no-untyped-def]
    """Seconds from the page's own load until each of `seen` is painted on a fresh server's first page; their medians later; the
    last page."""
    times: list[list[float]] = []
    for i in range(_RUNS + 1):
        page = browser.new_page(viewport={"width": 1440, "height": 1200})
        page.set_default_timeout(180_000)  # on a busy machine a slow number says more than none
        page.add_init_script(f"window.SELECTORS = {json.dumps([_LOADED, *seen])};{_WATCH}")
        page.goto(address)
        page.wait_for_function("SELECTORS.every((selector) => selector in firstSeen)")
        loaded, *later = (page.evaluate(f"firstSeen[{json.dumps(selector)}]") for selector in (_LOADED, *seen))
        times.append([(at - loaded) / 1000 for at in later])
        if not i:
            time.sleep(pause)
        if i < _RUNS:
            page.close()
    return times[0], [median(later) for later in zip(*times[1:], strict=True)], page


def _measure(browser, address: str, least: float) -> list[Row]:  # type: ignore[no-untyped-def]
    choices: dict[str, list[float]] = {"layer": [], "head": [], "step": []}
    # The model loads in the background after a server's first visit.
    first, (picture, chart), page = _visits(browser, address, (_PICTURE, _CHART), pause=20)
    _check(page)
    for _ in range(_RUNS):
        for name, selector in (("layer", "Layer"), ("step", "Step")):
            choices[name].append(_choose(page, selector))
        choices["head"].append(_choose_head(page))
    beside = _beside_a_job(page)
    zips = _zips(browser, address)
    smallest = "the smallest Streamlit app with a heatmap"
    rows = [
        Row("first picture of a fresh server, after the page's load", first[0], "s", None, "", "imports included"),
        Row("first picture, after the page's load", picture, "s", 2.0, "", "the atlas's cells, as an image"),
        Row("first chart of Plotly, after the page's load", chart, "s", None),
        Row("first chart of Plotly, after the page's load", chart / least, "", None, smallest, f"{least:.2f} s"),
        *(Row(f"choosing a {name}, to the last change", median(values), "s", 0.5) for name, values in choices.items()),
        Row(
            "choosing a layer while a job runs, to the heading that names it",
            beside,
            "s",
            1.0,
            "",
            "the slowest of five",
        ),
        Row(
            "zip of a page of seven figures, from the press to the file",
            zips,
            "s",
            10.0,
            "",
            "PDF, SVG, PNG, CSV, JSON, texts",
        ),
    ]
    for row in rows:
        print(row, flush=True)
    return rows


def _check(page) -> None:  # type: ignore[no-untyped-def]
    if page.locator("[data-testid=stException]").count():
        raise RuntimeError("the page shows an exception: nothing is measured")


def _choose(page, label: str) -> float:  # type: ignore[no-untyped-def]
    """Seconds from a key press on a stepper until nothing changes any more, the heading that names the value among it."""
    if label == "Layer":
        box = page.get_by_label("Layer", exact=True)
        value = (int(box.input_value()) + 1) % 30
        box.fill(str(value))
        expected = f"layer {value}"
        began = page.evaluate("performance.now()")
        box.press("Enter")
    else:
        slider = page.get_by_role("slider", name="Step")
        value = int(slider.evaluate("e => e.getAttribute('aria-valuenow') ?? e.value")) - 1
        expected = f"Tokens at step {value},"
        slider.focus()
        began = page.evaluate("performance.now()")
        slider.press("ArrowLeft")
    page.wait_for_function(_HEADED, arg=expected)
    return _until_quiet(page, began)


def _beside_a_job(page) -> float:  # type: ignore[no-untyped-def]
    """Seconds from a choice of a layer to the heading that names it, while a run of a long text takes both cores."""
    page.get_by_label("Text", exact=True).fill("A long story about a lighthouse, and its keeper. " * 500)
    page.get_by_label("Text", exact=True).press("Control+Enter")
    _until_quiet(page, 0.0)
    page.get_by_role("button", name="Run", exact=True).click()
    cancel = page.get_by_role("button", name="Cancel")
    cancel.wait_for()
    time.sleep(3)
    times = []
    for _ in range(_RUNS):
        box = page.get_by_label("Layer", exact=True)
        value = (int(box.input_value()) + 1) % 30
        box.fill(str(value))
        began = page.evaluate("performance.now()")
        box.press("Enter")
        page.wait_for_function(_HEADED, arg=f"layer {value}")
        times.append((page.evaluate("performance.now()") - began) / 1000)
        if not cancel.count():
            raise RuntimeError("the run was over before its pages were looked at: nothing is measured")
        time.sleep(1)
    cancel.click()
    cancel.wait_for(state="detached")
    return max(times)


def _zips(browser, address: str) -> float:  # type: ignore[no-untyped-def]
    """Seconds from a press on Make the zip to its download, on a page of seven figures: a median after the server's first."""
    times = []
    for _ in range(_RUNS + 1):
        page = browser.new_page(viewport={"width": 1440, "height": 1200})
        page.set_default_timeout(180_000)
        page.goto(address)
        page.wait_for_selector(_CHART)
        page.get_by_role("button", name="Show a run of all five stages").click()
        page.get_by_text("All 7 figures of Tokens").click()
        press = page.get_by_role("button", name="Make the zip")
        press.wait_for()
        _check(page)
        began = time.perf_counter()
        press.click()
        page.get_by_role("button", name="tokens.zip").wait_for(timeout=60_000)
        times.append(time.perf_counter() - began)
        page.close()
    return median(times[1:])


def _choose_head(page) -> float:  # type: ignore[no-untyped-def]
    """Seconds from a click on a head until nothing changes any more, the sentence about the chosen token among it."""
    box = page.get_by_role("combobox", name="KV head")
    chosen = "head 1" if box.input_value() == "head 0" else "head 0"
    box.click()
    option = page.get_by_role("option", name=chosen, exact=True)
    option.wait_for()
    if page.evaluate(_TOLD, chosen):
        raise RuntimeError(f"the page names KV {chosen} before it is chosen: nothing is measured")
    began = page.evaluate("performance.now()")
    option.click()
    page.wait_for_function(_TOLD, arg=chosen)
    return _until_quiet(page, began)


def _until_quiet(page, began: float) -> float:  # type: ignore[no-untyped-def]
    """Seconds from `began` (ms of the page's clock) to the frame of its last change."""
    page.wait_for_function(f"performance.now() - lastChange > {_QUIET}")
    return (page.evaluate("lastChange") - began) / 1000


_HEADED = "text => [...document.querySelectorAll('h3')].some(h => (h.textContent + ' ').includes(text))"
_TOLD = """head => [...document.querySelectorAll("[data-testid=stMarkdown]")].some(
    ({ textContent }) => /^\\s*Token \\d/.test(textContent) && RegExp(`KV ${head}\\\\b`).test(textContent)
)"""


def _wait_for(address: str, most: float = 60) -> None:
    deadline = time.monotonic() + most
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(address, timeout=2)
            return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"no server at {address} within {most:.0f} s")

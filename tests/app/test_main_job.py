"""The main job, in a real browser on a real server with the real model: look, run, click, follow, cancel, come back."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import pytest
from pypdf import PdfReader

from sparsity_core.record import Provenance
from tests.app.visit import MODEL_SECONDS, OWN, PICTURE, ask, no_exception, opened
from tests.server import settle
from ui.address import EXAMPLE, write_address
from viz import paper
from viz.paper import read_csv

HOSTILE = "<b id='hacked'>bold</b> $x$ مرحبا 🙂 \u202eabc <script>window.hacked=1</script> the end of the text " * 2


def test_the_main_job(browser: Any, address: str, tmp_path: Path) -> None:
    page = opened(browser, address)
    no_exception(page)
    assert "The·" not in page.locator("h3").first.inner_text()
    assert page.get_by_text("a2sf(budget=64)").count() > 0
    page.get_by_text("smollm2-135m: ready", exact=True).wait_for(timeout=1000 * MODEL_SECONDS)  # said without a touch

    ask(page, OWN, budget=16, generate=4)
    page.get_by_text("a2sf(budget=16)", exact=True).first.wait_for(timeout=1000 * MODEL_SECONDS)
    page.wait_for_selector(PICTURE)
    settle(page)
    no_exception(page)
    strip = page.locator("[role=listbox]").first
    assert "lighthouse" in strip.inner_text()

    # A click on a cell of the atlas: layer and token follow, and so does the strip.
    before = page.get_by_label("Layer", exact=True).input_value()
    plot = page.locator(".js-plotly-plot .nsewdrag").first.bounding_box()
    page.mouse.move(plot["x"] + 0.3 * plot["width"], plot["y"] + 0.25 * plot["height"])
    page.mouse.click(plot["x"] + 0.3 * plot["width"], plot["y"] + 0.25 * plot["height"])
    page.wait_for_function("before => document.querySelector('input[aria-label=Layer]').value !== before", arg=before)
    settle(page)
    layer = int(page.get_by_label("Layer", exact=True).input_value())
    token = int(page.get_by_label("Token", exact=True).input_value())
    assert 18 <= layer <= 26  # a quarter from the top of 30 layers
    n_tokens = int(page.get_by_label("Token", exact=True).get_attribute("max")) + 1
    assert abs(token - 0.3 * n_tokens) <= 2
    chosen = page.locator("[role=option][aria-selected=true]").first
    chosen.wait_for()
    assert f"token {token} " in chosen.get_attribute("aria-label")
    assert f"layer={layer}" in page.url and f"token={token}" in page.url

    # A second run, long enough to be cancelled: the view stays, and can be run again.
    ask(page, OWN * 40, budget=64, generate=64)
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Cancel").wait_for(state="detached")
    settle(page)
    assert page.get_by_text("a2sf(budget=16)", exact=True).count() > 0
    no_exception(page)
    ask(page, OWN, budget=12, generate=0)
    page.get_by_text("a2sf(budget=12)", exact=True).first.wait_for(timeout=1000 * MODEL_SECONDS)

    settle(page)  # the address is written last

    # The address brings the view back, in another browser.
    other = opened(browser, page.url)
    assert other.get_by_text("a2sf(budget=12)", exact=True).count() > 0
    no_exception(other)
    other.context.close()

    # Figures leave as files that carry their data.
    page.get_by_role("button", name="Export").first.click()
    for label in ("PDF", "CSV"):
        with page.expect_download() as download:
            page.get_by_role("button", name=label, exact=True).click()
        download.value.save_as(tmp_path / label)
    assert read_csv((tmp_path / "CSV").read_bytes())["layer"].max() == 29
    assert len(PdfReader(tmp_path / "PDF").pages) == 1
    page.context.close()


def at_rest(element: Any) -> dict[str, float]:
    """Where the element is once it has not moved for a second: text above it may still be typeset when the script rests."""
    before, now = None, element.bounding_box()
    while now != before:
        element.page.wait_for_timeout(1000)
        before, now = now, element.bounding_box()
    return now


def test_the_cells_are_seen_while_plotly_is_being_loaded(browser: Any, address: str) -> None:
    page = browser.new_page(viewport={"width": 1500, "height": 1400})
    page.route("**/PlotlyChart*", lambda route: None)  # never answered
    page.goto(address)
    box = page.locator("[class*=st-key-look_] img")
    box.wait_for(timeout=60_000)
    settle(page)
    cells = at_rest(box)
    page.close()
    page = opened(browser, address)
    chart = at_rest(page.locator(".js-plotly-plot .nsewdrag").first)
    assert page.locator("[class*=st-key-look_] img").count() == 0
    assert all(abs(cells[side] - chart[side]) <= 2 for side in ("x", "y", "width", "height")), (cells, chart)
    page.context.close()


def test_hostile_text_is_shown_and_never_interpreted(browser: Any, address: str) -> None:
    page = opened(browser, address)
    ask(page, HOSTILE, budget=16, generate=0)
    page.get_by_text("a2sf(budget=16)", exact=True).first.wait_for(timeout=1000 * MODEL_SECONDS)
    settle(page)
    no_exception(page)
    assert page.evaluate("window.hacked") is None
    assert page.locator("#hacked").count() == 0
    assert "⟨U+202E⟩" in page.locator("[role=listbox]").first.inner_text()
    page.context.close()


def test_a_run_whose_browser_closed_is_found_by_the_next(browser: Any, address: str) -> None:
    text = OWN + "A different end."
    page = opened(browser, address)
    ask(page, text, budget=20, generate=0)
    page.get_by_role("button", name="Cancel").wait_for()
    page.context.close()
    again = opened(browser, address)
    ask(again, text, budget=20, generate=0)
    again.get_by_text("a2sf(budget=20)", exact=True).first.wait_for(timeout=1000 * MODEL_SECONDS)
    no_exception(again)
    again.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", ["", "scores"])
def test_every_page_opens_side_by_side_in_both_themes(browser: Any, address: str, path: str, scheme: str) -> None:
    link = f"{address}/{path}?pipeline=eviction%3Da2sf(budget%3D64)&beside=eviction%3Dstreaming_llm(budget%3D64)&generate=24"
    page = opened(browser, link, color_scheme=scheme)
    no_exception(page)
    assert page.get_by_text("streaming_llm(budget=64)", exact=True).count() > 0
    ink = page.locator(".js-plotly-plot .xtitle").first.evaluate("e => getComputedStyle(e).fill")
    assert (sum(int(v) for v in ink[4:-1].split(",")[:3]) > 380) == (scheme == "dark")
    page.context.close()


def test_a_figures_file_dropped_in_the_sidebar_brings_its_view_back(browser: Any, address: str, tmp_path: Path) -> None:
    page = opened(browser, address)
    link = {"page": "scores", **write_address([EXAMPLE], {"layer": 7, "head": "last", "token": 11, "step": 99})}
    file = tmp_path / "scores.json"
    file.write_bytes(paper.export(go.Figure(), pd.DataFrame(), "json", Provenance(caption="A figure.", link=link)))
    page.get_by_text("Open a figure's file").click()
    page.locator("[data-testid=stFileUploader] input").set_input_files(file)
    page.wait_for_url(re.compile("/scores.*layer=7"))
    page.get_by_role("heading", name="Accumulated scores, layer 7").wait_for()
    settle(page)
    assert page.get_by_label("Layer", exact=True).input_value() == "7"
    assert page.get_by_role("slider", name="Step").get_attribute("aria-valuenow") in ("99", None)
    file.write_text("no figure of ours")
    if not page.locator("[data-testid=stFileUploader] input").count():
        page.get_by_text("Open a figure's file").click()
    page.locator("[data-testid=stFileUploader] input").set_input_files(file)
    page.get_by_text("The view is as it was.").wait_for()
    no_exception(page)
    page.context.close()


def test_a_pinned_figure_is_on_the_page_figures_and_leaves_it_as_a_pdf(browser: Any, address: str) -> None:
    page = opened(browser, address)
    page.locator(".st-key-export_loss button").click()
    page.get_by_role("button", name="Pin to Figures").click()
    page.get_by_text("Pinned as figure 1").wait_for()
    page.keyboard.press("Escape")
    page.get_by_role("link", name="Figures").click()
    page.get_by_role("heading", name="Figures pinned for a paper").wait_for()
    page.locator(".st-key-pinned_1 .main-svg").first.wait_for()
    with page.expect_download() as taken:
        page.get_by_role("button", name="PDF", exact=True).click()
    data = taken.value.path().read_bytes()
    assert data.startswith(b"%PDF") and taken.value.suggested_filename == "sheet.pdf"
    assert paper.read_provenance(data).link["page"] == "tokens"
    page.get_by_role("button", name="take it off").or_(page.locator(".st-key-unpin_1 button")).first.click()
    page.get_by_text("Nothing is pinned yet").wait_for()
    no_exception(page)
    page.context.close()

"""What a visitor of the app does in a browser: open it, set a number, ask for a run."""

from __future__ import annotations

from typing import Any

from tests.server import settle

OWN = "The keeper of the lighthouse wrote a letter every evening. Nobody answered, and so the letters grew longer. " * 3
PICTURE = ".js-plotly-plot .heatmaplayer image"
MODEL_SECONDS = 240  # on a fresh machine the embedded model is converted first, and CI's cores are slow


def opened(browser: Any, address: str, **context: Any) -> Any:
    page = browser.new_context(viewport={"width": 1500, "height": 1400}, **context).new_page()
    page.set_default_timeout(150_000)  # a busy machine takes a minute to draw two pipelines
    page.goto(address)
    page.wait_for_selector(PICTURE)
    settle(page)
    return page


def set_number(page: Any, label: str, value: int) -> None:
    from playwright.sync_api import expect

    box = page.get_by_label(label, exact=True)
    expect(box).to_have_count(1, timeout=60_000)  # while the bar is drawn anew there may be two
    box.fill(str(value))
    box.press("Enter")
    settle(page)


def ask(page: Any, text: str, budget: int, generate: int) -> None:
    """Fills in the run bar and presses Run."""
    from playwright.sync_api import expect

    page.get_by_label("Text", exact=True).fill(text)
    page.get_by_label("Text", exact=True).press("Control+Enter")
    settle(page)
    expect(page.get_by_role("combobox", name="Prompt")).to_have_value("Your own text", timeout=60_000)
    expect(page.get_by_label("Text", exact=True)).to_have_value(text)
    set_number(page, "budget", budget)
    if not page.get_by_label("Generated tokens", exact=True).is_visible():
        page.get_by_text("Run settings", exact=True).click()
    set_number(page, "Generated tokens", generate)
    page.get_by_role("button", name="Run", exact=True).click()


def no_exception(page: Any) -> None:
    assert page.locator("[data-testid=stException]").count() == 0

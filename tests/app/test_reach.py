"""What a keyboard and a weak eye meet, in a real browser: contrast by axe-core, Tab stops, and no request to another host."""

from __future__ import annotations

import warnings
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.server import ROOT, settle

AXE = ROOT / "node_modules" / "axe-core" / "axe.min.js"
PAIR = "?pipeline=eviction%3Da2sf(budget%3D64)&beside=eviction%3Dstreaming_llm(budget%3D64)&generate=24"
_STOP = """(() => {
  const e = document.activeElement;
  return (e.getAttribute("aria-label") || e.innerText || e.tagName).trim().replaceAll("\\n", " ");
})()"""

# The contrast of an element's text on its own ground; axe measures neither what is disabled nor chips.
_CONTRAST = """(e) => {
  const style = getComputedStyle(e);
  const light = (colour) => colour.match(/[0-9.]+/g).slice(0, 3).map((part) => {
    const share = part / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  }).reduce((sum, part, i) => sum + part * [0.2126, 0.7152, 0.0722][i], 0);
  const [low, high] = [light(style.color), light(style.backgroundColor)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
}"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def axe() -> str:
    if not AXE.is_file():
        warnings.warn("contrast is not tested: `make axe` fetches axe-core, which measures it", stacklevel=1)
        pytest.skip(f"axe-core is not at {AXE}")
    return AXE.read_text()


def opened(browser: Any, link: str, scheme: str = "light") -> Any:
    context = browser.new_context(viewport={"width": 1500, "height": 1400}, color_scheme=scheme, bypass_csp=True)
    page = context.new_page()
    page.set_default_timeout(240_000)
    page.hosts = set()
    page.on("request", lambda request: page.hosts.add(urlsplit(request.url).hostname))
    page.goto(link)
    page.wait_for_selector(".js-plotly-plot .main-svg")
    settle(page)
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", [PAIR, f"scores{PAIR}", "gate", "channels", "spectra"])
def test_text_stands_out_from_its_ground(browser: Any, address: str, axe: str, path: str, scheme: str) -> None:
    page = opened(browser, f"{address}/{path}", scheme)
    page.evaluate(axe)
    found = page.evaluate("axe.run({ runOnly: ['color-contrast'] })")
    faint = {
        f"{node['any'][0]['data']['contrastRatio']}: {node['html'][:120]}"
        for violation in found["violations"]
        for node in violation["nodes"]
    }
    assert found["passes"], "axe measured nothing"
    assert not faint
    page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_chosen_tokens_and_a_run_that_cannot_be_pressed_are_readable(browser: Any, address: str, scheme: str) -> None:
    page = opened(browser, f"{address}/scores{PAIR}", scheme)
    chip = page.locator("[data-testid=stMultiSelect] [data-tag-index]").first
    assert chip.evaluate(_CONTRAST) >= 4.5
    if scheme == "dark":  # in the light theme Streamlit's own grey stands on white
        page.get_by_label("Text", exact=True).fill("")
        page.get_by_label("Text", exact=True).press("Control+Enter")
        page.locator("[data-testid=stBaseButton-primary]:disabled").first.wait_for()
        assert page.get_by_role("button", name="Run", exact=True).first.evaluate(_CONTRAST) >= 4.5
    page.context.close()


def test_a_few_tab_stops_lead_to_run_and_from_a_figure_to_its_export(browser: Any, address: str) -> None:
    page = opened(browser, address)
    stops: list[str] = []
    for _ in range(150):
        page.keyboard.press("Tab")
        stops.append(page.evaluate(_STOP))
    run = next(i for i, stop in enumerate(stops) if stop.endswith("Run"))
    export = next(i for i, stop in enumerate(stops) if stop.startswith("download"))
    pages = page.locator("[data-testid=stSidebarNavLink]").count()
    assert stops[0] == "Skip to main content" and pages and run <= pages + 1, stops[: run + 1]
    heading = max(i for i, stop in enumerate(stops[:export]) if "Replay" in stop or "Jump" in stop)
    assert export - heading <= 4, stops[heading : export + 1]
    assert page.locator(".modebar-btn").count() == 0
    page.context.close()


def test_nothing_comes_from_another_host(browser: Any, address: str) -> None:
    page = opened(browser, address)
    icon = page.locator("link[rel~=icon]").first.get_attribute("href")
    assert page.hosts <= {"localhost", None} and not str(icon).startswith("https:"), (page.hosts, icon)
    page.context.close()

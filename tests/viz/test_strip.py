"""The token strip in a real browser: nothing in a token is interpreted, and a click is told once."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.server import chromium, serving
from ui.strip import TokenCell, token_strip

HOSTILE = [
    "<img src=x onerror=window.hacked=1>",
    "<script>window.hacked=1</script>",
    "&lt;b&gt;",
    "{{data}} ${1} \\u003cb\\u003e",
    " مرحبا",
    "\u202egnp.exe",
    "👩\u200d🚀",
    "␀␛→",
    "  ",
    "\ud800",
    ".↵",
]
STATES = ["kept", "dropped", "sink", "recent", "future"]

APP = f"""
import streamlit as st
from ui.strip import TokenCell, token_strip

state = st.session_state
state.setdefault("token", 1)
state.setdefault("log", [])
if st.button("pick 3"):
    state.token = 3
if st.button("pick last"):
    state.token = 299
step = 1 if st.button("scrub") else 0
st.button("nothing")
st.text("log: " + " ".join(state.log))

texts = {HOSTILE!r}
texts += [f" w{{i}}" for i in range(len(texts), 300)]
states = {STATES!r}
cells = [TokenCell(i, t, states[(i + step) % 5], "", min(i, 298), i == 12) for i, t in enumerate(texts)]
a = token_strip(cells, selected=state.token, key="strip_a", label="Strip <i>A</i>")
few = [TokenCell(i, f"b{{i}}", "dropped", "dropped at step 40 by token 39", i, False) for i in range(900, 904)]
b = token_strip(few, selected=None, key="strip_b", label="Strip B")
log = [f"{{name}}{{click}}" for name, click in (("A", a), ("B", b)) if click is not None]
if log:
    state.log += log
    state.token = state.token if a is None else a
    st.rerun()
"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("strip")
    (folder / "strips.py").write_text(APP, encoding="utf-8")
    with serving(folder, folder / "strips.py") as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    page = _open(browser, address)
    yield page
    page.close()


@pytest.fixture(scope="module")
def still(browser: Any, address: str) -> Iterator[Any]:
    """A page for the tests that only look."""
    page = _open(browser, address)
    yield page
    page.close()


def _open(browser: Any, address: str, **options: Any) -> Any:
    page = browser.new_page(viewport={"width": 900, "height": 500}, **options)
    page.set_default_timeout(15_000)
    page.goto(address)
    _cell(page, 299).wait_for()
    _cell(page, 903).wait_for()
    return page


def _cell(page: Any, index: int) -> Any:
    return page.locator(f'[role=option][aria-label^="token {index} "]')


def _press(page: Any, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def _await_log(page: Any, log: str) -> None:
    page.get_by_text(f"log: {log}", exact=True).wait_for()


def _await_selected(page: Any, index: int) -> None:
    page.locator(f'[aria-selected=true][aria-label^="token {index} "]').wait_for()
    assert page.locator("[aria-selected=true]").count() == 1


def test_text_is_shown_literally_and_never_interpreted(still: Any) -> None:
    options = still.get_by_role("listbox", name="Strip <i>A</i>").get_by_role("option")
    shown = options.evaluate_all("cells => cells.map((cell) => cell.textContent)")[: len(HOSTILE)]
    assert shown == HOSTILE
    assert options.evaluate_all("cells => cells.reduce((sum, cell) => sum + cell.children.length, 0)") == 0
    assert still.evaluate("window.hacked") is None
    assert options.first.get_attribute("aria-label") == f"token 0 «{HOSTILE[0]}», kept"
    assert _cell(still, 900).get_attribute("aria-label") == "token 900 «b900», dropped at step 40 by token 39"


def test_the_tip_is_literal_too(still: Any) -> None:
    _cell(still, 0).hover()
    tip = still.locator(".tip:popover-open")
    assert tip.text_content() == f"token 0  «{HOSTILE[0]}», kept"
    assert still.evaluate("window.hacked") is None


def test_right_to_left_text_leaves_the_order_of_tokens_alone(still: Any) -> None:
    left = [_cell(still, i).bounding_box()["x"] for i in (3, 4, 5, 6)]
    tops = {_cell(still, i).bounding_box()["y"] for i in (3, 4, 5, 6)}
    assert len(tops) == 1 and left == sorted(left)


def test_a_line_ends_after_a_newline_mark(still: Any) -> None:
    end, start, list_ = (
        box.bounding_box() for box in (_cell(still, 10), _cell(still, 11), still.locator(".list").first)
    )
    assert start["y"] > end["y"]
    assert start["x"] < list_["x"] + 20


def test_pieces_of_one_character_touch_and_others_do_not(still: Any) -> None:
    boxes = [_cell(still, i).bounding_box() for i in (297, 298, 299)]
    gaps = [right["x"] - left["x"] - left["width"] for left, right in itertools.pairwise(boxes)]
    assert gaps[1] <= 0 < gaps[0]


def test_a_click_is_told_once_and_only_by_its_strip(page: Any) -> None:
    _cell(page, 4).click()
    _await_log(page, "A4")
    _await_selected(page, 4)
    _cell(page, 902).click()
    _await_log(page, "A4 B902")
    _press(page, "nothing")
    _cell(page, 4).click()
    _await_log(page, "A4 B902 A4")
    _await_selected(page, 4)


def test_a_later_selection_by_the_app_wins_over_a_click(page: Any) -> None:
    _cell(page, 5).click()
    _await_selected(page, 5)
    _press(page, "pick 3")
    _await_selected(page, 3)
    _press(page, "nothing")
    _await_log(page, "A5")
    _await_selected(page, 3)


def test_the_keyboard_reaches_every_token_through_one_tab_stop(page: Any) -> None:
    def focused() -> str:
        return page.evaluate("document.activeElement.shadowRoot?.activeElement?.ariaLabel.split(' ')[1]")

    assert page.locator(".list").first.locator("[tabindex='0']").count() == 1
    page.get_by_role("button", name="nothing", exact=True).focus()
    for _ in range(3):
        page.keyboard.press("Tab")
        if focused():
            break
    assert focused() == "1"
    walk = {"ArrowRight": "2", "ArrowLeft": "1", "End": "299", "Home": "0"}
    for key, reached in walk.items():
        page.keyboard.press(key)
        assert focused() == reached
    page.keyboard.press("ArrowDown")
    below = int(focused())
    assert _cell(page, below).bounding_box()["y"] > _cell(page, 0).bounding_box()["y"]
    page.keyboard.press("ArrowUp")
    assert focused() == "0"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    _await_log(page, "A2")
    _await_selected(page, 2)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    _await_log(page, "A2 A3")
    _await_selected(page, 3)
    assert focused() == "3"
    page.keyboard.press("Tab")
    assert focused() == "900"


def test_the_selected_token_scrolls_the_strip_and_not_the_page(page: Any) -> None:
    scrolled = "[...document.querySelectorAll('*')].reduce((sum, element) => sum + element.scrollTop, 0)"
    before = page.evaluate(scrolled)
    _press(page, "pick last")
    _await_selected(page, 299)
    list_, cell = (part.bounding_box() for part in (page.locator(".list").first, _cell(page, 299)))
    assert list_["y"] <= cell["y"] and cell["y"] + cell["height"] <= list_["y"] + list_["height"]
    assert list_["y"] + list_["height"] > 500, "the strip must reach below the window for this test to say anything"
    assert page.evaluate(scrolled) == before


def test_a_change_of_states_keeps_the_elements(page: Any) -> None:
    cell = _cell(page, 20)
    cell.evaluate("cell => (cell.mine = true)")
    assert cell.get_attribute("aria-label") == "token 20 « w20», kept"
    _press(page, "scrub")
    page.locator('[aria-label="token 20 « w20», dropped"]').wait_for()
    assert cell.evaluate("cell => cell.mine && cell.classList.contains('dropped')")


def test_states_differ_without_colour(still: Any) -> None:
    looks = """cell => {
        const style = getComputedStyle(cell);
        const strike = getComputedStyle(cell, "::before").borderTopStyle;
        return [style.borderTopStyle, style.fontWeight, style.textDecorationLine, strike].join();
    }"""
    assert len({still.locator(f".list .{state}").first.evaluate(looks) for state in STATES}) == len(STATES)
    assert _cell(still, 12).evaluate("cell => getComputedStyle(cell, '::after').borderTopStyle") == "dotted"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_faded_text_keeps_its_contrast(browser: Any, address: str, scheme: str) -> None:
    page = _open(browser, address, color_scheme=scheme)
    ink = page.locator(".list .dropped").first.evaluate("cell => getComputedStyle(cell).color")
    paper = page.get_by_test_id("stApp").evaluate("app => getComputedStyle(app).backgroundColor")
    page.close()
    assert (_luminance(paper) > 0.5) == (scheme == "light")
    dark, bright = sorted([_luminance(ink), _luminance(paper)])
    assert (bright + 0.05) / (dark + 0.05) >= 4.5


def _luminance(colour: str) -> float:
    """WCAG 2.2 relative luminance of a computed CSS colour."""
    scale = 1 if colour.startswith("color(") else 255
    channels = [float(number) / scale for number in re.findall(r"[\d.]+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_an_unknown_state_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        ValueError,
        match="allowed are kept, dropped, gated, hidden, unread, sink, recent, future",
    ):
        TokenCell(7, "the", "gone", "", 7, False)  # type: ignore[arg-type]


def test_two_tokens_of_one_index_are_refused() -> None:
    cells = [TokenCell(i, "the", "kept", "", i, False) for i in (4, 5, 5)]
    with pytest.raises(ValueError, match="token index 5 appears more than once"):
        token_strip(cells, selected=None, key="strip", label="Tokens")


def test_a_key_that_streamlit_cannot_carry_is_refused() -> None:
    with pytest.raises(ValueError, match="no double underscore"):
        token_strip([], selected=None, key="strip__a", label="Tokens")

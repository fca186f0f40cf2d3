"""Back, Forward, replay and reload, in a real browser."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import streamlit as st

from sparsity_core.models import PROMPTS
from tests.app.test_app import ROOT, visitor
from tests.app.visit import MODEL_SECONDS, OWN, ask, no_exception, opened, set_number
from tests.server import cache_with_models, settle

PATIENCE = 180  # s, on a busy machine


def asked(page: Any) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(page.url).query).items()}


def waits_for(page: Any, **wanted: str) -> None:
    """Waits until the address has these parameters and the script rests."""
    deadline = time.monotonic() + PATIENCE
    while any(asked(page).get(name) != value for name, value in wanted.items()):
        assert time.monotonic() < deadline, (wanted, page.url)
        page.wait_for_timeout(100)
    settle(page)


def entries(page: Any) -> int:
    return page.evaluate("history.length")


def shows_layer(page: Any, number: str) -> None:
    from playwright.sync_api import expect

    expect(page.get_by_label("Layer", exact=True)).to_have_value(number, timeout=1000 * PATIENCE)
    waits_for(page, layer=number)


def layer(page: Any) -> str:
    return page.get_by_label("Layer", exact=True).input_value()


def test_one_back_is_the_view_before_and_forward_the_one_after(browser: Any, address: str) -> None:
    from playwright.sync_api import expect

    page = opened(browser, address)
    waits_for(page, layer="15")
    first, last = entries(page), asked(page)["step"]
    for number in ("7", "12"):
        set_number(page, "Layer", int(number))
        waits_for(page, layer=number)
    page.get_by_role("link", name="Scores").click()
    page.wait_for_url(re.compile("/scores"))
    settle(page)
    page.get_by_role("link", name="Channels").click()
    page.wait_for_url(re.compile("/channels"))
    waits_for(page, layer="12", statistic="qk")
    assert entries(page) == first + 4  # two layers and two pages; what a page adds by default is no entry

    for path, number in (("/scores", "12"), ("/", "12"), ("/", "7"), ("/", "15")):
        page.go_back()
        waits_for(page, layer=number)
        assert urlsplit(page.url).path == path
        shows_layer(page, number)
        assert asked(page)["step"] == last
    for _ in range(3):
        page.go_forward()
        page.wait_for_timeout(300)  # the page of the one before is being drawn
    for _ in range(3):
        page.wait_for_timeout(300)
        page.go_back()
    expect(page.get_by_label("Layer", exact=True)).to_have_value("15", timeout=1000 * PATIENCE)
    assert (asked(page)["layer"], asked(page)["step"]) == ("15", last)
    page.go_forward()
    shows_layer(page, "7")
    page.go_forward()
    page.go_forward()  # at once: where they end is what is shown
    shows_layer(page, "12")
    if urlsplit(page.url).path == "/":  # on a busy machine the browser may take two presses for one
        page.go_forward()
    page.wait_for_url(re.compile("/scores"))
    shows_layer(page, "12")
    assert entries(page) == first + 4
    no_exception(page)
    page.context.close()


def test_what_a_run_of_the_script_set_before_it_was_ended_is_set_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSELENS_CACHE", str(cache_with_models(tmp_path)))
    monkeypatch.chdir(ROOT)
    at = visitor(tmp_path).run()
    at.slider(key="step").set_value(272)
    at.number_input(key="layer").set_value(15)
    browser_holds = at._tree
    at.session_state["requests"] = {"step": 100, "layer": 3}
    with monkeypatch.context() as ended:
        ended.setattr("ui.view.View", lambda **at: st.stop())  # the bar is set, and the page is not drawn
        at.run()
    at._tree = browser_holds  # nothing of that run arrived
    at.run()
    assert at.session_state["step"] == 100 and at.session_state["layer"] == 3
    assert at.query_params["step"] == "100" and at.query_params["layer"] == "3"
    at.slider(key="step").set_value(40).run()
    assert at.session_state["step"] == 40  # told once, the bar holds what a person moves it to


def test_fast_clicks_end_where_they_were_going(browser: Any, address: str) -> None:
    page = opened(browser, address)
    waits_for(page, layer="15")
    box = page.get_by_label("Layer", exact=True)
    for _ in range(6):
        box.press("ArrowUp")
    going = (
        box.input_value()
    )  # a press while the page draws may be lost on a busy machine, and then the box does not show it
    assert 15 < int(going) <= 21
    waits_for(page, layer=going)
    page.wait_for_timeout(1500)
    assert layer(page) == asked(page)["layer"] == going
    page.go_back()
    page.wait_for_timeout(500)
    settle(page)
    assert layer(page) == asked(page)["layer"] != going
    page.context.close()


def test_a_replay_is_one_choice(browser: Any, address: str) -> None:
    page = opened(browser, address)
    waits_for(page, layer="15")
    last = asked(page)["step"]
    before = entries(page)
    page.get_by_role("button", name="Replay").click()
    page.get_by_role("button", name="Pause").wait_for()
    page.wait_for_timeout(5000)
    assert entries(page) == before
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("button", name="Replay").wait_for()
    settle(page)
    assert asked(page)["step"] != last
    assert entries(page) == before + 1
    page.go_back()
    waits_for(page, step=last)
    no_exception(page)
    page.context.close()


@pytest.mark.slow
def test_a_reload_while_it_runs_finds_the_settings_and_the_run(browser: Any, address: str) -> None:
    from playwright.sync_api import expect

    page = opened(browser, address)
    page.get_by_text("smollm2-135m: ready", exact=True).wait_for(timeout=1000 * MODEL_SECONDS)
    text = (OWN * 3)[:1400]
    ask(page, text, budget=24, generate=64)
    page.get_by_role("button", name="Cancel").wait_for()
    waits_for(page, pipeline="eviction=a2sf(budget=24)")
    page.reload()
    page.get_by_text("This view is being computed").wait_for()
    expect(page.get_by_label("Text", exact=True)).to_have_value(text, timeout=1000 * PATIENCE)
    expect(page.get_by_label("budget", exact=True)).to_have_value("24", timeout=1000 * PATIENCE)
    page.get_by_text("a2sf(budget=24)", exact=True).first.wait_for(timeout=1000 * MODEL_SECONDS)
    no_exception(page)
    page.go_back()
    page.get_by_text("a2sf(budget=64)", exact=True).first.wait_for()
    expect(page.get_by_label("budget", exact=True)).to_have_value("64", timeout=1000 * PATIENCE)
    expect(page.get_by_label("Text", exact=True)).to_have_value(PROMPTS["needle"].text, timeout=1000 * PATIENCE)
    page.context.close()

"""A trace in one HTML file says what the trace says, in a browser without a network, and nothing in its text acts."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sparsity_core import Trace
from tests import traces
from tests.server import chromium
from viz.strip import strip_table

HOSTILE = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<!--",
    "$data",
    "\u202etfel",
    "مرحبا",
    "\ud83d",
    "&lt;",
]


def hostile() -> Trace:
    made = traces.told_apart(tokens=HOSTILE, texts=HOSTILE, continuation="<b>&amp;</b>")
    about = replace(made.provenance, model="<script>alert(2)</script>")
    return made.replaced(provenance=about, notes=("<i>note</i>", "\u2028"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


def opened(browser: Any, path: Any, scheme: str = "light") -> tuple[Any, list[str]]:
    """The page of a file where nothing can be reached, and what its console and its requests said."""
    page = browser.new_page(color_scheme=scheme, offline=True)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(f"dialog: {dialog.message}") or dialog.dismiss())
    page.on(
        "request",
        lambda asked: said.append(asked.url) if not asked.url.startswith(("file:", "data:", "blob:")) else None,
    )
    page.goto(path.as_uri())
    page.wait_for_selector("#strip bdi")
    return page, said


def test_it_is_one_file_that_names_no_other_and_is_the_same_each_time(tmp_path):
    trace = traces.trace()
    trace.to_html(tmp_path / "one.html")
    trace.to_html(tmp_path / "two.html")
    text = (tmp_path / "one.html").read_text()
    assert (tmp_path / "two.html").read_text() == text
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!data:)", text.replace("// ", ""))
    assert "default-src 'none'" in text and "unsafe-eval" not in text


def test_text_of_a_trace_is_data_and_not_markup(tmp_path):
    hostile().to_html(tmp_path / "t.html")
    text = (tmp_path / "t.html").read_bytes().decode()
    assert text.count("<script") == 2 and "<img" not in text and "\u202e" not in text
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
    assert data["tokens"] == HOSTILE and data["notes"] == ["<i>note</i>", "\u2028"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_hostile_text_is_shown_as_text_without_a_network(browser, tmp_path, scheme):
    hostile().to_html(tmp_path / "t.html")
    page, said = opened(browser, tmp_path / "t.html", scheme)
    shown = [span.text_content() for span in page.query_selector_all("#strip bdi")]
    assert shown == HOSTILE
    assert "<script>alert(2)</script>" in page.text_content("#made")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == (
        "rgb(251, 251, 252)" if scheme == "light" else "rgb(16, 19, 26)"
    )
    assert said == []
    page.close()


STATE = """([layer, head, step]) => {
  look({ layer, head, step });
  return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() =>
    done([...document.querySelectorAll("#strip bdi")].map((span) => span.className)))));
}"""


@pytest.mark.parametrize("made", ["trace", "told_apart"])
def test_each_layer_head_and_step_shows_the_states_that_the_trace_tells(browser, tmp_path, made):
    trace = getattr(traces, made)()
    trace.to_html(tmp_path / "t.html")
    page, said = opened(browser, tmp_path / "t.html")
    for layer, head, step in itertools.product(range(2), ("first", "last", 0, 1), range(trace.n_tokens)):
        expected = strip_table(trace, layer, head, step)["state"].tolist()
        assert page.evaluate(STATE, [layer, head, step]) == expected, (layer, head, step)
    assert said == []
    page.close()


def test_scores_losses_and_the_token_s_story_are_the_trace_s(browser, tmp_path):
    traces.trace().to_html(tmp_path / "t.html")
    page, said = opened(browser, tmp_path / "t.html")
    page.evaluate(STATE, [0, "0", 7])
    page.evaluate("look({ token: 3 })")
    page.wait_for_selector("#told bdi:has-text('on')")
    told = page.text_content("#told")
    assert "evicted for good at step 5, while ·mat was read, 2 tokens after it" in told  # EVICTED_AT is 6
    assert "0.125" in told  # what query 5 dropped in layer 0, KV head 0
    page.click("text=Table: this token's scores")
    rows = [
        [cell.text_content() for cell in row.query_selector_all("td")]
        for row in page.query_selector_all("#scores_table tbody tr")
    ]
    assert rows == [["4", "4", "0.25"]]  # of the steps 1, 4 and 7, token 3 is in the cache at 4
    assert "highest is 2 nats at token 7" in page.get_attribute("#loss", "aria-label")
    assert said == []
    page.close()


def test_a_keyboard_reaches_token_layer_and_step(browser, tmp_path):
    traces.trace().to_html(tmp_path / "t.html")
    page, said = opened(browser, tmp_path / "t.html")
    page.evaluate("look({ layer: 0, token: 3, step: 5, head: 'first' })")
    page.focus("#strip")
    for key in ("ArrowRight", "ArrowUp", ".", "End", "ArrowLeft"):
        page.keyboard.press(key)
    assert page.evaluate("[at.layer, at.token, at.step]") == [1, 6, 6]
    page.focus("#layer")
    page.keyboard.press("ArrowUp")
    assert page.evaluate("at.layer") == 0
    page.focus("#step")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("at.step") == 5
    page.wait_for_timeout(600)  # the page's own script policy forbids to wait for an expression
    assert "step=5" in page.evaluate("location.hash")
    assert page.evaluate(
        "[...document.querySelectorAll('canvas')].every((c) => c.hidden || c.offsetParent === null || c.ariaLabel)"
    )
    assert said == []
    page.close()


def test_what_was_not_measured_is_left_out(browser, tmp_path):
    Trace.from_kept(range(6), [[[0, 4, 5], [2, 3, 5]]] * 3, dropped_at=5, method="theirs").to_html(tmp_path / "t.html")
    page, said = opened(browser, tmp_path / "t.html")
    assert page.is_hidden("#scores_part") and page.is_hidden("#loss_part")
    assert "These selections were made elsewhere" in page.text_content("#notes")
    assert (
        page.text_content("#facts dd") == "86%"
    )  # at the last of 6 queries 3 of 6 keys are gone: 18 of 21 pairs are left
    assert said == []
    page.close()


def test_a_trace_of_8192_tokens_is_one_file_below_20_mb(browser, tmp_path):
    """As large as SmolLM2-135M's, with random drops and scores, which pack worst."""
    layers, heads, n, steps = 30, 3, 8192, 16
    draw = np.random.default_rng(0)
    late = np.arange(n) + 1 + draw.integers(0, n, (layers, heads, n))
    random = draw.random((layers, heads, n), np.float32)
    trace = Trace.from_kept(range(n), np.ones((layers, heads, n), bool)).replaced(
        evicted_at=np.minimum(late, n).astype(np.int32),
        threshold=random,
        snapshot_steps=np.linspace(0, n - 1, steps).astype(np.int32),
        snapshots=np.repeat(random[:, :, None], steps, axis=2),
        kl_to_dense=draw.random(n).astype(np.float32),
    )
    trace.to_html(tmp_path / "t.html")
    assert (tmp_path / "t.html").stat().st_size < 20e6
    page, said = opened(browser, tmp_path / "t.html")
    assert page.locator("#strip bdi").count() == 512 and page.is_visible("#overview")
    seconds = page.evaluate("""() => new Promise((done) => {
      const began = performance.now();
      look({ step: 5000, layer: 3 });
      requestAnimationFrame(() => setTimeout(() => done((performance.now() - began) / 1000)));
    })""")
    assert seconds < 1
    assert said == []
    page.close()

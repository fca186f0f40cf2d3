"""The pages in Streamlit's own test harness: what they draw follows what is chosen, and bad input loses nothing."""

from __future__ import annotations

import json
import re
import shlex
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from sparsity_core import run
from sparsity_core.record import Provenance, View
from sparsity_core.record.spec import RunSpec
from sparsity_core.record.store import Store
from tests import tiny
from tests.server import cache_with_models
from ui import figure
from ui.literal import code
from ui.session import EXAMPLE
from ui.view import opening_step

ROOT = Path(__file__).parents[2]
PAGES = sorted(path.stem for path in (ROOT / "pages").glob("[a-z]*.py") if path.stem != "figures")  # empty at first


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    monkeypatch.setenv("SPARSELENS_CACHE", str(cache_with_models(tmp_path)))
    monkeypatch.chdir(ROOT)
    return visitor(tmp_path)


def visitor(tmp_path: Path) -> AppTest:
    """A new session whose browser has painted the page, as AppTest has no browser to say so: its charts are drawn."""
    # From a folder of its own: beside a folder named `pages`, AppTest takes the pages for scripts at every run.
    script = tmp_path / "main.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom app import main\nmain()\n")
    at = AppTest.from_file(str(script), default_timeout=120)
    at.session_state["painted"] = True
    return at


def unfold(at: AppTest, key: str) -> None:
    """Opens an expander, whose widgets are there only then."""
    at.session_state[key] = True
    at.run()


def titles(at: AppTest) -> list[str]:
    return [element.value for element in at.subheader]


def figures(at: AppTest) -> list[dict[str, Any]]:
    return [json.loads(chart.proto.spec) for chart in at.get("plotly_chart")]


def said(at: AppTest) -> str:
    return " ".join(e.value for kind in (at.warning, at.error, at.info, at.caption) for e in kind)


def open_page(at: AppTest, name: str) -> None:
    """AppTest.switch_page knows pages that are files; ours are functions, found by their address."""
    at._page_hash = next(key for key, info in at._registered_pages.items() if info.get("url_pathname") == name)
    at.run()


def finish(at: AppTest, most: float = 240, purpose: str = "run") -> None:
    """Polls, as the page's fragment does, until nothing is waited for any more."""
    deadline = time.monotonic() + most
    while "pending" in at.session_state and purpose in at.session_state["pending"]:
        assert time.monotonic() < deadline, "the run did not finish"
        time.sleep(0.3)
        at.run()
    at.run()


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("beside", [None, "eviction=streaming_llm(budget=64)"])
def test_every_page_draws_the_bundled_example_without_a_model(app: AppTest, page: str, beside: str | None) -> None:
    if beside:
        app.query_params["beside"] = beside
        app.query_params["pipeline"] = "eviction=a2sf(budget=64)"
        app.query_params["generate"] = "24"
    app.run()
    if page != "tokens":
        open_page(app, page)
    assert not app.exception
    # Patterns has one figure, in which A and B are panels; Reproduce has one, of the chosen claim.
    least = 1 if page in ("patterns", "reproduce") else 3 if beside else 2
    assert len(figures(app)) >= least
    assert all(figure["layout"]["template"]["layout"]["font"]["family"] for figure in figures(app))


@pytest.mark.parametrize("page", ["tokens", "scores", "gate", "channels"])
def test_a_text_of_one_token_is_drawn(app: AppTest, page: str, smollm: object) -> None:
    app.query_params["pipeline"] = "eviction=a2sf(budget=64)"
    app.query_params["text"] = "Hi"
    app.run()
    finish(app)
    if page != "tokens":
        open_page(app, page)
    assert not app.exception
    assert app.slider(key="step").disabled
    assert "the text has 1 token and the budget is 64. Read a longer text." in said(app)


def test_the_settings_stay_where_a_page_fails(app: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise RuntimeError("a fault of a page")

    monkeypatch.setattr("app.view_bar", fail)
    app.run()
    assert "a fault of a page" in app.exception[0].value
    assert app.button(key="run")


def test_a_file_that_is_refused_leaves_the_text_and_its_sentence_goes_with_the_next(app: AppTest) -> None:
    app.run()
    unfold(app, "upload")
    app.text_area(key="prompt_text").set_value("my own text").run()
    app.file_uploader(key="prompt_file").set_value(("empty.txt", b" ", "text/plain")).run()
    assert "empty.txt is empty: give a file with some text. The text above is unchanged." in said(app)
    assert app.text_area(key="prompt_text").value == "my own text"
    app.text_area(key="prompt_text").set_value("another text").run()
    assert "empty.txt" not in said(app)


def test_charts_wait_until_the_browser_has_painted_the_page(app: AppTest) -> None:
    del app.session_state["painted"]
    app.run()
    assert not app.exception
    assert not figures(app)
    assert "Tokens at step" in " ".join(titles(app))
    app.session_state["painted"] = True
    app.run()
    assert len(figures(app)) == 2


def test_what_is_folded_away_keeps_its_value(app: AppTest) -> None:
    app.run()
    unfold(app, "A_a2sf_more")
    app.number_input(key="A_a2sf_recent").set_value(9).run()
    app.session_state["A_a2sf_more"] = False
    app.run().run()
    assert not [box for box in app.number_input if box.key == "A_a2sf_recent"]
    unfold(app, "A_a2sf_more")
    assert app.number_input(key="A_a2sf_recent").value == 9
    app.session_state["A_a2sf_more"] = False
    app.run()
    app.button(key="run").click().run()
    assert "recent=9" in app.session_state["wanted"][0].pipeline


def test_choosing_a_layer_head_token_or_step_moves_every_figure(app: AppTest) -> None:
    app.run()
    before = json.dumps(figures(app)[0])
    for number, value in (("layer", 3), ("token", 20)):
        app.number_input(key=number).set_value(value).run()
        after = json.dumps(figures(app)[0])
        assert after != before, number
        before = after
    app.selectbox(key="head").set_value(2).run()
    assert json.dumps(figures(app)[0]) != before
    app.slider(key="step").set_value(100).run()
    assert not app.exception
    assert "step 100, layer 3" in " ".join(titles(app))
    drops = [z for trace in figures(app)[0]["data"] if trace.get("name") == "dropped" for z in [trace["z"]]]
    assert drops
    assert app.query_params["step"] == "100" and app.query_params["layer"] == "3"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda at: at.number_input(key="A_a2sf_budget").set_value(0), "budget is at least 1; got 0"),
        (lambda at: at.number_input(key="A_a2sf_budget").set_value(-5), "budget is at least 1; got -5"),
        (lambda at: at.number_input(key="A_a2sf_recent").set_value(100), "above the budget of 64"),
        (lambda at: at.text_input(key="A_a2sf_forgetting_factor").set_value("1.5"), "lies between 0 and 1"),
        (
            lambda at: at.text_input(key="A_a2sf_forgetting_factor").set_value("[0.1,"),
            "Forgetting factor: cannot read the value",
        ),
        (lambda at: at.text_input(key="A_a2sf_forgetting_factor").set_value(""), "Forgetting factor: cannot read"),
        (lambda at: at.text_area(key="prompt_text").set_value("  "), "prompt is empty"),
    ],
    ids=[
        "budget 0",
        "budget negative",
        "protected above budget",
        "factor above 1",
        "factor unreadable",
        "no factor",
        "empty prompt",
    ],
)
def test_bad_input_is_a_sentence_and_the_view_stays(app: AppTest, change: Any, sentence: str) -> None:
    app.run()
    unfold(app, "A_a2sf_more")
    before = len(figures(app))
    change(app).run()
    assert not app.exception
    assert sentence in said(app)
    assert len(figures(app)) == before
    run = app.button(key="run")
    assert run.disabled


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"pipeline": "eviction=a2fs(budget=8)"}, "did you mean 'a2sf'"),
        ({"pipeline": "evicting=a2sf"}, "did you mean 'eviction'"),
        ({"pipeline": "dense", "prompt": "nowhere"}, "no prompt 'nowhere'"),
        ({"pipeline": "dense", "seed": "x"}, "whole numbers"),
    ],
    ids=str,
)
def test_a_link_that_cannot_be_followed_opens_the_example_and_says_why(
    app: AppTest, parameters: Any, sentence: str
) -> None:
    for name, value in parameters.items():
        app.query_params[name] = value
    app.run()
    assert not app.exception
    assert sentence in said(app)
    assert figures(app)


def test_run_computes_what_the_bar_asks_for_and_keeps_it(app: AppTest) -> None:
    app.run()
    app.text_area(key="prompt_text").set_value("One fish, two fish, red fish, blue fish, and a very old boat.").run()
    app.number_input(key="A_a2sf_budget").set_value(6).run()
    unfold(app, "run_settings")
    app.number_input(key="generate").set_value(0).run()
    app.button(key="run").click().run()
    finish(app)
    assert not app.exception
    assert [spec.pipeline for spec in app.session_state["specs"]] == ["eviction=a2sf(budget=6)"]
    assert any("a2sf(budget=6)" in m.value for m in app.markdown)


def test_a_failed_run_is_a_sentence_and_the_view_stays(app: AppTest) -> None:
    app.run()
    app.text_input(key="A_a2sf_forgetting_factor").set_value("[0.1, 0.5]").run()
    app.button(key="run").click().run()
    finish(app)
    assert not app.exception
    assert "lists 2 layers and the model has 30" in said(app)
    assert any("a2sf(budget=64)" in m.value for m in app.markdown)
    app.text_input(key="A_a2sf_forgetting_factor").set_value("0.5").run()
    assert "lists 2 layers" not in said(app)


def test_a_prompt_too_long_for_the_model_is_said_before_a_run(app: AppTest, smollm: object) -> None:
    app.run()
    app.text_area(key="prompt_text").set_value("word " * 9000).run()
    assert "smollm2-135m reads at most 8,192: shorten it by" in said(app)
    assert app.button(key="run").disabled


def test_a_prompt_too_long_for_a_link_is_found_again_where_it_was_run(app: AppTest, tmp_path: Path) -> None:
    spec = replace(EXAMPLE, prompt="A long story. " * 200, generate=0)
    app.session_state["specs"], app.session_state["view"] = [spec], {}
    app.session_state["followed"] = True
    app.run()
    assert app.query_params["prompt"].startswith("long-")
    other = visitor(tmp_path)
    for name, value in app.query_params.items():
        other.query_params[name] = value
    other.session_state["followed"] = True
    other.run()
    assert other.session_state["specs"] == [spec]
    assert not other.warning
    other = visitor(tmp_path)
    other.query_params["prompt"], other.query_params["pipeline"] = "long-0123456789abcdef", "dense"
    other.run()
    assert "found again only where it was run" in said(other)


def test_the_step_stays_when_a_longer_text_is_shown_but_one_that_nobody_chose(app: AppTest) -> None:
    app.run()
    longest, opened = app.slider(key="step").max, app.slider(key="step").value
    shorter = replace(EXAMPLE, generate=0, seed=40)  # a spec of no other test
    trace = run(tiny.model(), tiny.ids(40), "eviction=a2sf(budget=8)")  # any run of fewer tokens
    assert Store().put(shorter, trace) is None
    opening = opening_step([trace])
    assert 17 < opening < 39
    for at_step, then in ((39, longest), (17, 17), (opening, opened)):
        app.session_state["specs"] = [shorter]
        app.run()
        app.slider(key="step").set_value(at_step).run()
        app.session_state["specs"] = [EXAMPLE]
        app.run()
        assert app.slider(key="step").value == app.session_state["step"] == then


def test_a_second_method_keeps_its_settings_while_it_is_put_away(app: AppTest) -> None:
    app.run()
    app.button(key="add_pipeline").click().run()
    app.selectbox(key="B_method").set_value("h2o").run()
    app.number_input(key="B_h2o_budget").set_value(21).run()
    app.button(key="open_A").click().run().run()
    assert not [box for box in app.selectbox if box.key == "B_method"]
    assert app.number_input(key="A_a2sf_budget").value == 64
    app.button(key="open_B").click().run()
    assert app.selectbox(key="B_method").value == "h2o"
    assert app.number_input(key="B_h2o_budget").value == 21
    app.selectbox(key="B_method").set_value("tova").run()
    assert app.number_input(key="B_tova_budget").value == 21


def test_what_cannot_be_stored_is_shown_all_the_same(app: AppTest, tmp_path: Path) -> None:
    (tmp_path / "traces").write_text("a file where the folder should be")
    app.run()
    app.text_area(key="prompt_text").set_value("A short text about nothing in particular, twice over and over.").run()
    app.number_input(key="A_a2sf_budget").set_value(5).run()
    unfold(app, "run_settings")
    app.number_input(key="generate").set_value(0).run()
    app.button(key="run").click().run()
    finish(app)
    assert not app.exception
    assert "could not be kept" in said(app)
    assert any("a2sf(budget=5)" in m.value for m in app.markdown)


def test_no_text_of_a_user_is_ever_rendered_as_html() -> None:
    for path in [
        ROOT / "app.py",
        *(ROOT / "ui").rglob("*.py"),
        *(ROOT / "ui").rglob("*.js"),
        *(ROOT / "pages").glob("*.py"),
    ]:
        code = path.read_text()
        assert "unsafe_allow_html" not in code and "st.html(" not in code, path
        assert not re.search(r"(inner|outer)HTML\s*\+?=|insertAdjacentHTML|document\.write|DOMParser|srcdoc", code), (
            path
        )
        assert path.suffix == ".js" or "`{" not in code, f"{path}: a backtick in the text would end such a code span"


@pytest.mark.parametrize(
    "hostile", ["$(touch ran)", "`touch ran`", '"; touch ran; "', "'; touch ran; '", "x\ntouch ran"]
)
def test_a_command_that_is_shown_runs_nothing_that_a_link_brought(hostile: str) -> None:
    spec = RunSpec(model=hostile, prompt="p", pipeline=hostile, device=hostile, dtype=hostile)
    words = shlex.split(figure._command(spec), posix=True)
    assert words[:2] == ["sparselens", "run"]
    given = dict(zip(words[2::2], words[3::2], strict=True))
    assert [given[f"--{name}"] for name in ("model", "pipeline", "device", "dtype")] == [hostile] * 4
    for path in [*(ROOT / "ui").rglob("*.py"), *(ROOT / "sparsity_core").rglob("*records.py")]:
        assert not re.search(r"--(model|pipeline|weights|device|dtype) \"?\{(?!quote\()", path.read_text()), path


@pytest.mark.parametrize("text", ["a2sf(budget=64)", "a `b", "``` ![x](https://example.org/x.png) `", "`"])
def test_a_code_span_ends_where_its_text_does(text: str) -> None:
    span = code(text)
    fence = re.match("`+", span)[0]
    assert span.endswith(fence) and set(fence) == {"`"}
    inside = span[len(fence) : -len(fence)]
    assert inside.strip() == text.strip()
    assert fence not in re.findall("`+", inside)


def test_a_figures_file_tells_the_view_that_it_shows(app: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Provenance] = []
    monkeypatch.setattr(figure, "export_panel", lambda item: made.append(item.provenance))
    for name, value in {"layer": "3", "head": "last", "token": "20", "step": "100"}.items():
        app.query_params[name] = value
    app.run()
    unfold(app, "export_atlas_A")
    seen = Provenance.from_json(made[-1].to_json()).view
    assert seen == View(layer=3, head="last", token=20, step=100, page="tokens")


def test_a_rule_that_a_link_brings_is_shown_and_not_followed(app: AppTest) -> None:
    app.query_params["pipeline"] = "eviction=a2sf(budget=16, protect='/`![x](https:..example.org.x.png)`/')"
    app.query_params["prompt"] = "needle"
    app.run()
    finish(app)
    assert not app.exception
    shown = [m.value for m in app.markdown if "example.org" in m.value]
    assert shown and all(m.startswith("`` a2sf(") and m.endswith(" ``") for m in shown)

"""Pages drawn from stored traces: links, uploads, bad input, and figures checked by their data."""

from __future__ import annotations

import base64
import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

import app as app_module
from sparsity_core.record.store import Store
from sparsity_core.record.trace import Trace
from tests import traces
from tests.app.test_app import ROOT, figures, open_page, said, unfold, visitor
from tests.server import cache_with_models
from ui.bundle import BESIDE
from ui.literal import literal
from ui.session import EXAMPLE
from ui.view import opening_step
from viz import atlas, scores

PAIR = {"prompt": "needle", "pipeline": EXAMPLE.pipeline, "beside": BESIDE.pipeline, "generate": str(EXAMPLE.generate)}


def opened(tmp_path: Path, **link: str) -> AppTest:
    """A new browser on the address with these parameters."""
    at = visitor(tmp_path)
    for name, value in link.items():
        at.query_params[name] = value
    at.run()
    assert not at.exception
    return at


def cells(figure: dict[str, Any], name: str) -> np.ndarray:
    (data,) = [data for data in figure["data"] if data.get("name") == name]
    return decoded(data["z"])


def decoded(value: Any) -> np.ndarray:
    """An array as Plotly sends it: base64 of its bytes, or a list."""
    if not isinstance(value, dict):
        return np.asarray(value, np.float64)
    array = np.frombuffer(base64.b64decode(value["bdata"]), np.dtype(value["dtype"]))
    return array.reshape([int(n) for n in str(value.get("shape", array.size)).split(",")])


def example() -> Trace:
    trace = Store().get(EXAMPLE)
    assert trace is not None, "the example is not bundled: run `make assets`"
    return trace


# --- what holds for every page ---


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No results but the bundled ones."""
    monkeypatch.setenv("SPARSELENS_CACHE", str(cache_with_models(tmp_path)))


@pytest.fixture(params=sorted(path.stem for path in (ROOT / "pages").glob("[a-z]*.py")))
def page_name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_every_file_among_the_pages_is_in_the_navigation_and_asks_a_question(page_name: str) -> None:
    module = importlib.import_module(f"pages.{page_name}")
    assert app_module.PAGES[page_name] is module
    assert module.PAGE.title and module.PAGE.icon.startswith(":material/")
    assert (module.__doc__ or "").strip().endswith("?")
    assert set(app_module.PAGES) == {path.stem for path in (ROOT / "pages").glob("[a-z]*.py")}


@pytest.mark.parametrize("link", [{}, PAIR], ids=["one", "A and B"])
def test_every_figure_has_alt_text_a_line_to_read_it_by_its_table_and_its_downloads(
    tmp_path: Path, page_name: str, link: dict[str, str]
) -> None:
    at = opened(tmp_path, **link)
    open_page(at, "" if page_name == "tokens" else page_name)
    assert not at.exception
    if page_name == "figures":  # which shows what is pinned, and nothing is
        assert at.info and not at.get("plotly_chart")
        return
    charts = at.get("plotly_chart")
    assert charts
    assert all(chart.proto.alt and chart.proto.theme == "" for chart in charts)
    assert not at.get("download_button"), "what nobody has opened is not drawn"
    names = open_exports(at)
    assert len(names) >= len(charts)
    for name in names:
        labels = {b.label for b in at.get("download_button") if b.key.split("_", 1)[1] == name}
        read = (
            {"prompt.txt, which the command reads"} if any("--file prompt.txt" in c.value for c in at.code) else set()
        )
        assert labels == {"PDF", "SVG", "PNG", "HTML", "CSV", "JSON", WHOLE} | read
    # Compare has a table below its first figure, Reproduce one above it, Channels one of what was written; of two runs the
    # figures are a table, and on Compare how far their texts went.
    needs = app_module.PAGES[page_name].PAGE.needs
    of_model = needs == "model"
    tables = (page_name in ("compare", "reproduce", "channels")) + bool(link) * (
        (needs == "run") + (page_name == "compare")
    )
    assert len(at.dataframe) == len(names) + tables
    if link and not of_model and page_name != "channels":  # there A and B differ in what they read alone
        own = {name[-1] for name in names if name.endswith(("_A", "_B"))}
        # B decides by position and has no scores of its own to draw; the regret of both is one figure
        assert own == ({"A"} if page_name == "scores" else {"A", "B"})
        assert ("regret" in names) == (page_name == "scores")


WHOLE = "All of it, with caption, LaTeX, BibTeX and script (zip)"


def open_exports(at: AppTest) -> set[str]:
    """Opens every figure's downloads, which AppTest cannot press; returns the figures' names."""
    names = {block.proto.popover.id.partition("-export_")[2] for block in at.get("popover")} - {""}
    for name in names:
        at.session_state[f"export_{name}"] = True
    at.run()
    assert not at.exception
    return names


def test_a_choice_outlives_the_way_to_another_page_and_back(tmp_path: Path) -> None:
    at = opened(tmp_path)
    at.number_input(key="layer").set_value(7).run()
    at.selectbox(key="head").set_value("last").run()
    at.slider(key="step").set_value(99).run()
    at.number_input(key="A_a2sf_budget").set_value(48).run()
    for page in ("scores", "", "scores", ""):
        open_page(at, page)
        chosen = {name: at.session_state[name] for name in ("layer", "head", "step", "A_a2sf_budget")}
        assert chosen == {"layer": 7, "head": "last", "step": 99, "A_a2sf_budget": 48}
        assert {name: at.query_params[name] for name in ("layer", "head", "step")} == {
            "layer": "7", "head": "last", "step": "99"
        }  # fmt: skip


def test_settings_of_runs_outlive_a_page_that_has_none(tmp_path: Path) -> None:
    at = opened(tmp_path, **PAIR)
    at.number_input(key="A_a2sf_budget").set_value(48).run()
    at.text_area(key="prompt_text").set_value("A text of one's own.").run()
    open_page(at, "spectra")
    open_page(at, "spectra")
    assert not [b for b in at.button if b.key == "run"] and not at.text_area
    open_page(at, "")
    assert at.number_input(key="A_a2sf_budget").value == 48
    assert at.text_area(key="prompt_text").value == "A text of one's own."
    at.button(key="open_B").click().run()
    assert at.selectbox(key="B_method").value == "streaming_llm"


def test_each_run_says_what_it_was_computed_with(tmp_path: Path) -> None:
    at = opened(tmp_path, **PAIR)
    made = [caption.value for caption in at.caption if "computed when this trace was made" in caption.value]
    assert [text[:3] for text in made] == ["A: ", "B: "]


# --- the figures follow what is chosen ---


def test_the_atlas_on_the_page_is_the_table_of_what_is_chosen(tmp_path: Path) -> None:
    at, trace = opened(tmp_path), example()
    for head, step in ((0, 272), (2, 272), (2, 100), ("last", 100), ("first", 7)):
        at.selectbox(key="head").set_value(head)
        at.slider(key="step").set_value(step).run()
        table = atlas.atlas_table(trace, head, step)
        shown = cells(figures(at)[0], "dropped")
        np.testing.assert_array_equal(shown.ravel(), table["dropped_in"].to_numpy(np.float32), str((head, step)))
        assert f"Tokens at step {step}, layer 15" in [title.value for title in at.subheader]
    at.number_input(key="layer").set_value(4)
    at.number_input(key="token").set_value(30).run()
    layout = figures(at)[0]["layout"]
    frames = [shape for shape in layout["shapes"] if shape["type"] == "rect"]
    assert [(frame["y0"], frame["y1"]) for frame in frames] == [(3.5, 4.5)]
    assert [note["x"] for note in layout["annotations"] if note["text"] == "▼"] == [30]


def test_a_clicked_cell_is_followed_in_the_same_run(tmp_path: Path) -> None:
    at = opened(tmp_path, **PAIR)
    click(at, "atlas_B", {"x": 30, "y": 4})
    assert (at.session_state["layer"], at.session_state["token"]) == (4, 30)
    assert f"Tokens at step {at.session_state['step']}, layer 4" in [title.value for title in at.subheader]
    assert (at.query_params["layer"], at.query_params["token"]) == ("4", "30")
    at.number_input(key="layer").set_value(9).run()
    assert at.session_state["layer"] == 9, "a click is told once"


def click(at: AppTest, figure: str, point: dict[str, int]) -> None:
    """What a browser sends when a point of a figure is clicked, which AppTest cannot do."""
    (ear,) = [found for found in at.get("bidi_component") if found.proto.id.endswith(f"-clicks_figure_{figure}")]
    assert json.loads(ear.proto.json) == {"figure": f"figure_{figure}"}
    states = at._tree.get_widget_states()
    clicked = json.dumps([{"event": "clicked", "value": point}])
    states.widgets.add(id=f"$$STREAMLIT_INTERNAL_KEY_{ear.proto.id}__events", json_trigger_value=clicked)
    at._run(states)
    assert not at.exception


def test_the_scores_on_the_page_are_those_of_the_chosen_layer_and_head(tmp_path: Path) -> None:
    at, trace = opened(tmp_path), example()
    open_page(at, "scores")
    for layer, head in ((15, 0), (3, 0), (3, 2)):
        at.selectbox(key="head").set_value(head)
        at.number_input(key="layer").set_value(layer).run()
        table = scores.score_table(trace, layer, head, [])
        line = figures(at)[0]["data"][0]
        assert line["name"].startswith("threshold")
        np.testing.assert_allclose(decoded(line["y"]), table["score"], rtol=1e-6)


def test_two_that_drop_nothing_stand_side_by_side(tmp_path: Path) -> None:
    one, other = (f"eviction={name}(budget=4000)" for name in ("a2sf", "h2o"))
    for pipeline in (one, other):
        trace = traces.kept_all(provenance=replace(traces.trace().provenance, pipeline=pipeline))
        Store().put(replace(EXAMPLE, pipeline=pipeline), trace)
    at = opened(tmp_path, **{**PAIR, "pipeline": one, "beside": other})
    assert len(figures(at)) == 4
    assert "Mean Jaccard index of the dropped sets over the layers, 1 where they are the same: 1.00." in said(at)


def test_both_lines_of_a_comparison_are_in_its_table(tmp_path: Path) -> None:
    at = opened(tmp_path, **PAIR)
    open_exports(at)
    tables = [frame.value for frame in at.dataframe if "kl_to_dense" in frame.value]
    assert [sorted(set(table["pipeline"].str[0])) for table in tables] == [["A", "B"]]


# --- links ---


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ({"layer": "4", "head": "last", "token": "9", "step": "30"}, (4, "last", 9, 30)),
        ({"layer": "999", "head": "77", "token": "999", "step": "-4"}, (29, 0, 272, 0)),
        ({"layer": "abc", "head": "-1", "token": "²", "step": "1e3"}, (15, 0, 111, None)),
        ({"layer": "--5", "head": "²", "token": "", "step": "9" * 5000}, (15, 0, 111, 272)),
    ],
    ids=["inside", "outside", "unreadable", "hostile"],
)
def test_a_links_place_is_kept_inside_the_trace(
    tmp_path: Path, given: dict[str, str], shown: tuple[int, int | str, int, int | None]
) -> None:
    at, (*place, step) = opened(tmp_path, **given), shown
    assert [at.session_state[name] for name in ("layer", "head", "token")] == place
    assert at.session_state["step"] == (opening_step([example()]) if step is None else step)
    assert figures(at)


@pytest.mark.parametrize(
    ("link", "sentence"),
    [
        ({"generate": "-5"}, "got '-5'"),
        ({"generate": "513"}, "at most 512 and 2,147,483,647"),
        ({"seed": "9" * 30}, "at most 512 and 2,147,483,647"),
        ({"seed": "²"}, "whole numbers"),
        ({"beside": "eviction=h2a(budget=8)"}, "did you mean 'h2o'?"),
        ({"pipeline": "eviction=a2sf(bugdet=8)"}, "did you mean 'budget'?"),
        (
            {"pipeline": "eviction=[press here](http://elsewhere.example)"},
            literal("[press here](http://elsewhere.example)"),
        ),
        ({"pipeline": "eviction=a2sf(budget=" + "(" * 500}, "Cannot read"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_link_out_of_range_opens_the_example_and_says_why(
    tmp_path: Path, link: dict[str, str], sentence: str
) -> None:
    at = opened(tmp_path, **{"prompt": "needle", **link})
    (warning,) = [w.value for w in at.warning]
    assert sentence in warning
    assert at.session_state["specs"] == [EXAMPLE]
    assert len(figures(at)) == 2


# --- the run bar ---


def test_an_empty_prompt_loses_no_setting(tmp_path: Path) -> None:
    at = opened(tmp_path)
    at.number_input(key="A_a2sf_budget").set_value(33).run()
    at.button(key="add_pipeline").click()
    unfold(at, "run_settings")
    at.number_input(key="seed").set_value(5).run()
    at.number_input(key="B_streaming_llm_budget").set_value(44).run()
    at.text_area(key="prompt_text").set_value("").run()
    assert "The prompt is empty" in said(at)
    assert at.button(key="run").disabled
    at.text_area(key="prompt_text").set_value("Here again.").run()
    assert at.session_state["pipelines"] == ["eviction=a2sf(budget=33)", "eviction=streaming_llm(budget=44)"]
    assert at.session_state["seed"] == 5
    assert not at.button(key="run").disabled


@pytest.mark.parametrize(
    ("factor", "sentence"),
    [
        ("1.5", "lies between 0 and 1; got 1.5"),
        ("-0.1", "lies between 0 and 1; got -0.1"),
        ("nan", "lies between 0 and 1; got 'nan'"),
        ("", "Forgetting factor: cannot read the value ''"),
        ("[0.1,", "Forgetting factor: cannot read the value"),
        ("{verb: 0.3}", "'verb' is no token class"),
        ("__import__('os').remove('x')", "Forgetting factor: cannot read the value"),
        ("[" * 300, "Forgetting factor: cannot read the value"),
    ],
)
def test_a_forgetting_factor_that_is_none_loses_no_other_setting(tmp_path: Path, factor: str, sentence: str) -> None:
    at = opened(tmp_path)
    unfold(at, "A_a2sf_more")
    at.number_input(key="A_a2sf_recent").set_value(9).run()
    at.text_input(key="A_a2sf_forgetting_factor").set_value(factor).run()
    assert not at.exception
    (warning,) = [w.value for w in at.warning]
    assert literal(sentence) in warning
    assert at.button(key="run").disabled
    assert len(figures(at)) == 2
    at.text_input(key="A_a2sf_forgetting_factor").set_value("0.5").run()
    assert not at.warning
    assert at.session_state["A_a2sf_recent"] == 9


def test_what_is_wrong_with_the_open_pipeline_is_said_and_goes_where_another_is_opened(tmp_path: Path) -> None:
    at = opened(tmp_path, **PAIR)
    at.number_input(key="A_a2sf_budget").set_value(0).run()
    (warning,) = [w.value for w in at.warning]
    assert "budget is at least 1; got 0" in warning and at.button(key="run").disabled
    at.button(key="open_B").click().run()
    assert not at.warning and at.session_state["pipelines"] == [PAIR["pipeline"], PAIR["beside"]]
    unfold(at, "B_streaming_llm_more")
    at.number_input(key="B_streaming_llm_n_sink").set_value(1000).run()
    (warning,) = [w.value for w in at.warning]
    assert "1000" in warning
    assert len(figures(at)) == 4


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("notes.txt", b"\x80\xff\xfe", "notes.txt is not UTF-8 text"),
        ("photo.png", b"\x89PNG\r\n\x1a\n\0\0", "photo.png is not UTF-8 text"),
        ("zeros.txt", b"text\0text", "zeros.txt is a binary file"),
        ("[x](http://y).txt", b"\xff", literal("[x](http://y).txt is not UTF-8 text")),
        ("big.txt", b"a" * (5 * 2**20 + 1), "give a text of at most 5 MB"),
    ],
    ids=["not UTF-8", "image", "zero bytes", "name with markup", "large"],
)
def test_an_upload_that_is_no_text_is_refused_and_the_prompt_stays(
    tmp_path: Path, name: str, data: bytes, sentence: str
) -> None:
    at = opened(tmp_path)
    unfold(at, "upload")
    at.get("file_uploader")[0].set_value([(name, data, "text/plain")]).run()
    assert not at.exception
    (warning,) = [w.value for w in at.warning]
    assert sentence in warning
    assert "The text above is unchanged" in warning
    assert at.text_area(key="prompt_text").value == EXAMPLE.prompt


def test_an_uploaded_text_becomes_the_prompt(tmp_path: Path) -> None:
    at = opened(tmp_path)
    text = "‏שלום‏ <b>bold</b> 🙂\n\ttab"
    unfold(at, "upload")
    at.get("file_uploader")[0].set_value([("own.txt", b"\xef\xbb\xbf" + text.encode(), "text/plain")]).run()
    assert not at.warning
    assert at.text_area(key="prompt_text").value == text
    assert at.selectbox(key="prompt_choice").value == "own"


# --- the queue ---


def progress(at: AppTest) -> str:
    return " ".join(bar.proto.text for bar in at.get("progress"))


# --- text that would act ---

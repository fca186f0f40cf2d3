"""The run bar's list of pipelines: added, copied, ordered, named and removed, and what pages draw of many."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from streamlit.testing.v1 import AppTest

from sparsity_core.kinds import Pipeline
from sparsity_core.record import Store
from tests import traces
from tests.app.test_app import ROOT, figures, open_page, said
from tests.pages.test_pages import PAIR, opened
from tests.server import cache_with_models
from ui.address import LETTERS, read_address, write_address
from ui.presets import another, presets
from ui.session import EXAMPLE
from viz.looks import method_colour

A, B = PAIR["pipeline"], PAIR["beside"]
PAGES = sorted(path.stem for path in (ROOT / "pages").glob("[a-z]*.py"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSELENS_CACHE", str(cache_with_models(tmp_path)))


def listed(at: AppTest) -> list[str]:
    return at.session_state["pipelines"]


# --- links ---


def test_a_link_of_one_and_of_two_pipelines_is_what_it_was() -> None:
    two = {"model": EXAMPLE.model, "pipeline": A, "beside": B, "generate": "24", "seed": "0", "device": "cpu"}
    two |= {"dtype": "float32", "prompt": "needle"}
    asked = read_address(two)
    assert [spec.pipeline for spec in asked.specs] == [A, B]
    assert write_address(asked.specs, {}) == two
    assert write_address(asked.specs[:1], {}) == {name: value for name, value in two.items() if name != "beside"}


@given(st.lists(st.sampled_from([A, B, "dense", "eviction=h2o(budget=9)"]), min_size=1, max_size=8), st.data())
def test_a_link_brings_every_pipeline_and_its_name_back_in_order(texts: list[str], data: st.DataObject) -> None:
    names = data.draw(st.lists(st.sampled_from(["", "mine", "A : b", "é"]), min_size=len(texts), max_size=len(texts)))
    link = write_address([replace(EXAMPLE, pipeline=text) for text in texts], {}, names)
    asked = read_address(link)
    assert [spec.pipeline for spec in asked.specs] == texts
    assert list(asked.names) == (names if any(names) else [])


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"beside8": B}, "a page compares at most 8 pipelines"),
        ({"beside7": "eviction=h2a"}, "did you mean 'h2o'"),
        ({"names": "a|b|c"}, "the link names 3 pipelines and has 2"),
        ({"names": "x" * 41}, "at most 40 printable characters"),
    ],
)
def test_a_list_that_cannot_be_is_a_sentence(more: dict[str, str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        read_address({**PAIR, **more})


# --- lists ---


@pytest.mark.parametrize("stage", ["eviction", "decode", "prefill", "weights"])
def test_every_preset_is_a_list_of_pipelines_that_run(stage: str) -> None:
    for preset in presets(stage).values():
        found = preset.made_of(Pipeline.parse("eviction=a2sf(budget=24)"))
        assert 2 <= len(found) <= len(LETTERS) and len(set(found)) == len(found)
        for text in found:
            Pipeline.parse(text).check(generates=True)
    assert presets("") == presets("gate")  # no list is about gates alone: all are offered


def test_all_evictions_stand_at_the_budget_of_the_open_one() -> None:
    found = presets("eviction")["evictions"].made_of(Pipeline.parse("eviction=h2o(budget=24) decode=sparq()"))
    methods = [Pipeline.parse(text) for text in found]
    assert {method.eviction.budget for method in methods if method.eviction} == {24}
    assert methods[0].eviction.name == "h2o" and all(method.decode for method in methods)


def test_what_is_added_is_not_in_the_list_yet() -> None:
    texts = [A]
    while len(texts) < 7:
        texts.append(another(texts))
    assert len(set(texts)) == 7


# --- the run bar ---


def test_pipelines_are_added_copied_moved_named_and_removed(tmp_path: Path) -> None:
    at = opened(tmp_path)
    at.button(key="add_pipeline").click().run()
    assert listed(at) == [A, B]
    at.button(key="content_copy_B").click().run()
    assert listed(at) == [A, B, B]
    at.number_input(key="C_streaming_llm_budget").set_value(32).run()
    at.button(key="arrow_upward_C").click().run()
    assert listed(at) == [A, "eviction=streaming_llm(budget=32)", B]
    at.text_input(key="B_name").set_value("half").run()
    assert at.number_input(key="B_streaming_llm_budget").value == 32
    at.button(key="open_C").click().run()
    at.button(key="delete_C").click().run()
    assert listed(at) == [A, "eviction=streaming_llm(budget=32)"]
    assert at.text_input(key="B_name").value == "half"
    at.number_input(key="B_streaming_llm_budget").set_value(64).run()
    at.button(key="run").click().run()
    assert [spec.pipeline for spec in at.session_state["specs"]] == [A, B]
    assert at.query_params["beside"] == B and at.query_params["names"] == "|half"
    assert "half" in at.dataframe[0].value["pipeline"].tolist()
    assert not at.exception


def test_no_more_pipelines_are_added_than_a_page_holds(tmp_path: Path) -> None:
    at = opened(tmp_path)
    for _ in range(len(LETTERS) - 1):
        at.button(key="add_pipeline").click().run()
    assert len(listed(at)) == len(LETTERS)
    assert at.button(key="add_pipeline").disabled and at.button(key="content_copy_H").disabled
    at.button(key="delete_H").click().run()
    assert not at.button(key="add_pipeline").disabled


def test_a_list_takes_the_place_of_all_others(tmp_path: Path) -> None:
    at = opened(tmp_path, **PAIR)
    at.session_state["preset_lists"] = True
    at.run()
    at.button(key="preset_budgets").click().run()
    assert listed(at) == [f"eviction=a2sf(budget={n})" for n in (32, 64, 128, 256)]
    assert [spec.pipeline for spec in at.session_state["specs"]] == [A, B], "nothing runs before Run"


# --- pages of many ---


@pytest.mark.parametrize("page", [page for page in PAGES if page not in ("spectra", "figures")])
def test_every_page_draws_eight_pipelines_of_one_text(
    tmp_path: Path, page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ui.patterns.looks._AT_ONCE", 0)  # no look at the real model, whose heads the traces have not
    found = [f"eviction={name}(budget={n})" for name in ("a2sf", "h2o", "tova", "streaming_llm") for n in (40, 80)]
    for text in found:
        made = traces.trace(provenance=replace(traces.trace().provenance, pipeline=text))
        Store().put(replace(EXAMPLE, pipeline=text), made)
    link = {f"beside{n if n > 1 else ''}": text for n, text in enumerate(found[1:], 1)}
    at = opened(tmp_path, prompt="needle", pipeline=found[0], generate="24", **link)
    open_page(at, "" if page == "tokens" else page)
    assert not at.exception
    assert not at.warning, said(at)
    if page == "tokens":
        loss = next(figure for figure in figures(at) if len(figure["data"]) == 8 and "line" in figure["data"][0])
        lines = [(line["line"]["color"], line["line"]["dash"]) for line in loss["data"]]
        assert len(set(lines)) == 8
        assert [colour for colour, _ in lines[:2]] == [method_colour("a2sf")] * 2

"""The Patterns page: what it draws without a model, what it asks for, and what it says of methods that look ahead."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from sparsity_core.kinds import STAGES, Pipeline
from sparsity_core.record import Store
from tests.app.test_app import figures, open_page, said
from tests.pages.test_pages import opened
from tests.pages.test_prefill_on_pages import AHEAD, LINK, looked_ahead
from tests.server import cache_with_models
from tests.traces import told_apart
from tests.viz.test_pipeline import SIZES
from ui.patterns import family_specs, key_of_look
from ui.session import EXAMPLE, FIVE_STAGES, Shown


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSELENS_CACHE", str(cache_with_models(tmp_path)))


def opened_patterns(folder: Path) -> AppTest:
    """The page of a run made by hand. Its dense attention counts as begun: it would be the real model's, of other heads."""
    Store().put(replace(EXAMPLE, pipeline=AHEAD), looked_ahead())
    at = opened(folder, **LINK)
    item = Shown("A", replace(EXAMPLE, pipeline=AHEAD), looked_ahead())
    at.session_state["attention look"] = key_of_look(item, layer=1, block=16)
    open_page(at, "patterns")
    return at


def test_a_pattern_and_its_hierarchy_are_drawn_from_the_trace_alone(
    tmp_path: Path,
) -> None:
    at = opened_patterns(tmp_path)
    assert not at.exception
    assert len(figures(at)) == 2
    assert [note["text"] for note in figures(at)[0]["layout"]["annotations"]] == ["A: minference"]
    assert "Which blocks of keys layer" in " ".join(title.value for title in at.subheader)


def test_methods_that_look_ahead_are_told_to_have_no_loss(tmp_path: Path) -> None:
    item = Shown("A", replace(EXAMPLE, pipeline=AHEAD), looked_ahead())
    for (name, _), spec in family_specs(item).items():
        ahead = name in ("minference", "flexprefill", "xattention")
        Store().put(spec, told_apart(spec.pipeline, looks_ahead=ahead, **SIZES))
    at = opened_patterns(tmp_path)
    at.session_state["patterns_section"] = "cost"
    at.session_state["patterns_measure"] = "kl"
    at.run()
    assert not at.exception
    assert "flexprefill, minference, xattention look ahead" in said(at)
    (figure,) = figures(at)
    assert {data["name"] for data in figure["data"]} == {
        "assa", "bigbird", "longformer", "lsh", "sliding_window", "strided"
    }  # fmt: skip
    assert any("88.5 → 88.0" in frame.value.to_string() for frame in at.dataframe)


def test_the_pipelines_stages_link_to_the_pages_that_explain_them(
    tmp_path: Path,
) -> None:
    pipeline = str(Pipeline.parse("gate=dcp prefill=sliding_window eviction=h2o decode=sparq"))
    Store().put(replace(EXAMPLE, pipeline=pipeline), told_apart(pipeline, **SIZES))
    at = opened(tmp_path, **{**LINK, "pipeline": pipeline})
    assert not at.exception
    links = [link.proto.label for link in at.get("page_link")]
    assert links == ["gate: Gate", "prefill: Patterns", "eviction: Scores", "decode: Channels"]
    assert "the pipeline, stage by stage" in " ".join(title.value for title in at.subheader)


def test_a_first_visit_is_one_press_from_a_run_of_all_five_stages(tmp_path: Path) -> None:
    at = opened(tmp_path)
    at.button(key="five_stages").click().run()
    assert not at.exception
    assert at.session_state["specs"] == [FIVE_STAGES]
    assert list(Pipeline.parse(at.query_params["pipeline"]).methods) == list(STAGES)
    labels = [link.proto.label for link in at.get("page_link")]
    assert labels == ["weights: Spectra", "gate: Gate", "prefill: Patterns", "eviction: Scores", "decode: Channels"]
    assert any("which stage removed what" in title.value for title in at.subheader)
    assert at.selectbox(key="A_gate").value == "dcp", "the run bar shows its settings"

"""A figure's file, uploaded, brings back the view that it came from; any other gets a sentence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import pytest
from streamlit.testing.v1 import AppTest

from sparsity_core.record import Provenance, Store
from tests.app.test_app import unfold
from tests.pages.test_pages import PAIR, opened
from ui import figure, session
from ui.address import read_address
from ui.literal import literal
from ui.session import EXAMPLE
from viz import paper


def exported(link: dict[str, str]) -> bytes:
    return paper.export(go.Figure(), pd.DataFrame(), "json", Provenance(caption="A figure.", link=link))


def upload(at: AppTest, name: str, data: bytes) -> AppTest:
    unfold(at, "restore")
    at.get("file_uploader")[0].set_value([(name, data, "application/octet-stream")]).run()
    assert not at.exception
    return at


def test_a_file_brings_back_runs_view_and_prompt(tmp_path: Path) -> None:
    link = {**PAIR, "layer": "7", "head": "last", "token": "11", "step": "99"}
    at = opened(tmp_path)
    assert len(at.session_state.specs) == 1
    upload(at, "loss.json", exported({"page": "tokens", **link}))
    assert [spec.pipeline for spec in at.session_state.specs] == [PAIR["pipeline"], PAIR["beside"]]
    assert {name: at.session_state[name] for name in ("layer", "head", "token", "step")} == {
        "layer": 7, "head": "last", "token": 11, "step": 99
    }  # fmt: skip
    assert {name: at.query_params[name] for name in ("layer", "head", "token", "step")} == {
        "layer": "7", "head": "last", "token": "11", "step": "99"
    }  # fmt: skip
    assert at.session_state.restored[1] == "This is the view of: A figure."


@pytest.mark.parametrize("page", ["tokens", "scores"])
def test_the_page_that_a_file_opens_says_once_what_was_restored(tmp_path: Path, page: str) -> None:
    at = upload(opened(tmp_path), "loss.json", exported({"page": page, **PAIR}))
    assert at.session_state["page"] == page
    assert [literal("This is the view of: A figure.")] == [toast.value for toast in at.toast]
    at.run()
    assert not at.toast


def test_a_prompt_of_one_s_own_comes_with_the_file(tmp_path: Path) -> None:
    text = "A text that no library has. " * 200
    at = upload(opened(tmp_path), "a.json", exported({"page": "tokens", "pipeline": "dense", "text": text}))
    assert at.session_state.specs[0].prompt == text


@pytest.mark.parametrize("text", ["", "A long text of one's own, too long for a link. " * 50])
def test_what_a_page_exports_opens_the_same_view_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    items: list[Any] = []
    monkeypatch.setattr(figure, "export_panel", items.append)
    at = opened(tmp_path, **PAIR, layer="7", step="99")
    at.session_state["export_atlas_A"] = True
    at.run()
    if text:  # a run with another prompt, as far as the address is concerned
        at.session_state.specs = [replace(spec, prompt=text) for spec in at.session_state.specs]
        monkeypatch.setattr(session, "trace_of", lambda spec: Store().get(replace(spec, prompt=EXAMPLE.prompt)))
        at.run()
    data = items[-1].exported("csv", 5.5)
    link = paper.read_provenance(data).link
    assert link["page"] == "tokens" and link.get("text", "") == text
    monkeypatch.setenv("SPARSELENS_CACHE", str(tmp_path / "another machine"))
    asked = read_address({name: value for name, value in link.items() if name != "page"})
    assert list(asked.specs) == at.session_state.specs
    assert {"layer": "7", "step": "99"}.items() <= dict(asked.view).items()


def test_a_foreign_file_leaves_the_view_and_says_so(tmp_path: Path) -> None:
    at = opened(tmp_path)
    for name, data, sentence in (
        ("a.pdf", b"%PDF-1.7 broken", "his PDF is not from SparseLens"),
        ("a.json", exported({}), "holds no view"),
        ("a.json", exported({"page": "tokens", "pipeline": "eviction=a2sg(budget=3)"}), "a2sf"),
    ):
        upload(at, name, data)
        assert at.session_state.restored[1].startswith("The view is as it was. ")
        assert sentence in at.session_state.restored[1]
        assert at.session_state.specs == [EXAMPLE]

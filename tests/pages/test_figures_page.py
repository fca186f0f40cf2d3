"""Figures pinned on any page are listed, ordered, and put together."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from tests.app.test_app import open_page
from tests.pages.test_pages import opened
from ui import pins as module
from viz import paper


def pinned(tmp_path: Path, *names: str) -> AppTest:
    at = opened(tmp_path)
    for name in names:
        at.session_state[f"export_{name}"] = True
    at.run()
    for name in names:
        at.button(key=f"pin_{name}").click().run()
        assert not at.exception
    return at


def captions(at: AppTest) -> list[str]:
    return [own.item.name for own in at.session_state.pins]


def test_an_empty_page_says_how_to_pin(tmp_path: Path) -> None:
    at = opened(tmp_path)
    open_page(at, "figures")
    assert any("Nothing is pinned yet" in info.value for info in at.info)
    assert not at.get("plotly_chart")


def test_pinned_figures_are_ordered_taken_off_and_outlive_another_page(tmp_path: Path) -> None:
    at = pinned(tmp_path, "atlas_A", "loss")
    at.number_input(key="layer").set_value(3).run()
    open_page(at, "figures")
    assert not at.exception
    assert captions(at) == ["atlas_A", "loss"]
    assert [chart.proto.alt for chart in at.get("plotly_chart")] == [
        o.item.provenance.caption for o in at.session_state.pins
    ]
    at.button(key="later_1").click().run()
    assert captions(at) == ["loss", "atlas_A"]
    assert any("\\includegraphics[width=5.5in]{sheet.pdf}" in code.value for code in at.code)
    at.button(key="unpin_2").click().run()
    assert captions(at) == ["atlas_A"]


def test_all_figures_of_the_page_seen_last_are_pinned_at_once_with_its_view(tmp_path: Path) -> None:
    at = opened(tmp_path, layer="7")
    open_page(at, "figures")
    at.button(key="pin_page").click().run()
    assert not at.exception
    assert captions(at) == ["atlas_A", "strip_figure_A", "loss"]
    for own in at.session_state.pins:
        assert own.item.provenance.link["page"] == "tokens" and own.item.provenance.link["layer"] == "7"
        assert own.item.provenance.view.page == "tokens"
        assert any("again.draw(" in data.decode() for name, data in own.texts.items() if name.endswith(".py"))


def test_the_zip_has_a_folder_a_figure_and_their_scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper, "can_render", lambda: False)
    at = pinned(tmp_path, "atlas_A", "loss")
    open_page(at, "figures")
    at.button(key="make_zip").click().run()
    assert not at.exception
    with zipfile.ZipFile(io.BytesIO(at.session_state["zip of pins"][1])) as archive:
        names = set(archive.namelist())
        for folder, name in (("01-atlas_A", "atlas_A"), ("02-loss", "loss")):
            endings = ("html", "csv", "txt", "tex", "py")
            assert {f"{folder}/{name}.{ending}" for ending in endings} <= names
            assert "again.draw(" in archive.read(f"{folder}/{name}.py").decode()
        assert b"jo2024a2sf" in archive.read("references.bib")


def test_a_two_hundredth_figure_is_refused_with_a_sentence(tmp_path: Path) -> None:
    at = pinned(tmp_path, "loss")
    at.session_state["pins"] = at.session_state.pins * module.MOST
    at.button(key="pin_loss").click().run()
    assert len(at.session_state.pins) == module.MOST
    assert any("48 figures are pinned, which is the most" in toast.value for toast in at.toast)

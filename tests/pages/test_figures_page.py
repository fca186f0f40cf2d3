"""Figures pinned on any page are listed, ordered, and put together."""

from __future__ import annotations

import io
import threading
import zipfile
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from tests.app.test_app import open_page
from tests.pages.test_pages import opened
from ui import pins as module
from ui.making import Making, Tell
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
    at.session_state["making zip"].wait(60)
    at.run()
    assert not at.exception
    assert at.get("download_button")[-1].proto.label.startswith("figures.zip, ")
    with zipfile.ZipFile(io.BytesIO(at.session_state["making zip"].data)) as archive:
        names = set(archive.namelist())
        for folder, name in (("01-atlas_A", "atlas_A"), ("02-loss", "loss")):
            endings = ("html", "csv", "json", "txt", "tex", "py")
            (script,) = (own for own in names if own.startswith(f"{folder}/{name}-a2sf-") and own.endswith(".py"))
            assert {f"{script.removesuffix('py')}{ending}" for ending in endings} <= names
            assert "again.draw(" in archive.read(script).decode()
        assert b"jo2024a2sf" in archive.read("references.bib")


def test_all_figures_of_a_page_are_one_zip_from_its_foot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper, "can_render", lambda: False)
    at = opened(tmp_path, layer="7")
    at.session_state["page_kit"] = True
    at.run()
    at.button(key="make_page_kit").click().run()
    at.session_state["making page_kit"].wait(60)
    at.run()
    assert not at.exception
    with zipfile.ZipFile(io.BytesIO(at.session_state["making page_kit"].data)) as archive:
        folders = {name.partition("/")[0] for name in archive.namelist() if "/" in name}
        assert folders == {"01-atlas_A", "02-strip_figure_A", "03-loss"}
        (script,) = (name for name in archive.namelist() if name.startswith("01-atlas_A/") and name.endswith(".py"))
        assert "layer=7" in archive.read(script).decode()
    at.number_input(key="layer").set_value(8).run()
    assert at.button(key="make_page_kit"), "a zip of another view is not offered"


def test_a_zip_that_is_cancelled_stops_and_one_that_fails_says_why() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def make(tell: Tell) -> bytes:
        begun.set()
        go_on.wait(10)
        tell(0.5, "half")
        return b"whole"

    making = Making("", make)
    begun.wait(10)
    making.cancel()
    go_on.set()
    making.wait(10)
    assert making.finished and making.data is None and making.problem is None
    making = Making("", make)
    making.wait(10)
    assert (making.data, making.share, making.doing) == (b"whole", 0.5, "half")

    def fail(tell: Tell) -> bytes:
        raise ValueError("width is 0; allowed is 0.5 to 40 inches")

    making = Making("", fail)
    making.wait(10)
    assert making.problem == "Width is 0; allowed is 0.5 to 40 inches."


def test_a_two_hundredth_figure_is_refused_with_a_sentence(tmp_path: Path) -> None:
    at = pinned(tmp_path, "loss")
    at.session_state["pins"] = at.session_state.pins * module.MOST
    at.button(key="pin_loss").click().run()
    assert len(at.session_state.pins) == module.MOST
    assert any("48 figures are pinned, which is the most" in toast.value for toast in at.toast)

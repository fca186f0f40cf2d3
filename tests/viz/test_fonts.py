"""Which characters no font of the machine has, and that the page and the file say so."""

from __future__ import annotations

import io
import subprocess

import pandas as pd
import plotly.graph_objects as go
import pytest
from PIL import Image

from sparsity_core.record import Provenance
from viz import paper
from viz.paper import fonts

DEJAVU = "20-7e a0-17f 391-3c9 2200-2211\n20-7e 192\n"


@pytest.fixture
def known_fonts(monkeypatch: pytest.MonkeyPatch):
    """fontconfig's own answer on a machine with these stretches of characters."""
    answer = subprocess.CompletedProcess([], 0, stdout=DEJAVU)
    monkeypatch.setattr(fonts.subprocess, "run", lambda *a, **k: answer)
    fonts._covered.cache_clear()
    yield
    fonts._covered.cache_clear()


@pytest.mark.usefixtures("known_fonts")
def test_characters_without_a_glyph_are_named_once_and_in_order() -> None:
    assert fonts.without_glyph("한국 abc αβ 한 ∑ ƒ") == "한국"
    assert fonts.without_glyph("tab\t zero\u200bwidth \u202e \ufe0f \n plain") == ""


@pytest.mark.usefixtures("known_fonts")
@pytest.mark.parametrize(
    ("text", "package"),
    [("한", "fonts-noto-cjk"), ("漢", "fonts-noto-cjk"), ("か", "fonts-noto-cjk"), ("🙂", "fonts-noto-color-emoji"),
     ("ש", "fonts-noto-core"), ("अ", "fonts-noto-core"), ("⊕", "fonts-noto-core")],
)  # fmt: skip
def test_the_sentence_names_the_characters_and_the_package(text: str, package: str) -> None:
    sentence = fonts.say_missing(fonts.without_glyph(text))
    assert text in sentence and f"apt install {package}" in sentence


@pytest.mark.usefixtures("known_fonts")
def test_only_text_that_a_picture_shows_is_looked_at() -> None:
    figure = go.Figure(go.Scatter(x=[0], y=[0], mode="markers", text=["한"], hovertemplate="漢"))
    assert paper.missing_glyphs(figure) == ""
    assert paper.missing_glyphs(figure.update_xaxes(ticktext=["か"], tickvals=[0], showticklabels=False)) == ""
    shown = go.Figure(go.Scatter(x=[0], y=[0], mode="markers+text", text=["한"], name="국")).update_xaxes(title="か")
    assert set(paper.missing_glyphs(shown)) == set("한국か")


@pytest.mark.usefixtures("known_fonts")
def test_a_file_with_boxes_says_so_in_its_provenance() -> None:
    if not paper.can_render():
        pytest.skip("no Chromium or Chrome here")
    figure = go.Figure(go.Bar(x=["한국", "plain"], y=[1, 2]))
    data = paper.export(
        figure, pd.DataFrame({"a": [1]}), "png", Provenance.of_fields("c", {"model": "m"}), width=2, scale=1
    )
    assert "한 국" in Image.open(io.BytesIO(data)).text["missing glyphs"]


def test_without_fontconfig_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    fonts._covered.cache_clear()
    assert fonts.without_glyph("한국") == ""
    fonts._covered.cache_clear()

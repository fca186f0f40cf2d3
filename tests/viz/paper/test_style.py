"""Themes: what they change, on screen and on paper, and looks that tell methods and states apart."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import plotly.graph_objects as go
import pytest
from plotly.subplots import make_subplots

from viz.looks import STATE_STYLE, method_colour, method_dash
from viz.theme import DARK, LIGHT, PAPER, PX_PER_PT, style

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(("theme", "template"), [("light", LIGHT), ("dark", DARK), ("paper", PAPER)])
def test_style_carries_our_template_whatever_the_default(
    heatmap: go.Figure, foreign_default: None, theme: str, template: go.layout.Template
) -> None:
    made_under_it = go.Figure(heatmap.data)
    for figure in (made_under_it, style(heatmap, "dark"), style(heatmap, "paper")):
        assert style(figure, theme).layout.template == template
    assert heatmap.layout.title.text == "On-screen title"
    assert heatmap.layout.template != template


def test_import_of_streamlit_changes_no_style() -> None:
    pytest.importorskip("streamlit")
    code = (
        "import plotly.graph_objects as go, plotly.io\n"
        "from viz.theme import PAPER, style\n"
        "import streamlit\n"
        "assert plotly.io.templates.default != 'plotly', plotly.io.templates.default\n"
        "assert style(go.Figure(), 'paper').layout.template == PAPER\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)


def test_paper_style_has_final_sizes_and_no_interface(heatmap: go.Figure) -> None:
    heatmap.update_layout(updatemenus=[{"buttons": [{}]}], sliders=[{}])
    layout = style(heatmap, "paper").layout
    assert (layout.title.text, layout.width, layout.height, layout.paper_bgcolor) == (None, None, None, None)
    assert not layout.updatemenus
    assert not layout.sliders
    assert layout.template.layout.font.size * 72 / 96 == pytest.approx(8)
    assert layout.template.layout.xaxis.tickfont.size * 72 / 96 == pytest.approx(7)


def test_paper_style_makes_room_for_subplot_titles() -> None:
    figure = make_subplots(1, 2, subplot_titles=["prefill", "decode"])
    figure.add_heatmap(z=[[1, 2]], row=1, col=1)
    styled = style(figure, "paper")
    assert {annotation.font.size for annotation in styled.layout.annotations} == {8 * PX_PER_PT}
    assert styled.layout.margin.t > 8 * PX_PER_PT


def test_style_refuses_an_unknown_theme() -> None:
    with pytest.raises(ValueError, match=r"'sepia'.*'light', 'dark', 'paper'"):
        style(go.Figure(), "sepia")  # type: ignore[arg-type]


def _contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_token_states_differ_without_colour_and_read_on_both_grounds() -> None:
    assert set(STATE_STYLE) == {"kept", "dropped", "gated", "hidden", "unread", "sink", "recent", "future"}
    for attribute in ("symbol", "glyph", "decoration", "light", "dark"):
        assert len({getattr(state, attribute) for state in STATE_STYLE.values()}) == len(STATE_STYLE)
    for state in STATE_STYLE.values():
        assert _contrast(state.light, "#FFFFFF") >= 4.5
        assert _contrast(state.dark, "#0E1117") >= 4.5


def test_a_method_looks_the_same_in_every_process() -> None:
    known = ["a2sf", "h2o", "tova", "streaming_llm", "local_window", "snapkv", "random", "dense"]
    assert len({method_colour(name) for name in known}) == len(known)
    names = [*known, "quest", "sparq", "someone's own"]
    code = "import sys; from viz.looks import *; print([(method_colour(n), method_dash(n)) for n in sys.argv[1:]])"
    done = subprocess.run(
        [sys.executable, "-c", code, *names],
        env={"PYTHONHASHSEED": "7"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.strip() == str([(method_colour(n), method_dash(n)) for n in names])

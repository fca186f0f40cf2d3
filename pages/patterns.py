"""Which keys may each query of the prompt see, where does the attention lie, and what does hiding the rest cost?"""

from __future__ import annotations

import streamlit as st

from ui import patterns as ui
from ui.entry import start_from_app
from ui.explain import explain_methods
from ui.knobs import choose_one
from ui.page import Page
from ui.session import Shown
from ui.view import View

PAGE = Page("Patterns", ":material/grid_4x4:", order=6, explains="prefill")
_SECTIONS = {
    "pattern": "The pattern",
    "text": "Along the text",
    "cost": "What it costs",
}


def page(shown: list[Shown], at: View) -> None:
    section = choose_one("Section", _SECTIONS, "patterns_section")
    if section != "cost" and all(item.trace.prefill is None for item in shown):
        st.info(
            "No prefill method runs here, so every query sees all keys: choose one under Prefill in the sidebar, and press Run."
        )
    if section == "pattern":
        ui.pattern(shown, at)
        for item in shown:
            ui.hierarchy(item, at)
    elif section == "text":
        for item in shown:
            ui.along(item, at)
    else:
        item = next((s for s in shown if s.trace.prefill is not None), shown[0])
        ui.family(item)
        ui.claims(item)
    explain_methods(shown)


if __name__ == "__main__":
    start_from_app()

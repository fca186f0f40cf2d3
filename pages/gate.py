"""Which token drops which, what does the gate think of each pair, what kinds of tokens go, and what does it cost?"""

from __future__ import annotations

import streamlit as st

from ui import gate as ui
from ui.entry import start_from_app
from ui.explain import explain_methods
from ui.knobs import choose_one
from ui.page import Page
from ui.session import Shown
from ui.view import View

PAGE = Page("Gate", ":material/filter_list:", order=4, explains="gate")
_SECTIONS = {"see": "What it drops", "cost": "What it costs", "train": "Train one"}


def page(shown: list[Shown], at: View) -> None:
    item = next((s for s in shown if ui.gate_of(s) is not None), shown[0])
    section = choose_one("Section", _SECTIONS, "gate_section")
    if section == "train":
        ui.train_section(item)
    elif section == "cost":
        ui.cost_section(item)
    else:
        _see(shown, item, at)
    explain_methods(shown)


def _see(shown: list[Shown], item: Shown, at: View) -> None:
    method = ui.gate_of(item)
    if method is None:
        st.info("No gate runs in this pipeline: choose one under Gate in the sidebar, and press Run.")
    else:
        ui.pairs(item, at)
    st.subheader("What is kept, and of what kind", anchor=False)
    for each in shown:
        ui.what_is_kept(each)
    if method is not None:
        ui.trained(method)


if __name__ == "__main__":
    start_from_app()

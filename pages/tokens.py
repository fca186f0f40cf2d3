"""Which token did each layer drop, when, and what did it cost?"""

from __future__ import annotations

import streamlit as st

from ui import tokens as ui
from ui.columns import side_by_side
from ui.entry import start_from_app
from ui.explain import explain_methods
from ui.page import Page
from ui.pipeline import pipeline_view
from ui.session import Shown
from ui.view import View

PAGE = Page("Tokens", ":material/grid_on:", order=1)


def page(shown: list[Shown], at: View) -> None:
    for item in shown:
        pipeline_view(item)
    st.subheader("Atlas: when each layer dropped each token", anchor=False)
    for column, item in side_by_side(shown):
        with column:
            ui.atlas_of(item, shown, at)
    ui.difference(shown, at)
    for item in shown:
        ui.reads(item, at)
        ui.shares(item)
    st.subheader(f"Tokens at step {at.step}, layer {at.layer}", anchor=False)
    for column, item in side_by_side(shown):
        with column:
            ui.strip_of(item, shown, at)
    for item in shown:
        ui.links(item, at)
    st.subheader("Where forgetting hurts", anchor=False)
    ui.loss(shown, at)
    explain_methods(shown)


if __name__ == "__main__":
    start_from_app()

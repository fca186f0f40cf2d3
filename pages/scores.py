"""How did each token's score move, how far is that from the ideal, and does the score know what matters?"""

from __future__ import annotations

import streamlit as st

from ui.entry import start_from_app
from ui.explain import explain_methods
from ui.judges import judged
from ui.page import Page
from ui.scores import accumulated, against_dense
from ui.session import Shown
from ui.sweeps import knob_sweep
from ui.view import View

PAGE = Page("Scores", ":material/show_chart:", order=3, explains="eviction")


def page(shown: list[Shown], at: View) -> None:
    st.subheader(f"Accumulated scores, layer {at.layer}", anchor=False)
    accumulated(shown, at)
    knob_sweep(shown[0], at.layer)
    against_dense(shown, at)
    judged(shown[0], at)
    explain_methods(shown)


if __name__ == "__main__":
    start_from_app()

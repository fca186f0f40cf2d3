"""Which figures go into the paper, in what order, and as what files?"""

from __future__ import annotations

import streamlit as st

from ui import board as ui
from ui.entry import start_from_app
from ui.page import Page
from ui.pins import pins

PAGE = Page("Figures", ":material/dashboard:", needs="nothing", order=200)


def page() -> None:
    st.subheader("Figures pinned for a paper", anchor=False)
    ui.pin_page()
    if not pins():
        st.info("Nothing is pinned yet: open Export below a figure of any page and press Pin to Figures.")
        return
    ui.pinned()
    ui.sheet()


if __name__ == "__main__":
    start_from_app()

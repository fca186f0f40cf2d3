"""Do the papers' headline claims hold here, in which setting, and with what spread?"""

from __future__ import annotations

import streamlit as st

from ui import reproduce as ui
from ui.entry import start_from_app
from ui.page import Page

PAGE = Page("Reproduce", ":material/fact_check:", needs="model", order=9, link=ui.claim_link)


def page() -> None:
    st.subheader("The papers' claims, and what was measured here", anchor=False)
    ui.overview()
    ui.one_claim()


if __name__ == "__main__":
    start_from_app()

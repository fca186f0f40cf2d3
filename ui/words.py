"""The glossary in the sidebar."""

from __future__ import annotations

import streamlit as st

from ui.glossary import ordered
from ui.knobs import folded
from ui.literal import literal


@st.fragment
def glossary() -> None:
    """The terms, those that a word occurs in where one is typed; drawn when it is opened."""
    with folded("Glossary", "glossary") as opened:
        if not opened:
            return
        word = st.text_input("A word", key="glossary_word", placeholder="all of them").strip().lower()
        found = [(term, meaning) for term, meaning in ordered() if word in f"{term} {meaning}".lower()]
        st.markdown(
            "\n\n".join(f"**{literal(term)}.** {literal(meaning)}" for term, meaning in found) or "No term has it."
        )

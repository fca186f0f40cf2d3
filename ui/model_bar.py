"""The sidebar of a page that looks at a model's weights alone: which model, and no setting that does nothing there."""

from __future__ import annotations

import streamlit as st

from ui.address import LETTERS
from ui.knobs import keep_settings
from ui.literal import literal
from ui.session import specs

_OF_RUNS = ("model", "prompt_choice", "prompt_text", "generate", "seed", "device", "dtype", "add_bos", "question")


def model_bar() -> None:
    """Names the model, and holds what was set for runs."""
    spec = specs()[0]
    keep_run_settings()
    st.markdown(literal(f"Model {spec.model}, {spec.dtype} on {spec.device}"))
    st.caption(
        "This page reads the model's weights; no prompt and no run go into it. Another model is chosen beside the other pages."
    )


def keep_run_settings() -> None:
    """Holds what was set for runs, which Streamlit forgets where its widgets are not drawn."""
    for letter in LETTERS:
        keep_settings(letter)
    for key in _OF_RUNS:
        if key in st.session_state:
            st.session_state[key] = st.session_state[key]

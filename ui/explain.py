"""What a method does: its equation and its source, from the method itself."""

from __future__ import annotations

import streamlit as st

from sparsity_core.method import Pipeline
from ui.session import Shown


def explain_methods(shown: list[Shown]) -> None:
    """An expander per method on the page."""
    seen = set()
    for item in shown:
        for stage, method in Pipeline.parse(item.spec.pipeline).methods.items():
            if method.name in seen:
                continue
            seen.add(method.name)
            with st.expander(f"How {method.name} works ({stage})", icon=":material/function:"):
                st.latex(method.equation)
                st.markdown((type(method).__doc__ or "").strip())
                st.caption(f"Source: {method.source}")

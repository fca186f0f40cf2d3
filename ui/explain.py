"""What a method does: its equation and its source, from the method itself."""

from __future__ import annotations

from inspect import cleandoc

import streamlit as st

from sparsity_core.kinds import Method, Pipeline
from ui.session import Shown


def explain_methods(shown: list[Shown]) -> None:
    """An expander per method on the page."""
    found = {m.name: m for item in shown for m in Pipeline.parse(item.spec.pipeline).methods.values()}
    for method in found.values():
        explain_method(method)


@st.fragment
def explain_method(method: Method) -> None:
    # Filled when it is opened, so that the first picture does not wait for what typesets equations.
    opened = st.expander(
        f"How {method.name} works ({method.stage})",
        icon=":material/function:",
        key=f"explain_{method.name}",
        on_change="rerun",
    )
    if opened.open:
        with opened:
            st.latex(method.equation)
            st.markdown(cleandoc(type(method).__doc__ or ""))
            if method.card is not None:
                st.markdown(
                    "\n".join(f"- **{asked.capitalize()}**: {said}" for asked, said in method.card.rows().items())
                )
            st.caption(f"Source: {method.source}")

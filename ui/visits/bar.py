"""A guided example on the page: what is told at this step, and the way to the next; where visits begin."""

from __future__ import annotations

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from ui.literal import literal
from ui.page import page_at
from ui.session import end_visit, follow, visit_at
from ui.visits.told import VISITS
from ui.visits.visit import Visit


def offer_visits() -> DeltaGenerator:
    """A button for each guided example; returns their row."""
    row = st.container(horizontal=True, vertical_alignment="center", gap="small", key="visits")
    with row:
        st.caption("Guided, two minutes each:", width="content")
        for visit in VISITS.values():
            if st.button(visit.method, key=f"visit_{visit.name}", help=visit.title, icon=":material/tour:"):
                _go(visit, 1)
    return row


def visit_bar() -> None:
    """The step of the guided example that the link names, above every page; nothing without one."""
    name, stop = visit_at()
    visit = VISITS.get(name)
    if visit is None:
        end_visit()
        return
    try:
        steps = visit.steps()
    except LookupError as error:
        st.warning(literal(f"This guided example cannot be shown: {error}"))
        end_visit()
        return
    at = min(max(1, int(stop) if stop.isdecimal() and len(stop) < 3 else 1), len(steps))
    step = steps[at - 1]
    with st.container(border=True, key="visit"):
        st.markdown(f"**{literal(visit.title)}** · step {at} of {len(steps)}")
        st.markdown(step.told)
        st.caption(f"Look at: {step.look}")
        row = st.container(horizontal=True)
        if row.button("Back", key="visit_back", icon=":material/arrow_back:", disabled=at == 1):
            _go(visit, at - 1)
        if at < len(steps) and row.button("Next", key="visit_next", icon=":material/arrow_forward:", type="primary"):
            _go(visit, at + 1)
        if st.session_state.get("page") != step.page and row.button("Show this step", key="visit_again"):
            _go(visit, at)
        if row.button("End", key="visit_end", icon=":material/close:"):
            end_visit()
            st.rerun()


def _go(visit: Visit, stop: int) -> None:
    """Sets the app up as a step wants it. Raises what Streamlit ends a run with."""
    try:
        link = visit.link(stop)
    except LookupError as error:
        st.warning(literal(f"This guided example cannot be shown: {error}"))
        return
    follow(link)
    st.switch_page(page_at(visit.steps()[stop - 1].page), query_params=link)

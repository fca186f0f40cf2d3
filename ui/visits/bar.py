"""A guided example on the page: what is told at this step, and the way to the next; where visits begin."""

from __future__ import annotations

from typing import Any

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
    row.caption("Guided, two minutes each:", width="content")
    for visit in VISITS.values():
        row.button(
            visit.method,
            key=f"visit_{visit.name}",
            help=visit.title,
            icon=":material/tour:",
            on_click=_want,
            args=(visit.name, 1),
        )
    return row


def visit_bar() -> None:
    """The step of the guided example that was asked for or that the link names, above every page; nothing without one."""
    wanted: tuple[str, int] | None = st.session_state.pop("visit wanted", None)
    name, stop = visit_at()
    visit = VISITS.get(wanted[0] if wanted else name)
    if visit is None:
        end_visit()
        return
    try:
        steps = visit.steps()
        if wanted:
            _go(visit, wanted[1])
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
        _press(row, "Back", "arrow_back", visit.name, at - 1, disabled=at == 1)
        if at < len(steps):
            _press(row, "Next", "arrow_forward", visit.name, at + 1, type="primary")
        if st.session_state.get("page") != step.page:
            _press(row, "Show this step", "visibility", visit.name, at)
        row.button("End", key="visit_end", icon=":material/close:", on_click=end_visit)


def _press(row: DeltaGenerator, label: str, icon: str, name: str, stop: int, **look: Any) -> None:
    key = f"visit_{label.partition(' ')[0].lower()}"
    row.button(label, key=key, icon=f":material/{icon}:", on_click=_want, args=(name, stop), **look)


def _want(name: str, stop: int) -> None:
    """Notes the step that a button asks for; the run that a press begins may be ended by another before it comes that far."""
    st.session_state["visit wanted"] = (name, stop)


def _go(visit: Visit, stop: int) -> None:
    """Sets the app up as a step wants it, in another run of the script."""
    link = visit.link(stop)
    follow(link)
    st.switch_page(page_at(visit.steps()[stop - 1].page), query_params=link)

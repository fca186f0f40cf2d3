"""A figure's file brings back the view that it came from."""

from __future__ import annotations

import streamlit as st

from sparsity_core.work import explain
from ui.knobs import folded
from ui.literal import literal
from ui.page import page_at
from ui.session import follow
from viz import paper

_ENDINGS = ["zip", *paper.FORMATS]


@st.fragment
def restore() -> None:
    """The place in the sidebar that takes such a file; drawn when it is opened."""
    with folded("Open a figure's file", "restore") as opened:
        if not opened:
            return
        file = st.file_uploader(
            "A PDF, SVG, PNG or zip of Export",
            type=_ENDINGS,
            key="restore_file",
            help="Any file that Export wrote: it brings back page, prompt, pipelines, layer, head, token and step.",
        )
        if file is None:
            st.session_state.pop("restored", None)
            return
        if st.session_state.get("restored", ("", ""))[0] != file.file_id:
            _open(file.file_id, file.getvalue())
        st.caption(literal(st.session_state.restored[1]))


def _open(file_id: str, data: bytes) -> None:
    """Goes to the view of a file, once; a file that has none is told."""
    try:
        made = paper.read_provenance(data)
        link = {name: value for name, value in made.link.items() if name != "page"}
        if not link:
            raise ValueError("this file tells where it comes from, but holds no view: it was not exported from a page")
        follow(link)
    except ValueError as error:
        st.session_state.restored = (file_id, f"The view is as it was. {explain(error)}")
        return
    told = st.session_state["restored view"] = f"This is the view of: {made.caption}"
    st.session_state.restored = (file_id, told)
    st.switch_page(page_at(made.link.get("page", "")), query_params=link)


def tell_restored() -> None:
    """Says once, on the page that a file's view lies on, what was brought back: the uploader is not open there."""
    if (told := st.session_state.pop("restored view", None)) is not None:
        st.toast(literal(told), icon=":material/restore_page:", duration="long")

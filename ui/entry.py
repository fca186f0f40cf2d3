"""Where a visit begins."""

from __future__ import annotations

from pathlib import Path

import streamlit as st


def start_from_app() -> None:
    """Hands a page that Streamlit ran as a script of its own over to app.py.

    Until a server's first `st.navigation`, Streamlit runs the files of a folder named `pages` by itself, so a deep link
    that is a fresh server's first visit begins in a page's file. Any `st.navigation` with that address ends that.
    """
    names = sorted(path.stem for path in Path(__file__).parents[1].joinpath("pages").glob("[a-z]*.py"))
    st.navigation(
        [st.Page(lambda: None, title="SparseLens"), *(st.Page(lambda: None, title=n, url_path=n) for n in names)]
    )
    st.rerun()

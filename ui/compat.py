"""What the app uses of Streamlit beside its public names; a test holds each against the installed version."""

from __future__ import annotations

import streamlit as st
from streamlit import cli_util, runtime
from streamlit.errors import StreamlitAPIException
from streamlit.navigation.page import StreamlitPage as StreamlitPage
from streamlit.runtime.scriptrunner import get_script_run_ctx
from streamlit.web.server import server_util


def came_by_history() -> bool:
    """Whether this run was asked for by the browser's Back or Forward, whose address the page is to follow."""
    run = get_script_run_ctx()
    return run is not None and bool(run.is_history_navigation)


def session_id() -> str:
    """The name of this browser session, the same in all of its runs."""
    run = get_script_run_ctx()
    return "" if run is None else run.session_id


def is_connected(session: str) -> bool:
    """Whether a browser session of this name is connected. Outside of a server every session counts as connected."""
    return not runtime.exists() or runtime.get_instance().is_active_session(session)


def open_browser() -> None:
    """Opens the app in a browser, as `streamlit run` does for a plain script: not where the server is headless."""
    if not st.get_option("server.headless"):
        address = st.get_option("server.address") or "localhost"
        cli_util.open_browser(server_util.get_url(server_util.get_display_address(address)))


def rerun_here() -> None:
    """Draws again at once: the fragment that runs, or the whole app where it is the app that runs."""
    try:
        st.rerun(scope="fragment")
    except StreamlitAPIException:
        st.rerun()

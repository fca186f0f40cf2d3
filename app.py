"""SparseLens in the browser: `streamlit run app.py`, or `make app`. Navigation and the run bar; nothing else."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st
from streamlit.navigation.page import StreamlitPage

from pages import channels, gate, scores, spectra, tokens
from ui import session, work
from ui.channels import channels_link
from ui.first_look import end_first_look
from ui.literal import literal
from ui.run_bar import follow_link, run_bar
from ui.session import Shown
from ui.spectra import hold_choices, spectra_link
from ui.summary import summary
from ui.view import view_bar

PAGES: dict[str, tuple[Callable[..., None], str, str]] = {
    "tokens": (tokens.page, "Tokens", ":material/grid_on:"),
    "scores": (scores.page, "Scores", ":material/show_chart:"),
    "gate": (gate.page, "Gate", ":material/filter_list:"),
    "channels": (channels.page, "Channels", ":material/tune:"),
    "spectra": (spectra.page, "Spectra", ":material/equalizer:"),
}
OF_WEIGHTS = {"spectra"}  # pages of a model's weights, which need no run


def main() -> None:
    st.set_page_config(page_title="SparseLens", page_icon=":material/filter_alt:", layout="wide")
    problem = session.start()
    shown = session.shown()
    if len(shown) < len(session.specs()):
        follow_link()

    chosen = st.navigation(
        [
            st.Page(function, title=title, icon=icon, url_path=name, default=name == "tokens")
            for name, (function, title, icon) in PAGES.items()
        ]
    )
    if problem:
        st.warning(literal(problem))
    hold_choices(chosen.url_path in OF_WEIGHTS)
    failed = None
    try:
        open_page(chosen, shown)
    except Exception as error:  # a page's fault does not take the settings away, by which a visitor gets out of it
        failed = error
    with st.sidebar:
        run_bar()  # after the page: that is what a visitor came to see
    if failed is not None:
        raise failed


def open_page(chosen: StreamlitPage, shown: list[Shown]) -> None:
    if chosen.url_path in OF_WEIGHTS:
        chosen.run()
        end_first_look()
        keep_link(spectra_link())
    elif shown:
        summary(shown)
        look(chosen.title, shown)  # not chosen.run(): a page's widgets forget what they held when another page opens
    else:
        st.info(
            "This view is being computed: the sidebar shows how far it is."
            if work.pending("run")
            else "This view has not been computed here yet. Its settings are in the sidebar: press Run to compute it."
        )
        keep_link({})


@st.fragment
def look(title: str, shown: list[Shown]) -> None:
    """A page of runs below its steppers; a choice made in it draws this much again, and not what no choice changes."""
    at = view_bar(shown)
    pages = {name: function for function, name, _ in PAGES.values()}
    pages[title](shown, at)
    end_first_look()
    keep_link(channels_link() if pages[title] is channels.page else {})


def keep_link(also: dict[str, str]) -> None:
    """The browser's address reproduces the view."""
    view = {name: st.session_state[name] for name in ("layer", "head", "token", "step") if name in st.session_state}
    link = session.link_parameters(st.session_state.view | view) | also
    if dict(st.query_params) != link:
        st.query_params.from_dict(link)


if __name__ == "__main__":
    main()

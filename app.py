"""SparseLens in the browser: `streamlit run app.py`, or `make app`. Navigation and the run bar; nothing else."""

from __future__ import annotations

import streamlit as st

from pages import scores, tokens
from ui import session, work
from ui.literal import literal
from ui.run_bar import follow_link, run_bar
from ui.view import view_bar

PAGES = {
    "tokens": (tokens.page, "Tokens", ":material/grid_on:"),
    "scores": (scores.page, "Scores", ":material/show_chart:"),
}


def main() -> None:
    st.set_page_config(page_title="SparseLens", page_icon=":material/filter_alt:", layout="wide")
    problem = session.start()
    shown = session.shown()
    if len(shown) < len(session.specs()):
        follow_link()

    def draw(page):  # type: ignore[no-untyped-def]
        return lambda: page(shown, at)

    chosen = st.navigation(
        [
            st.Page(draw(function), title=title, icon=icon, url_path=name, default=name == "tokens")
            for name, (function, title, icon) in PAGES.items()
        ]
    )
    if problem:
        st.warning(literal(problem))
    run_bar()
    if shown:
        at = view_bar(shown)  # here and not in the page, whose widgets forget what they held when another page opens
        chosen.run()
    elif work.pending("run"):
        st.info("This view is being computed: the sidebar shows how far it is.")
    else:
        st.info("This view has not been computed here yet. Its settings are in the sidebar: press Run to compute it.")
    view = {name: st.session_state[name] for name in ("layer", "head", "token", "step") if name in st.session_state}
    link = session.link_parameters(view)
    if dict(st.query_params) != link:
        st.query_params.from_dict(link)


if __name__ == "__main__":
    main()

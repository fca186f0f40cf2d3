"""SparseLens in the browser: `streamlit run app.py`, or `make app`. Navigation and the run bar; nothing else."""

from __future__ import annotations

import streamlit as st

from pages import scores, tokens
from ui import session
from ui.run_bar import follow_link, run_bar
from ui.view import view_bar

PAGES = {
    "tokens": (tokens.page, "Tokens", ":material/grid_on:"),
    "scores": (scores.page, "Scores", ":material/show_chart:"),
}


def main() -> None:
    st.set_page_config(page_title="SparseLens", page_icon=":material/filter_alt:", layout="wide")
    problem = session.start()

    def draw(page):  # type: ignore[no-untyped-def]
        def body() -> None:
            shown = session.shown()
            if not shown:
                follow_link()
                st.info(
                    "This view has not been computed here yet. Its settings are in the sidebar: press Run to compute it."
                )
                return
            page(shown, view_bar(shown))

        return body

    chosen = st.navigation(
        [
            st.Page(draw(function), title=title, icon=icon, url_path=name, default=name == "tokens")
            for name, (function, title, icon) in PAGES.items()
        ]
    )
    if problem:
        st.warning(problem)
    run_bar()
    chosen.run()
    view = {name: st.session_state[name] for name in ("layer", "head", "token", "step") if name in st.session_state}
    link = session.link_parameters(view)
    if dict(st.query_params) != link:
        st.query_params.from_dict(link)


if __name__ == "__main__":
    main()

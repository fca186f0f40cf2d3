"""SparseLens in the browser: `streamlit run app.py`, or `make app`. Navigation and the run bar; nothing else."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from types import ModuleType

import streamlit as st
from streamlit.starlette import App

import pages
from sparsity_core.work import with_plugins
from ui import session, shared, work
from ui.address import places_of
from ui.compat import StreamlitPage
from ui.contrast import raise_contrast
from ui.first_look import end_first_look
from ui.headers import MIDDLEWARE, opened
from ui.history import one_entry_a_choice
from ui.literal import literal
from ui.model_bar import keep_run_settings, model_bar
from ui.page import remember_pages
from ui.page_kit import page_kit
from ui.pins import begin_page
from ui.restore import restore, tell_restored
from ui.run_bar import follow_link, run_bar
from ui.session import Shown
from ui.spectra import hold_choices
from ui.summary import summary
from ui.trust import may_touch
from ui.view import end_view, view_bar
from ui.visits import visit_bar
from ui.words import glossary

ICON = Path(__file__).parent / "ui" / "icon.svg"


def found_pages() -> dict[str, ModuleType]:
    """The files of pages by address, those of plug-ins among them, in the order of the navigation."""
    own = [importlib.import_module(f"pages.{found.name}") for found in pkgutil.iter_modules(pages.__path__)]
    return dict(sorted(with_plugins("pages", own).items(), key=lambda item: item[1].PAGE.order))


PAGES = found_pages()


def main() -> None:
    st.set_page_config(page_title="SparseLens", page_icon=str(ICON), layout="wide")
    raise_contrast()
    if shared.is_shared():
        st.set_option("client.showErrorDetails", "none")
    one_entry_a_choice()
    problem = session.follow_address()
    shown = session.shown()
    if len(shown) < len(session.specs()):
        follow_link()

    listed = {
        name: st.Page(module.page, title=module.PAGE.title, icon=module.PAGE.icon, url_path=name, default=at == 0)
        for at, (name, module) in enumerate(PAGES.items())
    }
    chosen = st.navigation(list(listed.values()))
    remember_pages(
        listed, {PAGES[name].PAGE.explains: page for name, page in listed.items() if PAGES[name].PAGE.explains}
    )
    if problem:
        st.warning(literal(problem))
    tell_restored()
    st.session_state.page = chosen.url_path or next(iter(PAGES))  # the first page's address is empty
    module = PAGES[st.session_state.page]
    st.session_state.stage = module.PAGE.explains
    of_model = module.PAGE.needs != "run"
    hold_choices(of_model)
    bar = {"run": run_bar, "model": model_bar, "nothing": keep_run_settings}[module.PAGE.needs]
    visit_bar()
    failed = None
    try:
        if of_model:
            open_model_page(chosen, module)
        else:
            open_run_page(module, shown)
    except Exception as error:  # a page's fault does not take the settings away, by which a visitor gets out of it
        failed = error
    with st.sidebar:
        shared.notice()
        bar()  # after the page: that is what a visitor came to see
        restore()
        glossary()
    if failed is not None:
        raise failed


def open_model_page(chosen: StreamlitPage, module: ModuleType) -> None:
    if module.PAGE.needs == "model":
        begin_page(module.PAGE.title)
    chosen.run()
    if module.PAGE.needs == "model":
        page_kit()
    end_first_look()
    session.keep_address(module.PAGE.link())


def open_run_page(module: ModuleType, shown: list[Shown]) -> None:
    if shown:
        summary(shown)
        look(module.__name__, shown)  # not chosen.run(): a page's widgets forget what they held when another page opens
    else:
        st.info(literal(why_nothing()))
        session.keep_address({})


def why_nothing() -> str:
    """What stands in the place of a view that there is no run for."""
    if work.pending("run"):
        return "This view is being computed: the sidebar shows how far it is."
    places = sorted({place for spec in session.specs() for place in places_of(spec.model, spec.pipeline)})
    if not may_touch(places):
        return (
            f"The link names files of this machine: {', '.join(places)}. They are not looked at before you press Run."
        )
    return "This view has not been computed here yet. Its settings are in the sidebar: press Run to compute it."


@st.fragment
def look(name: str, shown: list[Shown]) -> None:
    """A page of runs below its steppers; a choice made in it draws this much again, and not what no choice changes."""
    module = next(module for module in PAGES.values() if module.__name__ == name)
    begin_page(module.PAGE.title)
    at = view_bar(shown)
    module.page(shown, at)
    page_kit()
    end_view()
    end_first_look()
    session.keep_address(module.PAGE.link())


if __name__ == "__main__":
    main()
else:  # `streamlit run` imports this file for the `App` that it finds in it, and runs it as a script for each visitor
    app = App(__file__, middleware=MIDDLEWARE, lifespan=opened)

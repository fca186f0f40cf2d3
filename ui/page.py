"""What the file of a page says of it: `PAGE = Page("Tokens", ":material/grid_on:", needs="run")`, beside its function `page`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import streamlit as st

from ui.compat import StreamlitPage


def no_choices() -> dict[str, str]:
    return {}


@dataclass(frozen=True)
class Page:
    """A page's title and icon in the navigation, what it needs, and its place there.

    A page that needs a "run" is a function of the runs shown and the view, and has the run bar beside it. One that needs a
    "model" alone, or "nothing", takes no arguments, and no prompt, method or Run stand beside it. `link` gives the page's own
    part of the address. `explains` is the stage of a pipeline that the page is about.
    """

    title: str
    icon: str
    needs: Literal["run", "model", "nothing"] = "run"
    order: int = 100
    link: Callable[[], dict[str, str]] = no_choices
    explains: str = ""


def remember_pages(listed: dict[str, StreamlitPage], by_stage: dict[str, StreamlitPage]) -> None:
    """Keeps the pages of the navigation by their addresses, and which explains each stage, for links to them."""
    st.session_state["pages"], st.session_state["page of a stage"] = listed, by_stage


def page_of(stage: str) -> StreamlitPage | None:
    """The page that explains a stage, if there is one."""
    return st.session_state.get("page of a stage", {}).get(stage)


def page_at(address: str) -> StreamlitPage:
    """The page of an address, or the first one."""
    pages: dict[str, StreamlitPage] = st.session_state["pages"]
    return pages.get(address, next(iter(pages.values())))

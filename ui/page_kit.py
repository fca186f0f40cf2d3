"""All figures of a page at once: as one zip, or pinned to the page Figures."""

from __future__ import annotations

import streamlit as st

from ui.export import choose_width
from ui.first_look import painted
from ui.item import Item
from ui.kit import kit_files
from ui.knobs import folded
from ui.literal import literal
from ui.making import Make, offer_zip
from ui.pins import Pin, offered, pin, zip_of
from ui.session import seen, specs
from viz import paper

_COLUMNS = 2  # of the sheet of all


@st.fragment
def page_kit() -> None:
    """The foot of a page with figures; drawn when it is opened."""
    title, items = offered()
    if not items or not painted():
        return
    label = f"All {len(items)} figures of {title}" if len(items) > 1 else f"The figure of {title}"
    with folded(label, "page_kit") as opened:
        if not opened:
            return
        size = choose_width("page_kit")
        if size is None:
            return
        width, across = size
        st.caption(literal(f"{', '.join(item.name for item in items)}: {told_forms()}"))
        state = (*specs(), seen(), *((item.name, item.provenance.caption) for item in items))

        def prepare() -> Make:
            found = [Pin(at, item, kit_files(item, "pdf", width, across=across)) for at, item in enumerate(items, 1)]
            return lambda tell: zip_of(found, width, _COLUMNS, tell)

        offer_zip(
            "page_kit",
            "Make the zip",
            f"{paper.kit.file_name(title.lower(), items[0].provenance)}.zip",
            (state, width, across),
            prepare,
        )
        if st.button("Pin all to Figures", icon=":material/keep:", key="pin_all", width="stretch"):
            st.toast(pin_all(items, width))


def told_forms() -> str:
    """What a zip of figures holds, as a clause."""
    forms = "PDF, SVG, PNG" if paper.can_render() else "HTML (there is no Chromium or Chrome here that draws a PDF)"
    return f"each as {forms}, CSV and JSON with its caption, LaTeX, BibTeX and script in a folder of its own, and a sheet of all."


def pin_all(items: list[Item], width: float) -> str:
    """Pins every figure; returns what came of it, as a sentence."""
    told = ""
    for item in items:
        told = pin(item, kit_files(item, "pdf", width))
    return told

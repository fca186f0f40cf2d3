"""The sections of the page Figures: what is pinned, and the sheet that is made of it."""

from __future__ import annotations

from functools import partial

import streamlit as st

from ui.export import choose_width
from ui.figure import theme
from ui.literal import literal
from ui.making import Make, offer_zip
from ui.page_kit import pin_all, told_forms
from ui.pins import Pin, move, offered, panels, pins, remove, zip_of
from viz import paper, style
from viz.paper import Panel

_IN_A_ROW = 3
_WIDTH = 5.5  # inches that the texts of a page's figures tell
_HEIGHT = 260  # px of a pinned figure on the page
_NARROW = 1.9  # inches for which a text of the screen's size is broken into lines as wide as a third of the page
_LINES = 9
_FORMS = {"pdf": "application/pdf", "svg": "image/svg+xml", "png": "image/png"}


def pin_page() -> None:
    """Pins every figure of the page that was looked at last."""
    title, items = offered()
    if not items or not st.button(
        f"Pin all {len(items)} figures of {title}",
        icon=":material/keep:",
        key="pin_page",
        help="as that page shows them",
    ):
        return
    with st.spinner("Pinning them"):
        st.toast(pin_all(items, _WIDTH))
    st.rerun()


def pinned() -> None:
    """Every pinned figure with its letter, and what moves it and takes it off."""
    found = pins()
    for start in range(0, len(found), _IN_A_ROW):
        row = st.columns(_IN_A_ROW)
        for column, own in zip(row, found[start : start + _IN_A_ROW], strict=False):
            with column.container(border=True):
                _one(own, found.index(own), len(found))


def _one(own: Pin, at: int, count: int) -> None:
    name = own.item.provenance.caption
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"**({chr(97 + at)})**" if at < paper.MOST else f"**{at + 1}**", width="stretch")
        key = own.number
        st.button(
            "",
            icon=":material/arrow_back:",
            key=f"earlier_{key}",
            help="earlier",
            disabled=at == 0,
            on_click=partial(move, key, -1),
        )
        st.button(
            "",
            icon=":material/arrow_forward:",
            key=f"later_{key}",
            help="later",
            disabled=at == count - 1,
            on_click=partial(move, key, 1),
        )
        st.button("", icon=":material/close:", key=f"unpin_{key}", help="take it off", on_click=partial(remove, key))
    figure, height = own.item.draw(_NARROW)
    drawn = style(figure, theme()).update_layout(height=_HEIGHT, showlegend=False)
    if height is not None:  # lines of text, of which the first tell which figure it is
        drawn.update_yaxes(range=[drawn.layout.yaxis.range[1] - _LINES, drawn.layout.yaxis.range[1]])
    st.plotly_chart(drawn, theme=None, key=f"pinned_{key}", config={"displayModeBar": False}, alt=name)
    st.caption(literal(name))


def sheet() -> None:
    """All of them as one figure of a paper, and as one zip."""
    st.subheader("One figure of them", anchor=False)
    size = choose_width("sheet")
    if size is None:
        return
    width, columns = (
        size[0],
        int(st.segmented_control("Panels in a row", [1, 2, 3, 4], default=2, key="sheet_columns") or 2),
    )
    given = panels(pins())
    if len(given) > paper.MOST:
        st.warning(
            f"A sheet holds at most {paper.MOST} panels, and {len(given)} figures are pinned: take some off, or take the zip."
        )
    elif not paper.can_render():
        st.caption("PDF, SVG and PNG need Chromium or Chrome on this machine.")
    else:
        _files(given, width, columns)
    _zip(width, columns)


def _files(given: list[Panel], width: float, columns: int) -> None:
    with st.container(horizontal=True):
        for form, mime in _FORMS.items():
            st.download_button(
                form.upper(),
                data=partial(_composed, given, form, width, columns),
                file_name=f"sheet.{form}",
                mime=mime,
                key=f"sheet_{form}",
                on_click="ignore",
                width=92,
            )
        shown = st.toggle("Show it", key="sheet_shown", help="as the PNG will be")
    made = paper.together([panel.provenance for panel in given])
    if shown:
        try:
            st.image(_composed(given, "png", width, columns), caption=None, width=int(width * 96 * 1.4))
        except ValueError as error:
            st.warning(literal(f"There is no such sheet: {error}."))
    st.code(paper.kit.latex(made, "sheet.pdf", width), language="latex", wrap_lines=True)


def _composed(given: list[Panel], form: str, width: float, columns: int) -> bytes:
    return paper.compose(given, form, width=width, columns=columns)


def _zip(width: float, columns: int) -> None:
    st.subheader("All of them in one zip", anchor=False)
    st.caption(literal(f"The figures above, {told_forms()}"))
    found = list(pins())

    def prepare() -> Make:
        return lambda tell: zip_of(found, width, columns, tell)

    offer_zip("zip", "Make the zip", "figures.zip", (tuple(own.number for own in found), width, columns), prepare)

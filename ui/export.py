"""The Export panel below a figure: at which size, in which form, and what goes with it into a paper."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import streamlit as st

from sparsity_core.record import Provenance
from sparsity_core.work import keep_prompt
from ui.kit import Item, everything, kit_files, show_kit
from ui.literal import literal
from ui.pins import pin
from viz import paper

PROMPT_FILE = paper.kit.PROMPT_FILE

OWN_WIDTH = "own"
_TABLE_ROWS = 2000
_SHAPES = {"usual": 0.62, "low": 0.33, "square": 1.0}  # a file's height over its width
_COLUMNS = {1: "one column", 2: "two columns"}


def export_panel(item: Item) -> None:
    """What an opened Export shows for one figure."""
    name, table, provenance = item.name, item.table, item.provenance
    size = choose_width(name)
    if size is None:
        return
    width, across = size
    shape = st.selectbox("Height", list(_SHAPES), key=f"height_{name}", help="low for a curve with a few spikes")
    chosen = st.checkbox(
        "With the marks of what is chosen",
        key=f"chosen_{name}",
        help="the frame of the layer, the tip at the token, the step",
    )
    item = _with_or_without_text(item)
    rendered = paper.can_render()
    if not rendered:
        st.caption("PDF, SVG and PNG need Chromium or Chrome on this machine; HTML, CSV and JSON do not.")
    elif missing := paper.missing_glyphs(item.draw(width)[0]):
        st.warning(literal(paper.say_missing(missing)), icon=":material/font_download:")

    if st.button("Pin to Figures", icon=":material/keep:", key=f"pin_{name}", width="stretch"):
        st.toast(pin(item, kit_files(item, "pdf", width, _SHAPES[shape], across)))
    _downloads(item, width, _SHAPES[shape], across, chosen)
    st.caption(literal(f"{provenance.caption} {made_by(provenance)}"))
    show_kit(item, width, _SHAPES[shape], across)
    with st.expander("Table"):
        st.dataframe(table.head(_TABLE_ROWS), hide_index=True)
        if len(table) > _TABLE_ROWS:
            st.caption(f"The first {_TABLE_ROWS:,} of {len(table):,} rows; CSV has them all.")
    st.code(provenance.command, language="bash")
    if provenance.prompt is not None:
        st.download_button(
            f"{PROMPT_FILE}, which the command reads",
            data=provenance.prompt.encode("utf-8", "surrogatepass"),
            file_name=PROMPT_FILE,
            mime="text/plain",
            key=f"prompt_{name}",
            on_click="ignore",
            width="stretch",
        )


def _with_or_without_text(item: Item) -> Item:
    """The item, and without the prompt's own text in its files where that is unchecked."""
    link = item.provenance.link
    if "text" not in link or st.checkbox(
        "With the prompt's text",
        value=True,
        key=f"text_{item.name}",
        help="a file that holds it brings the view back on any machine: upload it under Open a figure's file",
    ):
        return item
    kept = {**{part: value for part, value in link.items() if part != "text"}, "prompt": keep_prompt(link["text"])}
    return replace(item, provenance=replace(item.provenance, link=kept))


def _downloads(item: Item, width: float, shape: float, across: bool, chosen: bool) -> None:
    """A button a format, and one for all of them."""
    row = st.container(horizontal=True)
    for form in paper.FORMATS.values():
        row.download_button(
            form.label,
            data=partial(item.exported, form.name, width, shape, chosen),
            file_name=f"{item.file}.{form.name}",
            mime=form.mime,
            key=f"{form.name}_{item.name}",
            disabled=form.rendered and not paper.can_render(),
            on_click="ignore",
            width=92,
        )
    st.download_button(
        "All of it, with caption, LaTeX, BibTeX and script (zip)",
        data=partial(everything, item, width, shape, across),
        file_name=f"{item.file}.zip",
        mime="application/zip",
        key=f"zip_{item.name}",
        on_click="ignore",
        width="stretch",
    )


def choose_width(name: str) -> tuple[float, bool] | None:
    """Inches of a file, by a venue and its columns or as typed, and whether that is across both columns of a page.

    None, and a sentence, for a width that no file can have.
    """
    row = st.container(horizontal=True, vertical_alignment="bottom")
    venue = row.selectbox(
        "For",
        [*paper.VENUES, OWN_WIDTH],
        format_func=lambda key: paper.VENUES[key].title if key in paper.VENUES else "Another width",
        key=f"width_{name}",
        help="the exact width that the venue's style file sets",
        width=150,
    )
    across = False
    if venue == OWN_WIDTH:
        inches = float(row.number_input("Inches", value=5.5, step=0.25, key=f"inches_{name}", width=150))
    else:
        found, columns = paper.VENUES[venue], 1
        if found.column != found.page:
            columns = row.selectbox(
                "Across", list(_COLUMNS), format_func=_COLUMNS.__getitem__, key=f"columns_{name}", width=150
            )
            across = columns == 2
        inches = paper.venue_width(venue, columns)
        st.caption(literal(f"{inches:.4g} in wide ({found.source})."))
    try:
        paper.check_size(inches)
    except ValueError as error:
        st.warning(literal(f"There is no such file: {error}."))
        return None
    return inches, across


def made_by(made: Provenance) -> str:
    """The model and what was done with it, as a sentence."""
    gamma = made.facts.get("gamma")
    done = made.facts.get("method") or made.pipeline.replace(" | ", " against ") or (gamma and f"γ = {gamma}")
    return f"{made.model}, {done}." if done else f"{made.model}."

"""Figures that were pinned on any page, in their order, and what is made of all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import streamlit as st

from ui.item import Item
from viz import paper

MOST = 48


@dataclass(frozen=True)
class Pin:
    """A figure as it was when it was pinned: nothing that happens on its page later changes it."""

    number: int  # of this session's pins, from 1
    item: Item
    texts: dict[str, bytes]  # caption, LaTeX, BibTeX, script and prompt, by file name


def pins() -> list[Pin]:
    found: list[Pin] = st.session_state.setdefault("pins", [])
    return found


def pin(item: Item, texts: dict[str, bytes]) -> str:
    """Adds a figure with what goes with it; returns what came of it, as a sentence."""
    if len(pins()) >= MOST:
        return f"{MOST} figures are pinned, which is the most: take some off on the page Figures."
    number = st.session_state["pins made"] = st.session_state.get("pins made", 0) + 1
    st.session_state["pins"] = [*pins(), Pin(number, replace(item, runs=()), texts)]
    return f"Pinned as figure {len(pins())} of the page Figures."


def begin_page(title: str) -> None:
    """Forgets what the page before this one, or this one with another view, offered."""
    st.session_state["offered"] = (title, {})


def offer(item: Item) -> None:
    """Remembers a figure of the page that is looked at, so that all of them can be pinned at once."""
    st.session_state.setdefault("offered", ("", {}))[1][item.name] = item


def offered() -> tuple[str, list[Item]]:
    """The title of the page that was looked at last, and its figures in their order."""
    title, items = st.session_state.get("offered", ("", {}))
    return title, list(items.values())


def move(number: int, by: int) -> None:
    """Moves a pin towards the first (by −1) or the last (by 1)."""
    found = pins()
    at = next(i for i, own in enumerate(found) if own.number == number)
    to = min(max(0, at + by), len(found) - 1)
    found.insert(to, found.pop(at))


def remove(number: int) -> None:
    st.session_state["pins"] = [own for own in pins() if own.number != number]


def panels(found: Sequence[Pin]) -> list[paper.Panel]:
    return [paper.Panel(own.item.draw, own.item.table, own.item.provenance) for own in found]


def zip_of(found: Sequence[Pin], width: float, columns: int, progress: Callable[[float, str], None]) -> bytes:
    """Every figure in a folder of its own as PDF, SVG, PNG, CSV and JSON with its texts, and the sheet of all if it holds them.

    Without a browser that draws, HTML stands for the pictures, and there is no sheet. Reads no session.
    """
    drawn = paper.can_render()
    work = [partial(_folder_of, own, f"{at:02}-{own.item.name}", width, drawn) for at, own in enumerate(found, 1)]
    doing = [f"{own.item.name}, {at} of {len(found)}" for at, own in enumerate(found, 1)]
    if drawn and len(found) <= paper.MOST:
        work.append(partial(_sheet_of, found, width, columns))
        doing.append("the sheet of all")
    made = paper.together([own.item.provenance for own in found])
    files: dict[str, bytes] = {}
    # One is prepared here while the browser, which is another process, draws what came before.
    with ThreadPoolExecutor(2, thread_name_prefix="zip") as pool:
        try:
            coming = [pool.submit(each) for each in work]
            for done, (each, what) in enumerate(zip(coming, doing, strict=True)):
                progress(done / len(work), what)
                files |= each.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    files["references.bib"] = paper.kit.references(made).encode()
    return paper.kit.zipped(files)


def _sheet_of(found: Sequence[Pin], width: float, columns: int) -> dict[str, bytes]:
    made = paper.together([own.item.provenance for own in found])
    sheet = paper.compose(panels(found), "pdf", width=width, columns=columns)
    return {"sheet.pdf": sheet, "sheet.tex": paper.kit.latex(made, "sheet.pdf", width).encode()}


def _folder_of(own: Pin, folder: str, width: float, drawn: bool) -> dict[str, bytes]:
    """A figure's files and texts, by their names in its folder."""
    item = own.item
    figure, height = item.sized(width)
    forms = (*(("pdf", "svg", "png") if drawn else ("html",)), "csv", "json")
    files = paper.exports(figure, item.table, forms, item.provenance, width=width, height=height)
    named = {f"{folder}/{item.file}.{form}": data for form, data in files.items()}
    return named | {f"{folder}/{name}": data for name, data in own.texts.items()}

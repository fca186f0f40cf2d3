"""What goes with a figure into a paper, from the runs that it is drawn from: caption, LaTeX, BibTeX, script, one zip."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any

import plotly.graph_objects as go
import streamlit as st

from sparsity_core.record import RunSpec, Trace
from ui.address import LETTERS
from ui.item import Draw as Draw
from ui.item import Item as Item
from ui.session import name_of, seen, shown, specs
from viz import again, cost, paper


def kit_files(item: Item, form: str, width: float, shape: float = 0.62, across: bool = False) -> dict[str, bytes]:
    """The texts that go with a figure's file, by their names."""
    file = f"{item.file}.{form}"
    texts = {
        f"{item.file}.txt": paper.kit.caption(item.provenance) + "\n",
        f"{item.file}.tex": paper.kit.latex(item.provenance, file, width, across=across),
        "references.bib": paper.kit.references(item.provenance),
        f"{item.file}.py": script_of(item, form, width, shape),
        paper.kit.PROMPT_FILE: item.provenance.prompt or "",
    }
    return {name: text.encode("utf-8", "surrogatepass") for name, text in texts.items() if text}


def everything(item: Item, width: float, shape: float = 0.62, across: bool = False) -> bytes:
    """A zip of the figure in every format that this machine writes, with what goes with it."""
    forms = [form for form in paper.FORMATS.values() if paper.can_render() or not form.rendered]
    figure, height = item.sized(width, shape)
    drawn = paper.exports(
        figure, item.table, [form.name for form in forms], item.provenance, width=width, height=height
    )
    files = {f"{item.file}.{name}": data for name, data in drawn.items()}
    return paper.kit.zipped(files | kit_files(item, "pdf", width, shape, across))


def script_of(item: Item, form: str, width: float, shape: float = 0.62) -> str:
    """Python that makes the figure again; "" for what is drawn from no run.

    It draws only where that was tried and came out the same: a figure may show more of its page's choices than the view.
    """
    if not item.runs:
        return ""
    runs = {title_of(spec, trace): (spec, trace) for spec, trace in item.runs}
    figure, height = item.sized(width, shape)
    choices = _choices()
    name = next((name for name in _names(item.name) if _makes(name, runs, choices, figure, width)), None)
    own = {title: spec for title, (spec, _) in runs.items()}
    file = f"{item.file}.{form}"
    return paper.kit.script(name, own, item.provenance, file, (width, round(height, 4)), choices)


def _makes(
    name: str, runs: dict[str, tuple[RunSpec, Trace]], choices: dict[str, Any], figure: go.Figure, width: float
) -> bool:
    try:
        drawn = again.draw(name, {title: trace for title, (_, trace) in runs.items()}, **choices, width=width)
    except ValueError:
        return False
    return again.same(drawn.figure, figure)


def _names(name: str) -> list[str]:
    """The names in `viz.again` that a page's figure may have: "atlas_A" and "strip_figure_A" are those of run A."""
    base = re.sub(rf"_[{LETTERS}]$", "", name)
    return [n for n in dict.fromkeys((base, base.removesuffix("_figure"))) if n in again.drawable()]


def _choices() -> dict[str, Any]:
    """The view, and the last step of all runs on the page, at which colours end."""
    view = {name: value for name, value in asdict(seen()).items() if name != "page" and value is not None}
    return {**view, "latest": max((item.trace.n_tokens for item in shown()), default=1) - 1}


def title_of(spec: RunSpec, trace: Trace) -> str:
    """What a legend calls a run."""
    letter = f"{LETTERS[specs().index(spec)]}: " if spec in specs() else ""
    return f"{letter}{name_of(spec.pipeline) or cost.label(trace)}"


def show_kit(item: Item, width: float, shape: float, across: bool) -> None:
    """The texts, to be copied; drawn when they are asked for."""
    opened = st.expander("Caption, LaTeX, BibTeX, script", key=f"kit_{item.name}", on_change="rerun")
    if not opened.open:
        return
    with opened:
        languages = {"txt": None, "tex": "latex", "bib": "latex", "py": "python"}
        for name, data in kit_files(item, "pdf", width, shape, across).items():
            if name != paper.kit.PROMPT_FILE:
                st.caption(name)
                st.code(data.decode("utf-8", "replace"), language=languages[name.rpartition(".")[2]], wrap_lines=True)

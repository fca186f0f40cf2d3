"""A figure on a page: drawn in the page's theme, with its table, a line on how to read it, and its downloads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from sparsity_core.record import Provenance, RunSpec, Trace, command_line
from ui.clicks import hear_clicks
from ui.export import PROMPT_FILE, export_panel
from ui.first_look import painted
from ui.kit import Draw, Item
from ui.pins import offer
from ui.session import link_of_view, seen
from viz import style

_HEIGHT = 450  # px of a figure that names none

Runs = list[tuple[RunSpec, Trace]]


def theme() -> Literal["light", "dark"]:
    """The browser's theme."""
    return "dark" if st.context.theme.type == "dark" else "light"


def show_figure(
    figure: go.Figure,
    table: pd.DataFrame,
    *,
    name: str,
    caption: str,
    read: str,
    sources: Runs | Provenance,
    on_click: Callable[[dict[str, Any]], None] | None = None,
) -> None:
    """Draws a figure and, below it, how to read it, its table and its downloads.

    `name` is unique on the page and becomes the file's name; `caption` is the stub that travels with the file; `sources` are
    the runs that the figure is drawn from, or the provenance of anything else. `on_click` gets the x and y of a clicked point
    before the page runs again.
    """
    key = f"figure_{name}"
    config = {"displayModeBar": False}  # a drag zooms, a double click resets; its buttons would be seven Tab stops
    if painted():
        st.plotly_chart(style(figure, theme(), in_place=True), theme=None, key=key, config=config, alt=caption)
    else:
        st.container(height=int(figure.layout.height or _HEIGHT), border=False)  # its place
    if on_click is not None:
        hear_clicks(key, on_click)
    offer_figure(lambda width: (figure, None), table, name=name, caption=caption, read=read, sources=sources)


@st.fragment
def offer_figure(
    draw: Draw,
    table: pd.DataFrame,
    *,
    name: str,
    caption: str,
    read: str,
    sources: Runs | Provenance,
) -> None:
    """What stands below a figure that the caller shows in its own way: how to read it, its table and its downloads.

    `draw` makes the figure for a file of a width in inches, when one is asked for, and tells its height where that is its own.
    """
    with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="top"):
        st.caption(read)
        # Filled when it is opened: a page's dozens of hidden buttons take longer to send and to mount than its figures.
        popover = st.popover(
            "Export", icon=":material/download:", width="content", key=f"export_{name}", on_change="rerun"
        )
    made = sources if isinstance(sources, Provenance) else of_runs(sources)
    runs = () if isinstance(sources, Provenance) else tuple(sources)
    item = Item(name, draw, table, replace(made, caption=caption, link=link_of_view()), runs)
    offer(item)
    if popover.open:
        with popover:
            export_panel(item)


def of_runs(sources: Runs) -> Provenance:
    """What stands behind a figure of runs. The first tells all but the pipelines and the commands."""
    spec, trace = sources[0]
    return replace(
        trace.provenance,
        pipeline=" | ".join(t.provenance.pipeline for _, t in sources),
        command="\n".join(_command(own) for own, _ in sources),
        prompt=spec.prompt,
        view=seen(),
        facts={"tokens": str(trace.n_tokens), "generated": str(generated_tokens(spec, trace))},
    )


def generated_tokens(spec: RunSpec, trace: Trace) -> int:
    """How many tokens a run wrote. A trace has one fewer: the last of them is never read."""
    return trace.n_tokens - trace.n_prompt + 1 if spec.generate else 0


def _command(spec: RunSpec) -> str:
    """The command that computes a run again; the prompt is read from a file."""
    return command_line(
        "generate" if spec.generate else "run",
        max_new_tokens=spec.generate or None,
        file=PROMPT_FILE,
        model=spec.model,
        pipeline=spec.pipeline,
        seed=spec.seed,
        add_bos=spec.add_bos,
        question=None if spec.question == "auto" else spec.question,
        device=spec.device,
        dtype=spec.dtype,
        out="results",
    )

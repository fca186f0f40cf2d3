"""A figure on a page: drawn in the page's theme, with its table, a line on how to read it, and its downloads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from sparsity_core.record import Provenance, RunSpec, Trace, command_line
from ui.clicks import hear_clicks
from ui.first_look import painted
from ui.literal import literal
from ui.session import seen
from viz import paper, style

PROMPT_FILE = "prompt.txt"
_TABLE_ROWS = 2000
_HEIGHT = 450  # px of a figure that names none
_SHAPES = {"usual": 0.62, "low": 0.33, "square": 1.0}  # a file's height over its width


Runs = list[tuple[RunSpec, Trace]]
Draw = Callable[[float], tuple[go.Figure, float | None]]  # (figure, its own height) for a width; inches


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
    if popover.open:
        with popover:
            made = sources if isinstance(sources, Provenance) else of_runs(sources)
            _formats(draw, table, name, replace(made, caption=caption))


def _formats(draw: Draw, table: pd.DataFrame, name: str, provenance: Provenance) -> None:
    width = st.selectbox("Width", list(paper.WIDTHS), key=f"width_{name}", help="the exact width of the paper's column")
    shape = st.selectbox("Height", list(_SHAPES), key=f"height_{name}", help="low for a curve with a few spikes")
    chosen = st.checkbox(
        "With the marks of what is chosen",
        key=f"chosen_{name}",
        help="the frame of the layer, the tip at the token, the step",
    )
    rendered = paper.can_render()
    if not rendered:
        st.caption("PDF, SVG and PNG need Chromium or Chrome on this machine; HTML and CSV do not.")
    elif missing := paper.missing_glyphs(draw(paper.WIDTHS[width])[0]):
        st.warning(literal(paper.say_missing(missing)), icon=":material/font_download:")

    def export(form: str) -> bytes:
        inches = paper.WIDTHS[width]
        figure, height = draw(inches)
        height = paper.natural_height(figure, inches, _SHAPES[shape]) if height is None else height
        return paper.export(figure, table, form, provenance, width=inches, height=height, chosen=chosen)

    for form in paper.FORMATS.values():
        st.download_button(
            form.label,
            data=partial(export, form.name),
            file_name=f"{name}.{form.name}",
            mime=form.mime,
            key=f"{form.name}_{name}",
            disabled=form.rendered and not rendered,
            on_click="ignore",
            width="stretch",
        )
    st.caption(literal(f"{provenance.caption} {made_by(provenance)}"))
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


def made_by(made: Provenance) -> str:
    """The model and what was done with it, as a sentence."""
    gamma = made.facts.get("gamma")
    done = made.facts.get("method") or made.pipeline.replace(" | ", " against ") or (gamma and f"γ = {gamma}")
    return f"{made.model}, {done}." if done else f"{made.model}."


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
        device=spec.device,
        dtype=spec.dtype,
        out="results",
    )

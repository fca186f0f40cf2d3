"""What each pipeline wrote, the first token that differs, and the evictions behind it."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import streamlit as st

from sparsity_core.record import key_of
from sparsity_core.work import Job
from ui import work
from ui.compare.tables import take_away
from ui.figure import show_figure
from ui.literal import literal
from ui.parting import go_to, show_parting
from ui.session import Shown
from ui.tasks import compare
from ui.view import View
from viz import compare as viz

_NAMES = {
    "tokens": "tokens written",
    "parts": "first other token",
    "loop": "loop begins at",
    "period": "loop's period",
}
_KEPT = 32  # looks at the attention of one query


def generations(shown: list[Shown], at: View) -> None:
    """A line for each pipeline: what it wrote as far as it agrees with the dense model, or with A, and how it went on."""
    if len(shown) < 2 or not any(item.trace.continuation for item in shown):
        return
    one = next((item for item in shown if item.trace.provenance.pipeline == "dense"), shown[0])
    st.subheader(f"What each wrote, against {one.letter}", anchor=False)
    st.markdown(f"**{literal(one.title)}**")
    st.text(one.trace.continuation)
    for item in shown:
        if item is not one:
            _generation(item, one)
    _lengths(shown, one)


def _lengths(shown: list[Shown], one: Shown) -> None:
    """How far each text went: its length, where it parts from the first's, and the loop that it ends in."""
    table = viz.writing_table({item.title: item.trace for item in shown}, one.title, one.spec.generate)
    ratio = f"length ÷ {one.letter}"
    tidy = table.rename(columns={**_NAMES, "inflation": ratio})
    st.dataframe(tidy, hide_index=True, column_config={ratio: st.column_config.NumberColumn(format="%.2f")})
    st.caption(
        f"Length ÷ {one.letter} is a pipeline's tokens until the end of its text over those of {one.letter}, which is known "
        f"where {one.letter} ended within {one.spec.generate} tokens; a text that did not end is longer still. A loop is an "
        "n-gram that ends the text at least three times over, in eight tokens or more. Places count from the text's first token."
    )
    take_away(tidy, [(item.spec, item.trace) for item in shown], "How far each pipeline's text went.", "writing")


def _generation(item: Shown, one: Shown) -> None:
    st.markdown(f"**{literal(item.title)}**")
    step = show_parting(item, one.trace, one.letter)
    if step is not None:
        with st.container(horizontal=True):
            go_to(step, f"parting_{item.letter}")
            _behind(item, step)


def _behind(item: Shown, step: int) -> None:
    """The evicted tokens that the dense model looked at most where the texts part; computed when asked for."""
    key = f"attention of {step} {key_of(item.spec)}"
    purpose, attention = f"behind_{item.letter}", _known().get(key)
    if attention is None:
        if not work.pending(purpose) and st.button(
            "Which evictions stand behind it?", key=f"ask_{purpose}", icon=":material/search:"
        ):
            ids = tuple(item.trace.token_ids[: step + 1].tolist())
            work.submit(purpose, {key: partial(compare.query_attention, item.spec, ids)})
            st.rerun()
        work.watch(purpose, _keep)
        return
    table = viz.behind_table(item.trace, attention, step)
    if not len(table):
        st.caption("No token that the dense model looks at here was evicted: what is read, hidden or cut decides.")
        return
    show_figure(
        viz.plot_behind(table),
        table,
        name=f"behind_{item.letter}",
        caption=f"Evicted tokens that the dense model attends to most in the query at step {step}, mean over all layers and "
        f"heads ({item.title}).",
        read=f"Together {table['attention'].sum():.1%} of the dense attention of this query went to keys that were evicted.",
        sources=[(item.spec, item.trace)],
    )


@st.cache_resource(show_spinner=False)
def _known() -> dict[str, np.ndarray]:
    return {}


def _keep(jobs: dict[str, Job]) -> None:
    known: dict[str, Any] = _known()
    known.update({key: job.result for key, job in jobs.items()})
    while len(known) > _KEPT:
        known.pop(next(iter(known)))

"""Whether a difference between pipelines is real: their losses on many passages, pair by pair."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import streamlit as st

from sparsity_core.record import key_of
from sparsity_core.work import Job
from ui import work
from ui.figure import show_figure
from ui.knobs import choose_one
from ui.literal import literal
from ui.session import Shown, looks_of
from ui.tasks import compare
from viz import compare as viz

PASSAGES, LENGTH = 16, 192  # of the evaluation text, and tokens of each


def tested(shown: list[Shown]) -> None:
    """The mean loss of each pipeline over passages, with the interval of its difference to one of them, and the verdict."""
    if len(shown) < 2:
        return
    st.subheader("Is the difference real?", anchor=False)
    known = {item.title: _known()[key] for item in shown if (key := _key(item)) in _known()}
    if len(known) < len(shown) and not work.pending("tested"):
        st.caption(
            f"One text decides nothing. This measures every pipeline on {PASSAGES} passages of {LENGTH} tokens that no method "
            "was fitted to (Python's language reference), reading each from its beginning with every stage at work."
        )
        if st.button("Measure", key="run_tested", icon=":material/science:"):
            missing = {
                _key(s): partial(compare.losses, s.spec, PASSAGES, LENGTH) for s in shown if s.title not in known
            }
            work.submit("tested", missing)
            st.rerun()
    work.watch("tested", _keep)
    if len(known) < 2:
        return
    letters = {item.letter: item.letter for item in shown if item.title in known}
    against = choose_one("Against", letters, "tested_against")
    one = next(item.title for item in shown if item.letter == against)
    table = viz.tested_table(known, one)
    for row in table.itertuples():
        real = row.verdict in ("better", "worse")
        st.markdown(
            f"**{literal(row.pipeline)}** {'is ' if real else ''}**{row.verdict}** {'than' if real else 'from'} "
            f"{against}: loss {row.difference:+.4f} nats a token (95 % of resamples: {row.low:+.4f} to {row.high:+.4f})."
        )
    show_figure(
        viz.plot_tested(table, looks_of(shown)),
        table,
        name="tested",
        caption=f"Difference of the mean loss to {one}, over {PASSAGES} passages of {LENGTH} tokens; the bar holds 95 % of "
        "bootstrap resamples of the passages.",
        read="Left of 0 is better. A bar that touches 0 tells no difference. The passages are the units, since tokens of one "
        "text are not independent.",
        sources=[(item.spec, item.trace) for item in shown if item.title in known],
    )


def _key(item: Shown) -> str:
    return f"losses {PASSAGES} {LENGTH} {key_of(item.spec)}"


@st.cache_resource(show_spinner=False)
def _known() -> dict[str, np.ndarray]:
    """The losses of the passages, by run, that were measured in this process: a few numbers each."""
    return {}


def _keep(jobs: dict[str, Job]) -> None:
    known: dict[str, Any] = _known()
    known.update({key: job.result for key, job in jobs.items()})

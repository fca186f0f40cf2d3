"""What the sections of Compare share: a table to take away, and what a compression could know of the question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pandas as pd
import streamlit as st

from sparsity_core.record import RunSpec, Trace, question_at
from ui.figure import of_runs
from ui.literal import literal
from ui.session import Shown
from viz import paper

HALF = "A method of one cut has read half of the text before it cuts, and does not know the rest."


def take_away(table: pd.DataFrame, sources: list[tuple[RunSpec, Trace]], caption: str, name: str) -> None:
    """The files that hold a table, as papers print it."""
    popover = st.popover("Take the table away", icon=":material/table:", key=f"take_{name}", on_change="rerun")
    if not popover.open:
        return
    made = replace(of_runs(sources), caption=caption)
    for form, (label, mime, write) in paper.TABLES.items():
        popover.download_button(
            label,
            data=partial(write, table, made),
            file_name=f"{paper.kit.file_name(name, made)}.{form}",
            mime=mime,
            key=f"{name}_{form}",
            icon=":material/download:",
            on_click="ignore",
        )


def told_question(shown: Sequence[Shown]) -> str:
    """What a compression of the prompt could know of the question in it, in sentences: rankings turn with it."""
    spec, trace = shown[0].spec, shown[0].trace
    if spec.question == "auto" and not spec.generate:
        return HALF
    if spec.question == "unknown":
        place = question_at(trace.texts[: trace.n_prompt])
        at = "" if place is None else f", “{literal(_beginning(trace, *place))}” from token {place[0]} on,"
        return (
            f"The question{at} is not known: the prompt is compressed before it, and it and the rest come a token at a time. "
            "To a method that evicts at each step this is next to no difference: it never knew what comes."
        )
    where = (
        "it is part of the prompt that a compression reads"
        if spec.generate
        else "a method of one cut cuts right after it"
    )
    return f"The question is known: {where}."


def _beginning(trace: Trace, first: int, end: int) -> str:
    text = "".join(trace.texts[first:end]).strip()
    return text if len(text) <= _MOST else f"{text[:_MOST]}…"


_MOST = 60  # letters of a question

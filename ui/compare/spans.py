"""Who loses what: each named span of the text, under every pipeline."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from sparsity_core.models import PROMPTS
from ui.compare.tables import told_question
from ui.figure import show_figure
from ui.knobs import choose_one
from ui.literal import literal
from ui.session import Shown, looks_of
from ui.view import View
from viz import compare as viz


def spans(shown: list[Shown], at: View) -> None:
    """What is kept of each span, and how the prediction of its tokens changes."""
    st.subheader(f"Who loses what, at step {at.step}", anchor=False)
    looks = looks_of(shown)
    text = shown[0].spec.prompt
    known = next((prompt.spans for prompt in PROMPTS.values() if text.startswith(prompt.text)), "")
    with st.expander("Name spans of your own", icon=":material/format_ink_highlighter:"):
        own = st.text_area(
            "A line for each: its name, a colon, and its text or positions",
            known,
            placeholder="needle: the code of the blue door is 7421\nrules: 0-24",
            key=f"compare_spans_{hash(text)}",
        )
    tables, absent = list[pd.DataFrame](), dict[str, str]()
    for item in shown:
        try:
            tables.append(viz.spans_table({item.title: item.trace}, own, at.step))
        except ValueError as error:
            absent[item.title] = str(error)
    if not tables:
        first = next(iter(absent.values()))
        st.error(literal(f"{first[0].upper()}{first[1:]}."))
        return
    for title, why in absent.items():
        st.info(literal(f"{title} is left out: {why}."))
    table, shown = pd.concat(tables, ignore_index=True), [item for item in shown if item.title not in absent]
    measure = choose_one("Of each span", viz.SPAN_MEASURES, "compare_span_measure")
    if table[measure].isna().all():
        st.info("These runs were not compared with the dense model: run them with the comparison.")
        return
    show_figure(
        viz.plot_spans(table, looks, measure),
        table,
        name="spans",
        caption=f"{viz.SPAN_MEASURES[measure]}, up to step {at.step}, over all layers and KV heads, of each span and pipeline. "
        "Kept is what no gate and no eviction took for good; what a prefill or decode method leaves unread stays in the cache.",
        read="Found by rule: the roles of a chat, the question, fenced code, numbers. What no span holds is “other”. Move the "
        f"step to the question's first token to see what went before it. {told_question(shown)}",
        sources=[(item.spec, item.trace) for item in shown],
    )

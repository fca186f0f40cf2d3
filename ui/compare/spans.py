"""Who loses what: each named span of the text, under every pipeline."""

from __future__ import annotations

import streamlit as st

from sparsity_core.models import PROMPTS
from ui.figure import show_figure
from ui.knobs import choose_one
from ui.literal import literal
from ui.session import Shown, looks_of
from ui.view import View
from viz import compare as viz


def spans(shown: list[Shown], at: View) -> None:
    """What is kept of each span, and how the prediction of its tokens changes."""
    st.subheader(f"Who loses what, at step {at.step}", anchor=False)
    text = "".join(shown[0].trace.texts)
    known = next((prompt.spans for prompt in PROMPTS.values() if text.startswith(prompt.text)), "")
    with st.expander("Name spans of your own", icon=":material/format_ink_highlighter:"):
        own = st.text_area(
            "A line for each: its name, a colon, and its text or positions",
            known,
            placeholder="needle: the code of the blue door is 7421\nrules: 0-24",
            key=f"compare_spans_{hash(text)}",
        )
    try:
        table = viz.spans_table({item.title: item.trace for item in shown}, own, at.step)
    except ValueError as error:
        st.error(literal(f"{str(error)[0].upper()}{str(error)[1:]}."))
        return
    measure = choose_one("Of each span", viz.SPAN_MEASURES, "compare_span_measure")
    if table[measure].isna().all():
        st.info("These runs were not compared with the dense model: run them with the comparison.")
        return
    show_figure(
        viz.plot_spans(table, looks_of(shown), measure),
        table,
        name="spans",
        caption=f"{viz.SPAN_MEASURES[measure]}, up to step {at.step}, over all layers and KV heads, of each span and pipeline. "
        "Kept is what no gate and no eviction took for good; what a prefill or decode method leaves unread stays in the cache.",
        read="Found by rule: the roles of a chat, the question, fenced code, numbers. What no span holds is “other”. What went "
        "before the question's first token went without knowing it: move the step there to see how much.",
        sources=[(item.spec, item.trace) for item in shown],
    )

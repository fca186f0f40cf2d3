"""What the model wrote under each pipeline, beside what it writes with nothing pruned."""

from __future__ import annotations

from dataclasses import replace

import streamlit as st

from ui import work
from ui.literal import literal
from ui.parting import go_to, inline, show_parting
from ui.session import Shown, trace_of


def answers(shown: list[Shown]) -> None:
    """The dense model's text, and each run's with its first other token marked; without generated tokens nothing."""
    written = [item for item in shown if item.trace.continuation]
    if not written:
        return
    spec = replace(written[0].spec, pipeline="dense")
    dense = trace_of(spec)
    if dense is None:
        for item in written:
            st.markdown(f"{_named(item, shown)} wrote: {inline(item.trace.continuation)}")
        work.offer_specs("dense_answer", [spec], 0, "", "What does the dense model write?", "compare_arrows")
        return
    st.markdown(f"The dense model wrote: {inline(dense.continuation)}")
    for item in written:
        if item.spec.pipeline == "dense":
            continue
        step = show_parting(item, dense, "the dense model", f"{_named(item, shown)} wrote: ")
        if step is not None:
            go_to(step, f"answer_{item.letter}")


def _named(item: Shown, shown: list[Shown]) -> str:
    named = literal(item.name) or "This pipeline"
    return f"**{item.letter}**" if len(shown) > 1 else named

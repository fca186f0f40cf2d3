"""The stages of a run as one picture, each with a way to the page that explains it."""

from __future__ import annotations

import streamlit as st

from sparsity_core.kinds import Pipeline
from ui.figure import show_figure
from ui.page import page_of
from ui.pairs import known_pairs
from ui.session import Shown
from viz import cost
from viz import pipeline as viz


def pipeline_view(item: Shown) -> None:
    """What each stage takes in and gives out, for a run of more than one stage."""
    trace = item.trace
    stages = list(Pipeline.parse(item.spec.pipeline).methods)
    if len(stages) < 2:
        return
    st.subheader(f"{item.letter}: the pipeline, stage by stage", anchor=False)
    if trace.sizes is None:
        st.caption("This run was computed before sizes were kept: delete it from the cache folder and press Run.")
        return
    table = viz.pipeline_table(trace, known_pairs(item))
    show_figure(
        viz.plot_pipeline(table),
        table,
        name=f"pipeline_{item.letter}",
        caption=f"What each stage takes in and gives out; the pale band is the dense model ({cost.label(trace)}).",
        read="A pipe is as wide as what is left of the dense model's, and narrows in the column of the stage that cuts it; the "
        "number is what comes out. Operations of attention are those of the pairs seen, with what choosing them costs.",
        sources=[(item.spec, trace)],
    )
    row = st.container(horizontal=True)
    row.caption("Explained on:")
    for stage in stages:
        page = page_of(stage)
        if page is not None:
            row.page_link(page, label=f"{stage}: {page.title}", icon=page.icon, width="content")

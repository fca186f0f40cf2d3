"""The sections of the Patterns page that look at runs."""

from __future__ import annotations

import streamlit as st

from sparsity_core.kinds import Pipeline
from ui.figure import show_figure
from ui.knobs import choose_one
from ui.patterns.looks import block_of, watch_look
from ui.session import Shown
from ui.view import View, request
from viz import cost
from viz import patterns as viz


def pattern(shown: list[Shown], at: View) -> None:
    """The blocks that A and B see, over the dense attention of the same layer and head."""
    st.subheader(f"Which blocks of keys layer {at.layer} sees", anchor=False)
    look = watch_look(shown[0], at.layer, block_of(shown))
    names = {f"{s.letter}: {_prefill(s)}": s for s in shown}
    table = viz.pattern_table({name: s.trace for name, s in names.items()}, at.layer, at.head, look)
    if not len(table):
        st.info("No prefill method runs here: choose one under Prefill in the sidebar, and press Run.")
        return
    lost = _lost(table)
    show_figure(
        viz.plot_pattern(table, at.token if at.token < shown[0].trace.n_at_once else None),
        table,
        name="pattern",
        caption=f"Blocks of {block_of(shown)} keys that blocks of queries see in layer {at.layer}, {at.mean_heads}, over the "
        "dense attention.",
        read="Grey is dense attention, of equal scale; the tint is what the prefill method shows. Grey without tint is lost. "
        + lost,
        sources=[(s.spec, s.trace) for s in shown],
        on_click=lambda point: request(token=int(point["x"]), step=int(point["y"])),
    )


def _prefill(item: Shown) -> str:
    method = Pipeline.parse(item.spec.pipeline).prefill
    return "dense" if method is None else method.name


def _lost(table) -> str:  # type: ignore[no-untyped-def]
    known = table.dropna(subset=["attention"])
    if not len(known):
        return ""
    said = []
    for name, own in known.groupby("pipeline", sort=False):
        queries = own["query"].nunique()
        unseen = float((own["attention"] * (own["seen"] == 0)).sum() / queries)
        said.append(f"{str(name).partition(':')[0]} loses {unseen:.1%} of it in blocks of which nothing is seen")
    return "; ".join(said) + "."


def along(item: Shown, at: View) -> None:
    """Importance and information density along the text, with what is kept of each segment."""
    trace, step = item.trace, min(at.step, item.trace.n_at_once - 1)
    st.subheader(f"{item.letter}: importance along the text, layer {at.layer}", anchor=False)
    look = watch_look(item, at.layer, block_of([item]))
    if look is None:
        return
    table = viz.along_table(trace, look, at.layer, at.head, step)
    show_figure(
        viz.plot_along(table, at.token),
        table,
        name=f"along_{item.letter}",
        caption=f"Mean dense attention that each key gets in layer {at.layer}, {at.mean_heads}, and whether the query at step "
        f"{step} sees it ({cost.label(trace)}).",
        read="A key's attention is divided by the queries that can see it. Filled: the query sees the key. Click to follow it.",
        sources=[(item.spec, trace)],
        on_click=lambda point: request(token=int(point["x"])),
    )
    level = choose_one(
        "Segments",
        {"sentence": "sentences", "paragraph": "paragraphs"},
        f"patterns_level_{item.letter}",
    )
    table = viz.segments_table(trace, look, at.layer, at.head, step, level)
    show_figure(
        viz.plot_segments(table),
        table,
        name=f"segments_{item.letter}",
        caption=f"Information density and budget of each {level} in layer {at.layer}, {at.mean_heads}, for the query at step "
        f"{step} ({cost.label(trace)}).",
        read="Density is exp of the entropy of a segment's importance over its length: 1 where it is spread evenly. The budget "
        "of an adaptive method follows it.",
        sources=[(item.spec, trace)],
        on_click=lambda point: request(token=int(max(0, point["x"]))),
    )


def hierarchy(item: Shown, at: View) -> None:
    """What the query sees of tokens, sentences and paragraphs."""
    step = min(at.step, item.trace.n_at_once - 1)
    st.subheader(f"{item.letter}: token, sentence, paragraph, layer {at.layer}", anchor=False)
    table = viz.hierarchy_table(item.trace, at.layer, at.head, step)
    counts = table.groupby("level", sort=False).size()
    show_figure(
        viz.plot_hierarchy(table, at.token),
        table,
        name=f"hierarchy_{item.letter}",
        caption=f"Share of each token, sentence and paragraph that the query at step {step} sees in layer {at.layer}, "
        f"{at.mean_heads} ({cost.label(item.trace)}).",
        read=", ".join(f"{count:,} {level}{'s' if count != 1 else ''}" for level, count in counts.items())
        + ". What is dark is hidden from this query. Click to follow a token.",
        sources=[(item.spec, item.trace)],
        on_click=lambda point: request(token=int(point["x"])),
    )

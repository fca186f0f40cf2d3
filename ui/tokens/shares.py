"""How a run's causal pairs divide among what is read and what each stage removed."""

from __future__ import annotations

import streamlit as st

from ui.figure import show_figure
from ui.pairs import known_pairs, offer_pairs
from ui.session import Shown
from viz import cost, fates, removed


def shares(item: Shown) -> None:
    """The figure of one run in which several stages can remove keys; of a long text it is counted when asked for."""
    trace = item.trace
    if len(fates.removing(trace)) < 2:
        return
    st.subheader(f"{item.letter}: which stage removed what", anchor=False)
    if not fates.choices_kept(trace):
        st.caption("Which keys the decode stage read was not kept of so long a text: a shorter one shows the shares.")
        return
    table = known_pairs(item)
    if table is None:
        offer_pairs(item)
        return
    whole = table["pairs"].sum()
    said = ", ".join(f"{stage} {own.sum() / whole:.1%}" for stage, own in table.groupby("stage", sort=False)["pairs"])
    show_figure(
        removed.plot_removed(table),
        table,
        name=f"removed_{item.letter}",
        caption=f"Share of the causal pairs of a query and a key that is read, and that each stage removed, by layer; a pair is "
        f"charged to the first stage that removed it ({cost.label(trace)}).",
        read=f"Over all layers and heads: {said}.",
        sources=[(item.spec, trace)],
    )

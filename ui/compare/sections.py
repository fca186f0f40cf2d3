"""The sections of the Compare page that are drawn from the traces alone."""

from __future__ import annotations

import streamlit as st

from ui.figure import show_figure
from ui.knobs import choose_one
from ui.session import Shown, looks_of
from ui.view import View, request
from viz import compare as viz


def kl(shown: list[Shown], at: View) -> None:
    """The KL of every pipeline along the text."""
    table = viz.kl_table({item.title: item.trace for item in shown}, at.window(max(s.trace.n_tokens for s in shown)))
    if not len(table):
        return
    st.subheader("Where each prediction changes", anchor=False)
    show_figure(
        viz.plot_kl(table, at.step),
        table,
        name="kl",
        caption="KL divergence of the next-token distribution from the dense model's after each token, a row a pipeline "
        f"({'; '.join(table['pipeline'].unique())}).",
        read="Bright is where a pipeline's prediction leaves the dense model's. Click to go to that step.",
        sources=[(item.spec, item.trace) for item in shown if item.trace.compared],
        on_click=lambda point: request(step=int(point["x"]), token=int(point["x"])),
    )


def contested(shown: list[Shown], at: View) -> None:
    """Tokens on which the pipelines do not agree, for every layer."""
    if len(shown) < 2:
        return
    st.subheader(f"Contested tokens at step {at.step}", anchor=False)
    try:
        table = viz.contested_table({item.title: item.trace for item in shown}, at.head, at.step)
    except ValueError as error:
        st.info(f"{error}.")
        return
    share = table["contested"].mean()
    show_figure(
        viz.plot_contested(table, len(shown), (at.layer, at.token)),
        table,
        name="contested",
        caption=f"By how many of {len(shown)} pipelines each contested token is removed from the query at step {at.step}, "
        f"{at.heads}, on the beginning that all texts share.",
        read=f"A filled cell is removed by some pipelines and not by all: {share:.0%} of all layers and tokens. Click one to "
        "follow its token.",
        sources=[(item.spec, item.trace) for item in shown],
        on_click=lambda point: request(layer=int(point["y"]), token=int(point["x"])),
    )


def agreement(shown: list[Shown], at: View) -> None:
    """How alike each pipeline's decisions are to those of one of them, by layer."""
    if len(shown) < 2:
        return
    st.subheader("Who decides like whom", anchor=False)
    with st.container(horizontal=True):
        measure = choose_one("Likeness", viz.AGREEMENTS, "compare_agreement")
        against = choose_one("Against", {item.letter: item.letter for item in shown}, "compare_against")
    one = next(item for item in shown if item.letter == against)
    table = viz.agreement_table({item.title: item.trace for item in shown}, one.title, at.head, at.step)
    if not len(table):
        st.info(f"No other run shares a text with {against}: run all on the same prompt.")
        return
    if table[measure].isna().all():
        st.info(f"{against} drops nothing for good together with another: there is no order of dropping to compare.")
    show_figure(
        viz.plot_agreement(table, looks_of(shown), measure, at.layer),
        table,
        name="agreement",
        caption=f"{viz.AGREEMENTS[measure]} by layer, of each pipeline and {one.title}, {at.heads}, up to step {at.step}.",
        read="1 is the same decision. The Jaccard index counts what each stage removed from this query; the rank "
        "correlation is over the keys that either dropped for good.",
        sources=[(item.spec, item.trace) for item in shown],
    )

"""How did each token's score move, when did it fall below the threshold, and how far is that from the ideal?"""

from __future__ import annotations

import streamlit as st

from ui.entry import start_from_app
from ui.explain import explain_methods
from ui.figure import show_figure
from ui.knobs import choose_one
from ui.literal import code
from ui.page import Page
from ui.scores import choose_tokens, refilled_scores
from ui.session import Shown
from ui.sweeps import forgetting_sweep
from ui.view import View
from viz import cost, scores

PAGE = Page("Scores", ":material/show_chart:", order=2)


def page(shown: list[Shown], at: View) -> None:
    st.subheader(f"Accumulated scores, layer {at.layer}")
    positions = choose_tokens(shown[0].trace, at)
    head = at.head if isinstance(at.head, int) else 0
    with st.container(horizontal=True, vertical_alignment="center"):
        log = st.toggle("Logarithmic", value=True, key="log_scores", width="content")
        scored = [item for item in shown if scores.has_scores(item.trace, at.layer, head)]
        fine = {item.letter: refilled_scores(item, at.layer) for item in scored}
    tables = {s.letter: scores.score_table(s.trace, at.layer, head, positions, fine.get(s.letter)) for s in shown}
    limits = scores.shared_range(list(tables.values()), log)
    for column, item in zip(st.columns(len(shown)), shown, strict=True):
        table = tables[item.letter]
        with column:
            if not scores.has_scores(item.trace, at.layer, head):
                st.info(
                    f"{item.letter}: {code(cost.label(item.trace))} keeps no scores here: it decides by position alone."
                )
                continue
            figure = scores.plot_scores(table, step=at.step, log=log).update_yaxes(range=limits)
            show_figure(
                figure,
                table,
                name=f"scores_{item.letter}",
                caption=f"Accumulated scores in layer {at.layer}, KV head {head} ({cost.label(item.trace)}).",
                read=f"{item.letter}, KV head {head}. A token is dropped (×) when its score is the lowest that is not "
                "protected; grey is the score of the token dropped at each step.",
                sources=[(item.spec, item.trace)],
            )
    forgetting_sweep(shown[0], at.layer)
    compared = {f"{s.letter}: {cost.label(s.trace)}": s.trace for s in shown if s.trace.compared}
    if compared:
        _against_dense(shown, compared, at)
    explain_methods(shown)


def _against_dense(shown: list[Shown], compared: dict, at: View) -> None:
    st.subheader("Against the ideal mask")
    sources = [(s.spec, s.trace) for s in shown]
    measure = choose_one("Measure", cost.MEASURES, "similarity")
    table = cost.similarity_table(compared, at.head)
    show_figure(
        cost.plot_similarity(table, measure, at.layer),
        table,
        name="similarity",
        caption="Similarity of the kept keys to the dense model's own top keys of equal number, by layer, "
        f"{at.mean_heads}.",
        read="The ideal mask keeps as many keys at each step, those that the dense model attends to most; "
        "the cosine weighs them by that.",
        sources=sources,
    )
    st.subheader("Regret by layer and head")
    tables = {s.letter: cost.regret_table(s.trace, at.step) for s in shown if s.trace.compared}
    most = max(float(t["regret"].max()) for t in tables.values()) or 1e-6
    for column, item in zip(st.columns(len(tables)), [s for s in shown if s.trace.compared], strict=True):
        with column:
            show_figure(
                cost.plot_regret(tables[item.letter], most),
                tables[item.letter],
                name=f"regret_{item.letter}",
                caption=f"Regret by layer and query head, mean up to step {at.step} ({cost.label(item.trace)}).",
                read=f"{item.letter}: the share of the dense model's attention that went to keys already evicted.",
                sources=[(item.spec, item.trace)],
            )


if __name__ == "__main__":
    start_from_app()

"""Quality against realised bytes: the figure, and its table to take away."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from ui.compare.tables import HALF, take_away, told_question
from ui.compare.texts import known_texts
from ui.figure import show_figure
from ui.knobs import choose_one
from ui.session import Shown, looks_of
from viz import compare as viz
from viz import cost

_TEXTS = "texts"  # the span of many texts, beside viz.SPANS
_NAMES = {
    "pipeline": "pipeline",
    "kl": "mean KL (nats)",
    "perplexity": "perplexity ÷ dense",
    "disagrees": "other top token",
    "held": "held (MiB)",
    "read": "read a step (MiB)",
    "traffic": "with weights (MiB)",
}


def quality(shown: list[Shown]) -> None:
    """What each pipeline keeps of the dense model's behaviour, against the bytes that it holds or reads."""
    generated = any(item.trace.n_tokens > item.trace.n_prompt for item in shown)
    row = st.container(horizontal=True)
    texts = {
        title: [text.row for text in measured] for title, measured in known_texts(shown).items() if len(measured) > 1
    }
    with row:
        spans = viz.SPANS if generated else {"prompt": viz.SPANS["prompt"]}
        if len(texts) == len(shown):
            spans = {_TEXTS: f"{len(next(iter(texts.values())))} texts", **spans}
        span = (
            choose_one("Measured on", spans, "compare_span" + _TEXTS * (_TEXTS in spans))
            if len(spans) > 1
            else "prompt"
        )
        measure = choose_one("Quality", viz.MEASURES, "compare_measure")
        counted = choose_one("Cost", viz.COSTS, "compare_cost")
    runs = {item.title: item.trace for item in shown}
    table = viz.texts_table(texts) if span == _TEXTS else viz.tradeoff_table(runs, span)
    if not len(table):
        st.info("None of these runs was compared with the dense model: run one with a method.")
        return
    question = HALF if span == _TEXTS else told_question(shown)
    figure = viz.plot_tradeoff(table, looks_of(shown), measure, counted)
    show_figure(
        figure,
        table,
        name="quality",
        caption=f"{viz.MEASURES[measure]} of {_of(span, table)} against {viz.COSTS[counted]}, as realised.",
        read=f"Down and left is better. {_told_bounds(shown)} {question} {_told_dense(shown, span)}"
        + _told_absent(table, counted),
        sources=[(item.spec, item.trace) for item in shown],
    )
    _table(shown, table, span)


def _of(span: str, table: pd.DataFrame) -> str:
    if span == _TEXTS:
        return f"the later half of {int(table['n'].max())} texts, the mean with 95 % of its bootstrap resamples,"
    return f"the {int(table['n'].max())} queries of {'what was generated' if span == 'generated' else 'the prompt'} on one text"


def _told_dense(shown: list[Shown], span: str) -> str:
    """Which pipelines have nothing to lose in the prompt, and that texts part where something was generated."""
    if span == "generated":
        return (
            "Each is held against the dense model on the text that it wrote itself; one that runs in a loop finds its own "
            "text likely."
        )
    if span == _TEXTS:
        return ""
    dense = [item.letter for item in shown if viz.reads_prompt_densely(item.trace)]
    if not dense:
        return ""
    verb = "reads" if len(dense) == 1 else "read"
    return (
        f"{', '.join(dense)} {verb} the prompt as the dense model does, so that a loss of 0 here says nothing: look at "
        "what was generated, or run with 0 generated tokens, where every query is pruned."
    )


def _told_bounds(shown: list[Shown]) -> str:
    """Which of the pipelines are the floor and the ceiling at their bytes, or where to find them."""
    methods = {item.letter: cost.method_of(item.trace) for item in shown}
    floor = [letter for letter, name in methods.items() if name == "random"]
    ceiling = [letter for letter, name in methods.items() if name.startswith("oracle_")]
    told = [f"{', '.join(of)}: {what}" for of, what in ((floor, "the floor"), (ceiling, "the ceiling")) if of]
    if told:
        return f"At their bytes {' and '.join(told)}."
    return "Floor and ceiling at equal bytes are in the sidebar, under Lists."


def _told_absent(table: pd.DataFrame, counted: str) -> str:
    absent = [str(name).partition(":")[0] for name in table.loc[table[counted].isna(), "pipeline"]]
    return f" What {', '.join(absent)} costs so was not recorded: run it again." if absent else ""


def _table(shown: list[Shown], table: pd.DataFrame, span: str) -> None:
    """The figure's numbers as papers print them, and the files that hold them."""
    asked = {item.title: item.trace.provenance.question for item in shown if span != _TEXTS}
    mib = table.assign(**{name: table[name] / 2**20 for name in viz.COSTS})
    tidy = mib[list(_NAMES)].rename(columns=_NAMES)
    if any(asked.values()):
        tidy.insert(1, "question", [asked[name] for name in table["pipeline"]])
    st.dataframe(tidy, hide_index=True, column_config={name: _format(name) for name in [*_NAMES.values()][1:]})
    take_away(tidy, [(s.spec, s.trace) for s in shown], "Quality and realised bytes of each pipeline.", "comparison")


def _format(name: str) -> Any:
    form = "percent" if name == "other top token" else "%.2f" if "MiB" in name else "%.4f"
    return st.column_config.NumberColumn(format=form)

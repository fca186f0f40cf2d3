"""Many texts: whether a difference between pipelines is real, text by text, and whether the text on the page is typical."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import streamlit as st

from sparsity_core.evaluate import profile_of
from ui import work
from ui.compare.texts import choose_texts, known_texts, measure_texts, told_texts
from ui.figure import show_figure
from ui.knobs import choose_one
from ui.literal import literal
from ui.session import Shown, looks_of, trace_of
from ui.tasks.compare import Measured
from viz import compare as viz


def many_texts(shown: list[Shown]) -> None:
    """What the pipelines do on many texts: which differences are real, and the bands that one text is held against."""
    several = len(shown) > 1
    st.subheader("Is the difference real, and this text typical?" if several else "Is this text typical?", anchor=False)
    st.caption(
        "One text decides nothing. This measures every pipeline on many, reading each from its beginning with every stage at "
        "work: passages that no method was fitted to (Python's language reference), or texts of your own."
    )
    choose_texts()
    measure_texts(shown)
    known = {title: texts for title, texts in known_texts(shown).items() if len(texts) > 1}
    if len(known) > 1:
        _tested(shown, known)
    if known:
        _bands(shown, known)


def _tested(shown: list[Shown], known: dict[str, list[Measured]]) -> None:
    """The mean loss of each pipeline over the texts, with the interval of its difference to one of them, and the verdict."""
    letters = {item.letter: item.letter for item in shown if item.title in known}
    against = choose_one("Against", letters, "tested_against")
    one = next(item.title for item in shown if item.letter == against)
    table = viz.tested_table({title: np.asarray([text.loss for text in texts]) for title, texts in known.items()}, one)
    for row in table.itertuples():
        real = row.verdict in ("better", "worse")
        st.markdown(
            f"**{literal(row.pipeline)}** {'is ' if real else ''}**{row.verdict}** {'than' if real else 'from'} "
            f"{against}: loss {row.difference:+.4f} nats a token (95 % of resamples: {row.low:+.4f} to {row.high:+.4f})."
        )
    show_figure(
        viz.plot_tested(table, looks_of(shown)),
        table,
        name="tested",
        caption=f"Difference of the mean loss to {one}, over {told_texts()}; the bar holds 95 % of bootstrap resamples of them.",
        read="Left of 0 is better. A bar that touches 0 tells no difference. The texts are the units, since tokens of one "
        "text are not independent. The figure above shows each pipeline's own interval, at its bytes on the same texts.",
        sources=[(item.spec, item.trace) for item in shown if item.title in known],
    )


def _bands(shown: list[Shown], known: dict[str, list[Measured]]) -> None:
    """What pages draw of one text, as a band over many with that text's line, read in the same way."""
    measured = [item for item in shown if item.title in known]
    runs = {item.title: replace(item.spec, generate=0) for item in measured}
    own = {title: trace for title, run in runs.items() if (trace := trace_of(run)) is not None}
    measure = choose_one("Over the texts", viz.BAND_MEASURES, "bands_measure")
    table = viz.bands_table(
        {title: [text.profile for text in texts] for title, texts in known.items()},
        {title: profile_of(trace) for title, trace in own.items()},
        measure,
    )
    show_figure(
        viz.plot_bands(table, looks_of(shown), measure),
        table,
        name="bands",
        caption=f"{viz.BAND_MEASURES[measure]}: median and 10 to 90 % of {told_texts()}, and the text on the page, all read from "
        "the beginning with every query pruned.",
        read="A line inside its band is as most texts are. Kept is what the last query still holds, over the KV heads; texts of "
        "other lengths keep other shares at one budget.",
        sources=[(item.spec, item.trace) for item in measured],
    )
    work.offer_specs(
        "bands",
        list(runs.values()),
        len(own),
        "The runs on the page generate. To be held against the texts, the prompt has to be read as they are.",
        "Read this text so too",
        "stacked_line_chart",
    )

"""Sentences and paragraphs of a text, and what is kept of each: its information density beside its budget."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sparsity_core.record import Trace, removed_rows
from sparsity_core.studies import AttentionLook
from viz.looks import BLUE, VERMILLION
from viz.patterns.pattern import of_head
from viz.text import plain

_SENTENCE = re.compile(r"[.!?。！？][\"'”’)\]]*\s*$|\n")  # of a token that ends one
_PARAGRAPH = re.compile(r"\n\s*\n")  # of a token, or of a token and the one before it
_COVERAGE = 0.95
LEVELS = ("sentence", "paragraph")


def segments(texts: Sequence[str], level: str) -> np.ndarray:
    """int64 [tokens]: the number of each token's sentence or paragraph, from 0 without gaps.

    A sentence ends with its full stop or a line, a paragraph with an empty line; what ends one belongs to it.
    """
    if level not in LEVELS:
        raise ValueError(f"a level is one of {', '.join(LEVELS)}; got {level!r}")
    if level == "sentence":
        ends = [bool(_SENTENCE.search(text)) for text in texts]
        blank = [not text.strip() for text in texts]
        ends = [end and not (i + 1 < len(texts) and blank[i + 1]) for i, end in enumerate(ends)]
    else:
        pairs = zip(["", *texts], texts, strict=False)
        ends = [bool(_PARAGRAPH.search(before[-1:] + text if text.strip() == "" else text)) for before, text in pairs]
        ends = [end and not (i + 1 < len(ends) and not texts[i + 1].strip()) for i, end in enumerate(ends)]
    found = np.cumsum([0, *ends[:-1]])
    return np.unique(found, return_inverse=True)[1].astype(np.int64)


def reads_at(trace: Trace, layer: int, head: int | str, step: int) -> np.ndarray:
    """float64 [step + 1]: of a KV head 1 where its query at `step` sees the key, else 0; of all heads the mean. What a decode
    stage chose to read of it does not count."""
    removed = removed_rows(replace(trace, reading=None), layer, step, step + 1)[:, 0]
    return of_head(1.0 * (removed == 0), trace.n_kv_heads, head)


def segments_table(
    trace: Trace,
    look: AttentionLook,
    layer: int,
    head: int | str,
    step: int,
    level: str = "sentence",
) -> pd.DataFrame:
    """One row per sentence or paragraph of the prompt up to `step`: segment, start, tokens, text, importance, density, needed,
    budget.

    With p the importance of its keys, normalised: `importance` is their sum over the text's, `density` exp(H(p)) / tokens, the
    share of keys over which it is spread evenly; `needed` the share that holds 95 % of it; `budget` the share that the query
    at `step` sees.
    """
    step = min(step, trace.n_at_once - 1)
    given = of_head(look.importance, trace.n_kv_heads, head)[: step + 1]
    seen = reads_at(trace, layer, head, step)
    numbers = segments(trace.texts[: step + 1], level)
    rows = []
    for number in range(int(numbers[-1]) + 1):
        own = np.flatnonzero(numbers == number)
        p = given[own] / max(float(given[own].sum()), 1e-30)
        held = np.cumsum(np.sort(p)[::-1])
        rows.append(
            {
                "segment": number,
                "start": int(own[0]),
                "tokens": len(own),
                "text": "".join(trace.texts[own[0] : own[-1] + 1]).strip(),
                "importance": float(given[own].sum() / given.sum()),
                "density": float(np.exp(-(p * np.log(np.maximum(p, 1e-30))).sum()) / len(own)),
                "needed": float((np.searchsorted(held, _COVERAGE - 1e-9) + 1) / len(own)),
                "budget": float(seen[own].mean()),
            }
        )
    return pd.DataFrame(rows)


def plot_segments(table: pd.DataFrame) -> go.Figure:
    """Along the text: how densely each segment's information lies, and how much of the segment the query sees."""
    figure = go.Figure()
    texts = [plain(text if len(text) <= 60 else text[:59] + "…") for text in table["text"]]
    for column, name, colour, dash in (
        ("density", "information density", BLUE, "5px,2px"),
        ("budget", "budget: seen by the query", VERMILLION, "solid"),
    ):
        x = np.append(table["start"], table["start"].iloc[-1] + table["tokens"].iloc[-1]) - 0.5
        figure.add_scatter(
            x=x,
            y=np.append(table[column], table[column].iloc[-1]),
            mode="lines",
            line={"color": colour, "dash": dash, "shape": "hv"},
            name=name,
            customdata=[*texts, texts[-1]],
            hovertemplate=f"%{{customdata}}<br>{name.partition(':')[0]} %{{y:.0%}}<extra></extra>",
        )
    figure.update_xaxes(title="token position", range=[-0.5, float(x[-1])])
    figure.update_yaxes(title="share of the segment", tickformat=".0%", range=[0, 1.04])
    return figure.update_layout(height=280, showlegend=True)

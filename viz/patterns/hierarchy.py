"""What a query sees of each token, of each sentence and of each paragraph."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sparsity_core.record import Trace
from viz.chosen import mark_x
from viz.looks import SEQUENTIAL
from viz.patterns.segments import LEVELS, reads_at, segments
from viz.text import plain

_MOST_EDGES = 200  # of segments, drawn as lines


def hierarchy_table(trace: Trace, layer: int, head: int | str, step: int) -> pd.DataFrame:
    """One row per token, sentence and paragraph of the prompt up to `step`: level, number, start, tokens, text, sees.

    `sees` is the share of its tokens that the query at `step` sees, over its KV heads.
    """
    step = min(step, trace.n_at_once - 1)
    sees, texts = reads_at(trace, layer, head, step), trace.texts[: step + 1]
    found = {
        "token": np.arange(step + 1),
        **{level: segments(texts, level) for level in LEVELS},
    }
    rows = []
    for level, numbers in found.items():
        starts = np.flatnonzero(np.diff(numbers, prepend=-1))
        sizes = np.diff(np.append(starts, step + 1))
        means = np.add.reduceat(sees, starts) / sizes
        said = ["".join(texts[a : a + n]).strip() for a, n in zip(starts, sizes, strict=True)]
        said = list(trace.tokens[: step + 1]) if level == "token" else said
        rows.append(
            pd.DataFrame(
                {
                    "level": level,
                    "number": range(len(starts)),
                    "start": starts,
                    "tokens": sizes,
                    "text": said,
                    "sees": means,
                }
            )
        )
    return pd.concat(rows, ignore_index=True)


def plot_hierarchy(table: pd.DataFrame, token: int | None = None) -> go.Figure:
    """Three rows over the text: a cell is a token, a sentence, a paragraph, its colour the share of it that the query sees."""
    n = int(table.loc[table["level"] == "token", "tokens"].sum())
    levels = list(table["level"].unique())
    z, said = np.zeros((len(levels), n), np.float32), np.zeros((len(levels), n), object)
    edges = []
    for row, level in enumerate(levels):
        own = table[table["level"] == level]
        z[row] = np.repeat(own["sees"], own["tokens"])
        texts = [plain(text if len(text) <= 60 else text[:59] + "…") for text in own["text"]]
        said[row] = np.repeat(np.asarray(texts, object), own["tokens"])
        if level != "token" and len(own) <= _MOST_EDGES:
            edges += [(start - 0.5, row) for start in own["start"].iloc[1:]]
    cells = go.Heatmap(
        z=z,
        x=np.arange(n),
        y=levels,
        zmin=0,
        zmax=1,
        colorscale=SEQUENTIAL,
        colorbar={"title": {"text": "share seen"}, "tickformat": ".0%"},
        customdata=said,
        hovertemplate="%{y} at %{x}: %{z:.0%} seen<br>%{customdata}<extra></extra>",
    )
    figure = go.Figure(cells)
    line = {"width": 1, "color": "white"}
    shapes = [
        {
            "type": "line",
            "x0": x,
            "x1": x,
            "y0": row - 0.5,
            "y1": row + 0.5,
            "line": line,
        }
        for x, row in edges
    ]
    figure.update_layout(height=210, shapes=shapes)
    mark_x(figure, token)
    figure.update_xaxes(title="token position", showgrid=False)
    return figure.update_yaxes(showgrid=False, ticks="")

"""Where a pipeline's generation parts from another's, and which evictions stand behind it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sparsity_core.record import Trace
from viz.atlas import common_length
from viz.looks import VERMILLION
from viz.text import plain

_MOST = 12  # tokens that are named


@dataclass(frozen=True)
class Parting:
    """The first generated token that differs: `position` in the text, both tokens, and the text before and after it."""

    position: int
    token: str  # what this pipeline wrote, as people read it
    instead_of: str  # what the other wrote there
    before: str  # what both wrote, from the end of the prompt on
    after: str  # how this pipeline went on


def parting_of(trace: Trace, other: Trace) -> Parting | None:
    """None where neither wrote anything, where the prompts differ, and where one text is the beginning of the other."""
    at, n = common_length(trace, other), trace.n_prompt
    if at < n or at >= min(trace.n_tokens, other.n_tokens):
        return None
    written = trace.texts
    return Parting(at, trace.tokens[at], other.tokens[at], "".join(written[n:at]), "".join(written[at + 1 :]))


def behind_table(trace: Trace, attention: np.ndarray, query: int) -> pd.DataFrame:
    """The evicted tokens that the dense model looked at most in a query: position, token, attention, layers, from the most on.

    `attention` [L, H, query + 1] is the dense model's, of that query. A row's `attention` is the mean over all layers and
    heads of what goes to the token where the pipeline no longer shows it to the query; `layers` in how many layers some head
    has lost it. Raises ValueError for attention of another model.
    """
    layers, heads, n = attention.shape
    if (layers, heads, n) != (trace.n_layers, trace.n_heads, query + 1):
        raise ValueError(f"attention is [layer, head, {query + 1}] of this run's model; got {attention.shape}")
    gone = trace.evicted_at[:, :, :n] <= query
    lost = attention * gone.repeat(heads // trace.n_kv_heads, axis=1)
    table = pd.DataFrame(
        {
            "position": np.arange(n),
            "token": trace.tokens[:n],
            "attention": lost.mean((0, 1)),
            "layers": gone.any(1).sum(0),
        }
    )
    return table[table["attention"] > 0].sort_values("attention", ascending=False, ignore_index=True)


def plot_behind(table: pd.DataFrame) -> go.Figure:
    """A bar for each of the evicted tokens that the dense model looked at most."""
    most = table.head(_MOST).iloc[::-1]
    names = [f"{position} “{plain(token)}”" for position, token in zip(most["position"], most["token"], strict=True)]
    bars = go.Bar(
        x=most["attention"],
        y=names,
        orientation="h",
        marker={"color": VERMILLION},
        customdata=most["layers"],
        hovertemplate="%{y}: %{x:.2%} of the dense attention, gone in %{customdata} layers<extra></extra>",
    )
    figure = go.Figure(bars)
    figure.update_xaxes(title="dense attention lost", tickformat=".1%")
    return figure.update_layout(height=110 + 20 * max(1, len(most)), showlegend=False)

"""How alike the decisions of two pipelines are, layer by layer: the sets that they removed, and the order in which they did."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sparsity_core.record import Trace
from viz.atlas import common_length
from viz.chosen import mark_x
from viz.fates import removed_by
from viz.looks import Look
from viz.text import plain

AGREEMENTS = {"jaccard": "Jaccard index of the removed keys", "rank": "rank correlation of when keys go"}


def agreement_table(
    traces: Mapping[str, Trace], against: str, head: int | str = "first", step: int | None = None
) -> pd.DataFrame:
    """One row per other pipeline and layer: pipeline, layer, jaccard, rank; on the beginning that its text shares.

    `jaccard` is that of the keys which each has removed from the query at `step`, by whatever stage: 1 where both removed
    the same, or none. `rank` is Spearman's ρ of the queries from which keys are gone for good, over the keys that either
    dropped; nan where fewer than three were, or all at once.
    """
    one, rows = traces[against], []
    for name, other in traces.items():
        n = common_length(one, other)
        if name == against or n == 0 or one.n_layers != other.n_layers:
            continue
        last = n - 1 if step is None else min(step, n - 1)
        a, b = (removed_by(each, last, _head(each, head))[:, : last + 1] != "" for each in (one, other))
        both, either = (a & b).sum(1), (a | b).sum(1)
        jaccard = np.where(either > 0, both / np.maximum(either, 1), 1.0)
        gone = [each.dropped_at(_head(each, head))[:, :n].clip(max=n) for each in (one, other)]
        for layer in range(one.n_layers):
            rows.append((name, layer, float(jaccard[layer]), _rank(gone[0][layer], gone[1][layer], n)))
    return pd.DataFrame(rows, columns=["pipeline", "layer", "jaccard", "rank"])


def _head(trace: Trace, head: int | str) -> int | str:
    return head if isinstance(head, str) else min(head, trace.n_kv_heads - 1)


def _rank(a: np.ndarray, b: np.ndarray, n: int) -> float:
    known = (a < n) | (b < n)
    if known.sum() < 3:
        return float("nan")
    first, second = pd.Series(a[known]).rank(), pd.Series(b[known]).rank()
    return float(first.corr(second)) if first.nunique() > 1 and second.nunique() > 1 else float("nan")


def plot_agreement(
    table: pd.DataFrame, looks: Mapping[str, Look], measure: str = "jaccard", layer: int | None = None
) -> go.Figure:
    """A line per pipeline over the layers."""
    figure = go.Figure()
    for name, rows in table.groupby("pipeline", sort=False):
        look = looks[str(name)]
        figure.add_scatter(
            x=rows["layer"],
            y=rows[measure],
            mode="lines+markers",
            line={"color": look.colour, "dash": look.dash},
            marker={"symbol": look.symbol},
            name=plain(str(name)),
            hovertemplate="layer %{x}: %{y:.3f}<extra></extra>",
        )
    mark_x(figure, layer)
    figure.update_xaxes(title="layer")
    figure.update_yaxes(title=AGREEMENTS[measure])
    return figure.update_layout(height=340, showlegend=True)

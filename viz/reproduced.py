"""What each pipeline of a claim's sweep adds to the dense model's loss, over passages."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from sparsity_core.evaluate import paired
from sparsity_core.kinds import spelled_stages
from sparsity_core.studies import losses_of
from viz.looks import distinct_looks
from viz.text import plain

DENSE = "dense"


def reproduced_table(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per pipeline but the dense one, in the sweep's order: pipeline, loss, added, low, high, kept, n.

    `rows` are those of a claim (`studies.claims.ROWS`). `loss` and what is `added` to the dense model's are nats a token, the
    mean over n passages, with the interval of 95 % of their resamples. `kept` is the share of the cache's bytes.
    """
    losses, kept = losses_of(rows), rows.groupby("pipeline")["kv_share"].mean()
    found = []
    for name in losses.columns.drop(DENSE):
        test = paired(losses[name], losses[DENSE])
        found.append((name, losses[name].mean(), test.difference, test.low, test.high, kept[name], test.n))
    return pd.DataFrame(found, columns=["pipeline", "loss", "added", "low", "high", "kept", "n"])


def plot_reproduced(table: pd.DataFrame) -> go.Figure:
    """A mark per pipeline with its interval; left is better."""
    figure = go.Figure()
    calls = [" + ".join(call for _, call in spelled_stages(str(name))) for name in table["pipeline"]]
    looks = distinct_looks([call.partition("(")[0] for call in calls])
    for row, call, look in zip(table.itertuples(), calls, looks, strict=True):
        figure.add_scatter(
            x=[row.added],
            y=[plain(call)],
            mode="markers",
            marker={"color": look.colour, "symbol": look.symbol, "size": 9},
            error_x={
                "array": [row.high - row.added],
                "arrayminus": [row.added - row.low],
                "symmetric": False,
                "color": look.colour,
            },
            hovertemplate=f"%{{x:+.3f}} nats a token, {row.kept:.0%} of the cache<extra></extra>",
        )
    figure.add_vline(0.0, line={"width": 1, "dash": "dot"})
    figure.update_xaxes(title="added to the dense model's loss (nats a token)", rangemode="tozero")
    figure.update_yaxes(autorange="reversed", type="category")
    return figure.update_layout(height=130 + 34 * len(table), showlegend=False)

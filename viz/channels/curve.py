"""What reading a share of the context costs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sparsity_core.kinds import Pipeline
from sparsity_core.record import Trace
from viz.channels.mass import mass_read
from viz.channels.names import CURVES, STATISTIC_LOOKS, over_shares
from viz.looks import look_of
from viz.text import plain


def curve_point(trace: Trace) -> dict[str, float | str]:
    """What a curve needs of a run: perplexity, relative (÷ dense), mass (see `mass_read`), and the method's name."""
    pipeline = Pipeline.parse(trace.provenance.pipeline)
    method = pipeline.decode or pipeline.eviction
    return {
        "perplexity": trace.perplexity,
        "relative": trace.perplexity / trace.dense_perplexity,
        "mass": mass_read(trace),
        "name": method.name if method else "dense",
    }


def curve_table(points: Mapping[tuple[str, float], Mapping[str, float | str]]) -> pd.DataFrame:
    """One row per method and share: method, share, and what `curve_point` says."""
    return pd.DataFrame([{"method": name, "share": share, **point} for (name, share), point in points.items()])


def plot_curve(table: pd.DataFrame, cost: str = "relative") -> go.Figure:
    """Perplexity, or the attention that is read, against the share of the context that is read or kept."""
    figure = go.Figure()
    for name, own in table.groupby("method", sort=False):
        look = STATISTIC_LOOKS.get(str(name).rsplit(" ", 1)[-1]) or look_of(own["name"].iloc[0])
        own = own.sort_values("share")
        figure.add_scatter(
            x=own["share"],
            y=own[cost],
            mode="lines+markers",
            line={"color": look.colour, "dash": look.dash},
            marker={"symbol": look.symbol},
            name=plain(str(name)),
            customdata=own["perplexity"],
            hovertemplate=f"%{{y:.3f}}, perplexity %{{customdata:.2f}}<extra>{plain(str(name))}</extra>",
        )
    perplexity = cost == "relative"
    return over_shares(figure).update_yaxes(
        title=CURVES[cost], type="log" if perplexity else "linear", tickformat=None if perplexity else ".0%"
    )


def answer_table(traces: Mapping[tuple[str, float], Trace]) -> pd.DataFrame:
    """One row per method: what it wrote, and how many of its first tokens are those of the dense model."""
    dense = next((trace for (name, _), trace in traces.items() if name == "dense"), None)
    rows = []
    for (name, _), trace in traces.items():
        row = {"method": name, "continuation": trace.continuation.strip()}
        if dense is not None:
            a, b = trace.token_ids[trace.n_prompt :], dense.token_ids[dense.n_prompt :]
            same = int(np.cumprod(a[: len(b)] == b[: len(a)]).sum())
            row["tokens as dense"] = f"{same} of {len(b)}"
        rows.append(row)
    return pd.DataFrame(rows)

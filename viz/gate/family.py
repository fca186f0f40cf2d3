"""What trained gates cost beside eviction."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go

from sparsity_core.record import Trace
from viz.looks import look_of
from viz.text import plain

_SERIES = ("dcp", "local_window", "streaming_llm", "h2o", "a2sf")


def point_of(trace: Trace) -> dict[str, float]:
    """What a curve needs of a run: the share of the context it keeps, perplexity, and perplexity over the dense one's."""
    return {
        "kept": trace.density(),
        "perplexity": trace.perplexity,
        "relative": trace.perplexity / trace.dense_perplexity,
    }


def family_table(points: Mapping[tuple[str, str], Mapping[str, float]]) -> pd.DataFrame:
    """One row per method and setting: method, setting, kept, perplexity, relative."""
    return pd.DataFrame([{"method": name, "setting": setting, **point} for (name, setting), point in points.items()])


def plot_family(table: pd.DataFrame) -> go.Figure:
    """Perplexity against the share of the context that is kept: the trained gates beside eviction."""
    figure = go.Figure()
    for name in [n for n in _SERIES if n in set(table["method"])]:
        look = look_of(name)
        own = table[table["method"] == name].sort_values("kept")
        figure.add_scatter(
            x=own["kept"],
            y=own["relative"],
            mode="lines+markers",
            line={"color": look.colour, "dash": look.dash, "width": 2.4 if name == "dcp" else 1.6},
            marker={"symbol": look.symbol, "size": 8 if name == "dcp" else 6},
            name=name,
            customdata=[[plain(s), p] for s, p in zip(own["setting"], own["perplexity"], strict=True)],
            hovertemplate="%{customdata[0]}<br>keeps %{x:.0%}, perplexity %{customdata[1]:.2f}, %{y:.3f} × dense<extra></extra>",
        )
    figure.add_hline(1.0, line={"width": 1, "dash": "dot"})
    figure.update_xaxes(title="share of the causal context that is kept", tickformat=".0%", autorange="reversed")
    figure.update_yaxes(title="perplexity ÷ dense", type="log")
    return figure.update_layout(height=380, showlegend=True)

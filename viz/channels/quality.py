"""How well a few channels find the keys that matter: recall of the top keys, and the attention that is read."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from sparsity_core.methods.decode.double_sparsity.channels import STATISTICS
from sparsity_core.studies import SHARES, ChannelStudy
from viz.channels.names import QUALITIES, STATISTIC_LOOKS, over_shares, share_name
from viz.looks import NEUTRAL, SEQUENTIAL


def quality_table(study: ChannelStudy) -> pd.DataFrame:
    """One row per statistic, r and share: mass and recall, means over layers, heads and queries."""
    return pd.DataFrame(
        [
            {
                "statistic": statistic,
                "channels": r,
                "share": share,
                "mass": float(study.mean("mass", statistic)[i, j]),
                "recall": float(study.mean("recall", statistic)[i, j]),
            }
            for statistic in STATISTICS
            for i, r in enumerate(study.channels)
            for j, share in enumerate(SHARES)
        ]
    )


def plot_quality(table: pd.DataFrame, what: str, r: int) -> go.Figure:
    """Each statistic's curve over the share that is read, with r channels; all channels are the most there is to reach."""
    figure = go.Figure()
    most = int(table["channels"].max())
    best = table[(table["channels"] == most) & (table["statistic"] == "qk")]
    figure.add_scatter(
        x=best["share"], y=best[what], mode="lines", line={"color": NEUTRAL}, name=f"all {most} channels",
        hovertemplate="%{y:.1%}<extra>all channels</extra>",
    )  # fmt: skip
    for statistic, look in STATISTIC_LOOKS.items():
        own = table[(table["statistic"] == statistic) & (table["channels"] == r)]
        figure.add_scatter(
            x=own["share"], y=own[what], mode="lines+markers", line={"color": look.colour, "dash": look.dash},
            marker={"symbol": look.symbol}, name=statistic,
            hovertemplate=f"%{{y:.1%}}<extra>{statistic}</extra>",
        )  # fmt: skip
    return over_shares(figure).update_yaxes(title=QUALITIES[what], tickformat=".0%")


def plot_surface(table: pd.DataFrame, what: str, statistic: str) -> go.Figure:
    """Quality over both r and the share that is read, for one statistic."""
    own = table[table["statistic"] == statistic]
    z = own.pivot(index="channels", columns="share", values=what)
    figure = go.Figure(
        go.Heatmap(
            z=z.to_numpy(),
            x=[share_name(s) for s in z.columns],
            y=[str(r) for r in z.index],
            colorscale=SEQUENTIAL,
            zmin=0,
            zmax=1,
            text=[[f"{v:.0%}" for v in row] for row in z.to_numpy()],
            texttemplate="%{text}",
            colorbar={"title": {"text": what}, "tickformat": ".0%"},
            hovertemplate="r = %{y}, a share of %{x}: %{z:.1%}<extra></extra>",
        )
    )
    figure.update_xaxes(title="share of the context that is read", type="category", autorange="reversed")
    return figure.update_yaxes(title="channels r", type="category").update_layout(height=340)

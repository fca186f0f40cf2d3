"""Names and looks that the figures of channels share."""

from __future__ import annotations

import plotly.graph_objects as go

from sparsity_core.studies import SHARES
from viz.looks import BLUE, DOTTED, GREEN, LONG, PURPLE, VERMILLION, Look

STATISTIC_NAMES = {
    "qk": "mean |q · k| of a token with itself",
    "q": "mean |q|",
    "k": "mean |k|",
    "variance": "variance of q · k over pairs",
}

QUALITIES = {"mass": "exact attention that is read", "recall": "share of the exact top keys that is read"}

CURVES = {"relative": "perplexity ÷ dense", "mass": "exact attention read or kept"}

# The same in every figure, and none that a method has.
STATISTIC_LOOKS = {
    "qk": Look(VERMILLION, LONG, "diamond"),
    "q": Look(BLUE, DOTTED, "circle"),
    "k": Look(GREEN, DOTTED, "triangle-up"),
    "variance": Look(PURPLE, DOTTED, "square"),
}


def share_name(share: float) -> str:
    return "1" if share >= 1 else f"1/{round(1 / share)}"


def over_shares(figure: go.Figure) -> go.Figure:
    figure.update_xaxes(
        title="share of the context that is read",
        type="log",
        autorange="reversed",
        tickvals=list(SHARES),
        ticktext=[share_name(s) for s in SHARES],
        minor={"ticks": ""},
    )
    return figure.update_layout(height=340, showlegend=True, hovermode="x unified")

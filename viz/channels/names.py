"""Names and looks that the figures of channels share."""

from __future__ import annotations

import plotly.graph_objects as go

from sparsity_core.studies import SHARES

STATISTIC_NAMES = {
    "qk": "mean |q · k| of a token with itself",
    "q": "mean |q|",
    "k": "mean |k|",
    "variance": "variance of q · k over pairs",
}

QUALITIES = {"mass": "exact attention that is read", "recall": "share of the exact top keys that is read"}

CURVES = {"relative": "perplexity ÷ dense", "mass": "exact attention read or kept"}

# Hue and dash of each statistic, the same in every figure.
STATISTIC_LOOKS = {
    "qk": ("#D55E00", "solid"),
    "q": ("#0072B2", "5px,2px"),
    "k": ("#009E73", "1.5px,1.5px"),
    "variance": ("#CC79A7", "9px,2px"),
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

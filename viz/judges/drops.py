"""One judge's rank of each dropped token against what dropping it did."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sparsity_core.studies import EFFECTS, JudgeStudy
from viz.judges.verdicts import look_of_judge, short
from viz.text import plain

_LABELLED = 5  # drops of the largest effects, whose tokens are written beside them


def drops_table(study: JudgeStudy, tokens: Sequence[str], judge: str, place: int) -> pd.DataFrame:
    """One row per drop: position, token, judge, rank, kl, nll, noise; `tokens` are the text's, as people read them."""
    j, p = study.judges.index(judge), int(np.flatnonzero(study.places == place)[0])
    return pd.DataFrame(
        {
            "position": study.keys,
            "token": ["".join(tokens[key : key + study.width]) for key in study.keys],
            "judge": judge,
            "rank": study.ranks[j, p],
            "kl": study.kl[p],
            "nll": study.nll[p],
            "noise": study.noise,
        }
    )


def plot_drops(table: pd.DataFrame, effect: str = "kl") -> go.Figure:
    """A mark per drop; a KL on a logarithmic axis, with the line below which it is rounding alone."""
    judge, values = str(table["judge"].iloc[0]), table[effect]
    look = look_of_judge(judge)
    floor = max(float(table["noise"].iloc[0]), 1e-12)
    shown = values.clip(lower=floor) if effect == "kl" else values
    large = values.abs().rank(ascending=False, method="first") <= _LABELLED
    figure = go.Figure(
        go.Scatter(
            x=table["rank"],
            y=shown,
            mode="markers+text",
            text=[plain(token.strip() or "␣") if big else "" for token, big in zip(table["token"], large, strict=True)],
            textposition=["middle left" if rank > 0.5 else "middle right" for rank in table["rank"]],
            marker={"color": look.colour, "symbol": look.symbol, "size": 8},
            customdata=np.stack([table["position"], table["token"].map(plain)], -1),
            hovertemplate="token %{customdata[0]} “%{customdata[1]}”: %{y:.3g} nats<extra></extra>",
        )
    )
    if effect == "kl":
        figure.update_yaxes(type="log", exponentformat="power", dtick=1 if np.ptp(np.log10(shown)) < 7 else 2)
        if values.min() < 100 * floor:
            figure.add_hline(floor, line={"width": 1, "dash": "dot"})
    figure.update_xaxes(title=f"rank by {plain(short(judge))}: 0 goes first, 1 last", range=[-0.03, 1.03])
    figure.update_yaxes(title=EFFECTS[effect])
    return figure.update_layout(height=360, showlegend=False)

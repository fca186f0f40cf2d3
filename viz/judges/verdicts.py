"""Which judge's order of the keys is that of what dropping them does, with the interval of the sample."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sparsity_core.kinds import spelled_stages
from sparsity_core.studies import FORESIGHT, JudgeStudy
from viz.looks import NEUTRAL, Look, look_of
from viz.text import plain


def short(judge: str) -> str:
    """A judge's name in a figure: its method's; the one that knows what comes is called so."""
    return judge if judge == FORESIGHT else spelled_stages(judge)[0][1].partition("(")[0]


def look_of_judge(judge: str) -> Look:
    return Look(NEUTRAL, "dot", "star") if judge == FORESIGHT else look_of(short(judge))


def verdicts_table(study: JudgeStudy, place: int, effect: str = "kl") -> pd.DataFrame:
    """One row per judge, the best first: judge, rho, low, high, drops; of the drops made in a layer or in all (−1).

    Raises ValueError for a layer from which nothing was dropped.
    """
    at = np.flatnonzero(study.places == place)
    if not len(at):
        raise ValueError(f"nothing was dropped from layer {place} alone")
    low, high = study.interval(effect)
    table = pd.DataFrame(
        {
            "judge": study.judges,
            "rho": study.rho(effect)[:, at[0]],
            "low": low[:, at[0]],
            "high": high[:, at[0]],
            "drops": len(study.keys),
        }
    )
    return table.sort_values("rho", ascending=False, kind="stable", na_position="last", ignore_index=True)


def plot_verdicts(table: pd.DataFrame) -> go.Figure:
    """A mark per judge with its interval; at 0 the order says nothing."""
    figure = go.Figure()
    for row in table.dropna(subset="rho").itertuples():
        look = look_of_judge(str(row.judge))
        figure.add_scatter(
            x=[row.rho],
            y=[plain(short(str(row.judge)))],
            mode="markers",
            marker={"color": look.colour, "symbol": look.symbol, "size": 9},
            error_x={
                "array": [row.high - row.rho],
                "arrayminus": [row.rho - row.low],
                "symmetric": False,
                "color": look.colour,
            },
            hovertemplate=f"{plain(str(row.judge))}: ρ = %{{x:.2f}} ({row.low:.2f} to {row.high:.2f})<extra></extra>",
        )
    figure.add_vline(0.0, line={"width": 1, "dash": "dot"})
    figure.update_xaxes(title="Spearman's ρ of rank and effect", range=[-1.03, 1.03])
    figure.update_yaxes(autorange="reversed", type="category")
    return figure.update_layout(height=110 + 26 * len(table), showlegend=False)

"""What each method of the prefill stage keeps and costs, against the share of the pairs that it shows."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sparsity_core.record import Trace
from viz.looks import look_of
from viz.text import plain

MEASURES = {
    "coverage": "coverage: dense attention seen",
    "recall": "recall of the keys that hold 95 %",
    "precision": "precision: seen keys among those",
    "kl": "KL to dense (nats)",
    "relative": "perplexity ÷ dense",
    "flops": "attention FLOPs ÷ dense, choosing included",
}


def point_of(trace: Trace) -> dict[str, float]:
    """What the curves need of a run: density, the measures, and whether it looks ahead. nan: not measured.

    Raises ValueError for a run without a prefill stage or without the model's sizes.
    """
    record, sizes = trace.prefill, trace.sizes
    if record is None or sizes is None:
        raise ValueError("this run has no prefill stage, or was made before sizes were kept: run it again")
    n = trace.n_at_once
    dense = float(sizes.pair_flops.sum()) * n * (n + 1) / 2
    own = float((record.pairs * sizes.pair_flops).sum()) / trace.n_heads
    with np.errstate(invalid="ignore"):
        return {
            "density": float(record.shown[..., :n].mean() / ((n + 1) / 2)),
            "coverage": _mean(record.coverage[..., :n]),
            "recall": _mean(record.top_recall),
            "precision": _mean(record.top_precision),
            "kl": float("nan") if record.looks_ahead else _mean(trace.kl_to_dense[: n - 1]),
            "relative": float(np.exp(_mean(trace.nll[: n - 1]) - _mean(trace.dense_nll[: n - 1]))),
            "flops": (own + float(record.scoring_flops.sum())) / dense,
            "looks_ahead": float(record.looks_ahead),
        }


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def densities_table(
    points: Mapping[tuple[str, str], Mapping[str, float]],
) -> pd.DataFrame:
    """One row per method and setting: method, setting, density, the measures, looks_ahead."""
    rows = [{"method": name, "setting": setting, **point} for (name, setting), point in points.items()]
    return pd.DataFrame(rows).astype({"looks_ahead": bool})


def plot_densities(table: pd.DataFrame, measure: str = "coverage") -> go.Figure:
    """A line per method over the share of pairs shown, each named at its end; methods that look ahead have open marks."""
    figure = go.Figure()
    known = table.dropna(subset=[measure])
    for name, own in known.groupby("method", sort=False):
        look = look_of(str(name))
        own = own.sort_values("density")
        ahead = bool(own["looks_ahead"].any())
        figure.add_scatter(
            x=own["density"],
            y=own[measure],
            mode="lines+markers",
            line={
                "color": look.colour,
                "dash": look.dash,
                "width": 2.4 if name == "assa" else 1.6,
            },
            marker={
                "symbol": look.symbol + "-open" * ahead,
                "size": 8,
                "line": {"width": 1.5 * ahead},
            },
            name=plain(str(name)) + (" (looks ahead)" if ahead else ""),
            customdata=[plain(setting) for setting in own["setting"]],
            hovertemplate=f"{plain(str(name))}, %{{customdata}}<br>%{{x:.0%}} of the pairs: %{{y:.3f}}<extra></extra>",
        )
    if measure in ("relative", "flops"):
        figure.add_hline(1.0, line={"width": 1, "dash": "dot"})
    shares = measure in ("coverage", "recall", "precision", "flops")
    figure.update_xaxes(title="share of the prompt's causal pairs that is seen", tickformat=".0%")
    figure.update_yaxes(title=MEASURES[measure], tickformat=".0%" if shares else None)
    return figure.update_layout(height=380, showlegend=True)

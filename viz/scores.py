"""Accumulated scores over time: what a token scored, what it would have needed, and when it lost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sparsity_core.record import Trace
from viz.chosen import mark_x
from viz.looks import DASHES, NEUTRAL, OKABE_ITO
from viz.text import plain

_LINES = [OKABE_ITO[i] for i in (6, 5, 3, 1, 7, 2)]


def score_table(
    trace: Trace,
    layer: int,
    head: int,
    positions: Sequence[int],
    refilled: tuple[np.ndarray, np.ndarray] | None = None,
) -> pd.DataFrame:
    """Long table of one KV head: step, series ("token" or "threshold"), position, token, score, event.

    A token's last row is where it was dropped (event "dropped"), its score nan where the trace has none (see `drop_score`).
    The threshold is the score of whatever each query dropped, of several the highest.
    `refilled` (steps, scores [Hkv, S, T]) replaces the trace's own snapshots of this layer.
    """
    steps, scores = refilled if refilled is not None else (trace.snapshot_steps, trace.snapshots[layer])
    rows = []
    for position in positions:
        kept = ~np.isnan(scores[head, :, position])
        frame = pd.DataFrame({"step": steps[kept], "score": scores[head, kept, position]})
        frame["event"] = ""
        gone = int(trace.evicted_at[layer, head, position])
        if gone < trace.n_tokens:
            step = int(trace.dropped_in(head)[layer, position])
            last = {"step": step, "score": drop_score(trace, layer, head)[position], "event": "dropped"}
            frame = pd.concat([frame[frame["step"] < step], pd.DataFrame([last])], ignore_index=True)
        frame["series"], frame["position"], frame["token"] = "token", position, trace.tokens[position]
        rows.append(frame)
    threshold = trace.threshold[layer, head]
    known = np.flatnonzero(~np.isnan(threshold))
    line = pd.DataFrame({"step": known, "score": threshold[known]})
    line["event"], line["series"], line["position"], line["token"] = "", "threshold", -1, ""
    columns = ["step", "series", "position", "token", "score", "event"]
    return pd.concat([*rows, line], ignore_index=True)[columns].astype({"score": np.float64})


def drop_score(trace: Trace, layer: int, head: int) -> np.ndarray:
    """float32 [T]: the score at which a KV head's eviction dropped each key; nan where it did not, or where it is not known.

    A trace has one score for each query, the highest of what that query dropped: a key's own where it was the only one.
    """
    evicted_at = trace.evicted_at[layer, head]
    evicted = evicted_at < trace.n_tokens
    if trace.gated_at.size:
        evicted = evicted & (trace.gated_at[layer] != evicted_at)
    alone = np.bincount(evicted_at[evicted], minlength=trace.n_tokens + 1)[evicted_at] == 1
    own = evicted & alone & (evicted_at > 0)
    score = np.full(trace.n_tokens, np.nan, np.float32)
    score[own] = trace.threshold[layer, head][evicted_at[own] - 1]
    return score


def has_scores(trace: Trace, layer: int, head: int) -> bool:
    """Whether attention moved any score here; a method that decides by position alone leaves them all at nought."""
    return bool(np.nan_to_num(trace.snapshots[layer, head]).any())


def shared_range(tables: Sequence[pd.DataFrame], log: bool) -> list[float] | None:
    """The score axis's range that fits all tables, so that figures side by side compare; None where nothing is scored."""
    scores = np.concatenate([table["score"].to_numpy() for table in tables])
    scores = scores[np.isfinite(scores) & (scores > 0)]
    if not scores.size:
        return None
    low, high = float(scores.min()), float(scores.max())
    return [np.log10(low / 1.5), np.log10(high * 1.5)] if log else [0.0, 1.05 * high]


def plot_scores(table: pd.DataFrame, *, step: int | None = None, log: bool = True) -> go.Figure:
    """A line per token over the steps, the eviction threshold beneath, a cross where a token is dropped."""
    figure = go.Figure()
    threshold = table[table["series"] == "threshold"]
    if len(threshold):
        figure.add_scatter(
            x=threshold["step"],
            y=threshold["score"],
            mode="lines",
            line={"color": NEUTRAL, "width": 1},
            name="threshold: score of the token dropped",
            hovertemplate="step %{x}: dropped at %{y:.4g}<extra>threshold</extra>",
        )
    own = table[table["series"] == "token"]
    for i, (position, line) in enumerate(own.groupby("position", sort=False)):
        colour = _LINES[i % len(_LINES)]
        name = f"{position} “{plain(str(line['token'].iloc[0]))}”"
        figure.add_scatter(
            x=line["step"],
            y=line["score"],
            mode="lines",
            line={"color": colour, "dash": DASHES[i % len(DASHES)]},
            name=name,
            legendgroup=name,
            hovertemplate="step %{x}: %{y:.4g}<extra>" + name + "</extra>",
        )
        end = line[line["event"] == "dropped"]
        if len(end):
            known = bool(end["score"].notna().all())
            figure.add_scatter(
                x=end["step"],
                y=line["score"].ffill().tail(1),  # at the last score where that of the drop is not known
                mode="markers",
                marker={"symbol": "x", "size": 9, "color": colour},
                name=f"{name} dropped",
                legendgroup=name,
                showlegend=False,
                hovertemplate="dropped at step %{x}" + (", score %{y:.4g}" if known else "") + f"<extra>{name}</extra>",
            )
    mark_x(figure, step)
    figure.update_xaxes(title="step (query position)")
    figure.update_yaxes(title="accumulated score", type="log" if log else "linear", exponentformat="power")
    return figure.update_layout(height=380)

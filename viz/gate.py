"""Which token dropped which, what a gate thinks of a pair, what kinds of tokens go, and what it costs beside eviction."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sparsity_core.methods.gate.dcp.records import sparse_sigmoid
from sparsity_core.record import Trace
from sparsity_core.studies import GateLook
from viz.atlas import height
from viz.shares import plot_shares
from viz.theme import method_colour, method_dash, plain

_FAR = 4.0  # gate logits beyond are drawn as this
_SHARPNESS = {1.0: "1.5px,1.5px", 1.5: "5px,2px,1.5px,2px", 2.0: "5px,2px", 4.0: "9px,2px", 8.0: "solid"}  # a: dash
_GREYS = {1.0: "#A9B0BC", 1.5: "#98A0AD", 2.0: "#87909E", 4.0: "#768090", 8.0: "#656F80"}
_COLUMNS = 256  # of a heatmap over positions
_SERIES = {
    "dcp": "dcp, by γ and threshold",
    "local_window": "local_window",
    "streaming_llm": "streaming_llm",
    "h2o": "h2o",
    "a2sf": "a2sf",
}


# --- which token dropped which ---


def link_table(trace: Trace, layer: int, window: tuple[int, int]) -> pd.DataFrame:
    """One row per token of the window that another token dropped: position, token, dropped_by, by_token, distance."""
    by = trace.dropped_by(layer).max(axis=0)  # a gate serves all heads; −1 in those where eviction came first
    position = np.flatnonzero(by >= 0)
    position = position[(position >= window[0]) & (position < window[1])]
    return pd.DataFrame(
        {
            "position": position,
            "token": [trace.tokens[p] for p in position],
            "dropped_by": by[position],
            "by_token": [trace.tokens[b] for b in by[position]],
            "distance": by[position] - position,
        }
    )


def plot_links(table: pd.DataFrame, window: tuple[int, int], *, selected: int | None = None) -> go.Figure:
    """An arc from each dropped token to the token that dropped it; those of the selected token stand out."""
    figure = go.Figure()
    mine = (table["position"] == selected) | (table["dropped_by"] == selected)
    for rows, colour, width, name in (
        (table[~mine], "#8A93A3", 0.8, "dropped by"),
        (table[mine], "#D55E00", 2.0, "with the chosen token"),
    ):
        x, y = _arcs(rows)
        figure.add_scatter(
            x=x, y=y, mode="lines", line={"color": colour, "width": width}, name=name, hoverinfo="skip",
            opacity=0.55 if width < 1 else 1.0,
        )  # fmt: skip
    figure.add_scatter(
        x=table["dropped_by"],
        y=np.zeros(len(table)),
        mode="markers",
        marker={"symbol": "triangle-up", "size": 6, "color": "#D55E00"},
        name="the token that drops",
        customdata=np.stack([table["position"].astype(str), [plain(t) for t in table["token"]],
                             [plain(t) for t in table["by_token"]]], axis=1) if len(table) else None,
        hovertemplate="token %{x} “%{customdata[2]}” drops token %{customdata[0]} “%{customdata[1]}”<extra></extra>",
    )  # fmt: skip
    figure.add_scatter(
        x=table["position"],
        y=np.zeros(len(table)),
        mode="markers",
        marker={"symbol": "x-thin", "size": 5, "line": {"width": 1.2, "color": "#0072B2"}, "color": "#0072B2"},
        name="the token that is dropped",
        customdata=np.stack([table["dropped_by"].astype(str), [plain(t) for t in table["token"]],
                             [plain(t) for t in table["by_token"]]], axis=1) if len(table) else None,
        hovertemplate="token %{x} “%{customdata[1]}” is dropped by token %{customdata[0]} “%{customdata[2]}”<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(title="token position", range=[window[0] - 1, window[1]])
    figure.update_yaxes(visible=False, rangemode="tozero")
    return figure.update_layout(height=260, showlegend=True)


def _arcs(rows: pd.DataFrame, points: int = 17) -> tuple[np.ndarray, np.ndarray]:
    """Half circles over each pair, as one line with gaps."""
    angle = np.linspace(0.0, np.pi, points)
    middle = (rows["position"].to_numpy() + rows["dropped_by"].to_numpy())[:, None] / 2.0
    radius = rows["distance"].to_numpy()[:, None] / 2.0
    gap = np.full((len(rows), 1), np.nan)
    x = np.hstack([middle + radius * np.cos(angle), gap])
    y = np.hstack([radius * np.sin(angle), gap])
    return x.ravel(), y.ravel()


# --- what a gate thinks of each pair ---


def interaction_table(look: GateLook, tokens: Sequence[str]) -> pd.DataFrame:
    """One row per pair of tokens (query after key) of the look: query, key, their texts, x, and whether it drops."""
    n = look.x.shape[0]
    query, key = np.tril_indices(n, -1)
    x = look.x[query, key]
    texts = np.asarray(tokens, dtype=object)
    return pd.DataFrame(
        {
            "query": query + look.start,
            "key": key + look.start,
            "query_token": texts[query + look.start],
            "key_token": texts[key + look.start],
            "x": x,
            "drops": x <= 0,
        }
    )


def plot_interactions(look: GateLook, tokens: Sequence[str], step: int, token: int) -> go.Figure:
    """x of each pair as a heatmap, the first query that drops each key marked; lines at the step and the chosen token."""
    n, start = look.x.shape[0], look.start
    x = np.where(np.tri(n, n, -1, dtype=bool), look.x, np.nan)
    names = [plain(t) for t in tokens[start : start + n]]
    figure = go.Figure(
        go.Heatmap(
            z=np.clip(x, -_FAR, _FAR),
            x=np.arange(start, start + n),
            y=np.arange(start, start + n),
            colorscale="RdBu",
            zmin=-_FAR,
            zmax=_FAR,
            customdata=x,
            colorbar={"title": {"text": "x: above 0 keeps"}},
            hovertemplate="query %{y}, key %{x}<br>x = %{customdata:.2f}<extra></extra>",
        )
    )
    drops = np.where(np.isnan(x), False, x <= 0)
    gone = np.flatnonzero(drops.any(0))
    first = drops.argmax(0)[gone]
    figure.add_scatter(
        x=gone + start,
        y=first + start,
        mode="markers",
        marker={"symbol": "x-thin", "size": 4, "line": {"width": 1, "color": "#1F2430"}, "color": "#1F2430"},
        customdata=[[names[k], names[q]] for k, q in zip(gone, first, strict=True)],
        hovertemplate="“%{customdata[1]}” (%{y}) drops “%{customdata[0]}” (%{x})<extra></extra>",
        name="drops",
    )
    if start <= step < start + n:
        figure.add_hline(step, line={"width": 1, "dash": "dot"})
    if start <= token < start + n:
        figure.add_vline(token, line={"width": 1, "dash": "dot"})
    figure.update_xaxes(title="key: the token that may go", showgrid=False, constrain="domain")
    figure.update_yaxes(title="query: the token that decides", showgrid=False, autorange="reversed")
    return figure.update_layout(height=480, showlegend=False)


def sigmoid_table() -> pd.DataFrame:
    """σ_a(x) for some a: columns a, x, p."""
    x = np.linspace(-3.0, 3.0, 241)
    return pd.DataFrame(
        [{"a": a, "x": v, "p": p} for a in _SHARPNESS for v, p in zip(x, sparse_sigmoid(x, a), strict=True)]
    )


def plot_sigmoid(table: pd.DataFrame, points: Mapping[str, float], threshold: float) -> go.Figure:
    """The sparse sigmoid as it is trained (a from 1 to 8) and the step it is used as, with chosen pairs' x on it."""
    figure = go.Figure()
    for a, rows in table.groupby("a"):
        figure.add_scatter(
            x=rows["x"], y=rows["p"], mode="lines", line={"color": _GREYS[a], "dash": _SHARPNESS[a], "width": 1.4},
            name=f"a = {a:g}", hovertemplate=f"x = %{{x:.2f}}: %{{y:.3f}}<extra>a = {a:g}</extra>",
        )  # fmt: skip
    figure.add_scatter(
        x=[-3, threshold, threshold, 3], y=[0, 0, 1, 1], mode="lines", line={"color": "#0072B2", "width": 2.4},
        name="a = ∞, as used", hoverinfo="skip",
    )  # fmt: skip
    for symbol, (name, x) in zip(("circle", "diamond"), points.items(), strict=False):
        figure.add_scatter(
            x=[float(np.clip(x, -3, 3))],
            y=[float(x > threshold)],
            mode="markers",
            marker={"symbol": symbol, "size": 12, "color": "#D55E00", "line": {"width": 1.5, "color": "#FFFFFF"}},
            name=plain(name),
            hovertemplate=f"x = {x:.3f}<extra></extra>",
        )
    figure.update_xaxes(title="gate logit x of a pair", range=[-3, 3])
    figure.update_yaxes(title="kept, σ(x)", range=[-0.06, 1.06])
    return figure.update_layout(height=480, showlegend=True)


# --- what is kept, and of what kind ---


def kept_table(trace: Trace) -> pd.DataFrame:
    """One row per layer and stretch of queries: the share of the tokens before them that they still see, mean over heads."""
    n = trace.n_tokens
    edges = np.unique(np.linspace(1, n, min(_COLUMNS, max(1, n - 1)) + 1).astype(int))
    rows = []
    for layer in range(trace.n_layers):
        # a key k is seen by the queries k … evicted_at − 1: differences, summed up
        change = np.zeros(n + 1)
        change[:n] += trace.n_kv_heads
        np.subtract.at(change, trace.evicted_at[layer].clip(max=n).ravel(), 1.0)
        seen = change[:n].cumsum() / trace.n_kv_heads - 1.0  # not its own
        share = seen[1:] / np.arange(1, n)
        for first, end in itertools.pairwise(edges):
            rows.append((layer, int(first), int(end) - 1, float(share[first - 1 : end - 1].mean())))
    return pd.DataFrame(rows, columns=["layer", "first", "last", "kept"])


def plot_kept(table: pd.DataFrame) -> go.Figure:
    """Kept context by depth and by position of the query."""
    z = table.pivot(index="layer", columns="first", values="kept")
    hover = "layer %{y}, query %{x}: sees %{z:.0%} of what is before it"
    figure = plot_shares(z, "context kept", hover).update_xaxes(title="position of the query")
    return figure.update_yaxes(title="layer").update_layout(height=height(len(z)))


def kinds_table(trace: Trace) -> pd.DataFrame:
    """One row per layer and kind of token: the share of its tokens dropped by the end, mean over heads, and their count."""
    kinds = np.asarray(trace.classes)
    gone = (trace.evicted_at < trace.n_tokens).mean(axis=1)  # [L, T]
    return pd.DataFrame(
        [
            {
                "layer": layer,
                "kind": kind,
                "tokens": int((kinds == kind).sum()),
                "dropped": float(gone[layer, kinds == kind].mean()),
            }
            for layer in range(trace.n_layers)
            for kind in sorted(set(trace.classes))
        ]
    )


def plot_kinds(table: pd.DataFrame) -> go.Figure:
    """What kinds of tokens go, by layer."""
    counts = table.groupby("kind")["tokens"].first()
    z = table.pivot(index="kind", columns="layer", values="dropped").rename(
        index=lambda kind: f"{kind} ({counts[kind]})"
    )
    figure = plot_shares(z, "dropped", "layer %{x}, %{y} tokens: %{z:.0%} dropped").update_xaxes(title="layer")
    return figure.update_layout(height=140 + 34 * len(z))


# --- what it costs ---


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
        own = table[table["method"] == name].sort_values("kept")
        figure.add_scatter(
            x=own["kept"],
            y=own["relative"],
            mode="lines+markers",
            line={"color": method_colour(name), "dash": method_dash(name), "width": 2.4 if name == "dcp" else 1.6},
            marker={"symbol": "circle" if name == "dcp" else "square", "size": 8 if name == "dcp" else 6},
            name=_SERIES[name],
            customdata=own[["setting", "perplexity"]],
            hovertemplate="%{customdata[0]}<br>keeps %{x:.0%}, perplexity %{customdata[1]:.2f}, %{y:.3f} × dense<extra></extra>",
        )
    figure.add_hline(1.0, line={"width": 1, "dash": "dot"})
    figure.update_xaxes(title="share of the causal context that is kept", tickformat=".0%", range=[1.02, 0])
    figure.update_yaxes(title="perplexity ÷ dense", type="log")
    return figure.update_layout(height=380, showlegend=True)


# --- how it was trained ---


def training_table(recipe: Mapping[str, Any]) -> pd.DataFrame:
    """One row per step of a gate's training: step, loss (nats a token) and kept, and their running means."""
    curve = recipe["curve"]
    table = pd.DataFrame({"step": np.arange(1, len(curve["loss"]) + 1), "loss": curve["loss"], "kept": curve["kept"]})
    smooth = table[["loss", "kept"]].rolling(20, min_periods=1).mean()
    return table.assign(loss_mean=smooth["loss"], kept_mean=smooth["kept"])


def plot_training(table: pd.DataFrame, distilled: bool) -> go.Figure:
    """What the gated model is off, and what it keeps, step by step."""
    figure = go.Figure()
    for name, colour, axis, dash in (("loss", "#D55E00", "y", "solid"), ("kept", "#0072B2", "y2", "5px,2px")):
        figure.add_scatter(
            x=table["step"], y=table[name], mode="markers", marker={"size": 3, "color": colour, "opacity": 0.35},
            yaxis=axis, hoverinfo="skip", showlegend=False,
        )  # fmt: skip
        figure.add_scatter(
            x=table["step"], y=table[f"{name}_mean"], mode="lines", line={"color": colour, "dash": dash}, yaxis=axis,
            name={"loss": "off, left axis", "kept": "kept, right axis"}[name],
            hovertemplate="step %{x}: %{y:.3f}<extra></extra>",
        )  # fmt: skip
    figure.update_layout(
        yaxis={"title": {"text": "KL to dense (nats)" if distilled else "−log p (nats)"}, "type": "log"},
        yaxis2={
            "title": {"text": "kept"},
            "overlaying": "y",
            "side": "right",
            "range": [0, 1],
            "tickvals": [0, 0.25, 0.5, 0.75, 1],
            "tickformat": ".0%",
            "showgrid": False,
        },
        height=300,
        showlegend=True,
    )
    return figure.update_xaxes(title="step")

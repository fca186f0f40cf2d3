"""Which channels stand out, how well a few of them find the keys that matter, and what that costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sparsity_core.kinds import Pipeline
from sparsity_core.methods.decode.double_sparsity.channels import STATISTICS, Channels
from sparsity_core.record import Trace
from sparsity_core.studies import SHARES, ChannelStudy, Read
from viz.atlas import FIRST_AXIS, height, marks, named_columns
from viz.shares import plot_shares
from viz.theme import SEQUENTIAL, method_colour, method_dash, plain

STATISTIC_NAMES = {
    "qk": "mean |q · k| of a token with itself",
    "q": "mean |q|",
    "k": "mean |k|",
    "variance": "variance of q · k over pairs",
}
QUALITIES = {"mass": "exact attention that is read", "recall": "share of the exact top keys that is read"}
CURVES = {"relative": "perplexity ÷ dense", "mass": "exact attention read or kept"}
# Hue and dash of each statistic, the same in every figure.
_LOOKS = {
    "qk": ("#D55E00", "solid"),
    "q": ("#0072B2", "5px,2px"),
    "k": ("#009E73", "1.5px,1.5px"),
    "variance": ("#CC79A7", "9px,2px"),
}
_LEAST = 1e-6  # attention below is drawn there, so that every step has the same axes
_FATES = {
    "read, rightly": ("#009E73", "circle"),
    "read, one of the exact top keys was not": ("#E69F00", "diamond"),
    "missed": ("#D55E00", "x"),
    "left unread": ("#8A93A3", "circle-open"),
}


def share_name(share: float) -> str:
    return "1" if share >= 1 else f"1/{round(1 / share)}"


# --- magnitudes ---


def magnitude_table(
    channels: Channels, statistic: str, *, layer: int | None = None, head: int | None = None
) -> pd.DataFrame:
    """One row per channel and layer (of a KV head, or the heads' mean) or, with `layer`, per channel and KV head.

    Columns: layer, head (−1: the mean), channel, magnitude, place (0 for the largest of its row).
    """
    values = channels.per_kv_head(statistic)  # [L, Hkv, D]
    if layer is not None:
        rows, names = values[layer], [(layer, h) for h in range(values.shape[1])]
    else:
        rows = values.mean(1) if head is None else values[:, head]
        names = [(i, -1 if head is None else head) for i in range(values.shape[0])]
    place = np.argsort(np.argsort(-rows, axis=1, kind="stable"), axis=1)
    n, dim = rows.shape
    return pd.DataFrame(
        {
            "layer": np.repeat([a for a, _ in names], dim),
            "head": np.repeat([b for _, b in names], dim),
            "channel": np.tile(np.arange(dim), n),
            "magnitude": rows.ravel(),
            "place": place.ravel(),
        }
    )


def plot_magnitudes(table: pd.DataFrame, r: int, statistic: str, *, selected: int | None = None) -> go.Figure:
    """Magnitudes as a heatmap, relative to the row's median; the r outliers of each row are marked."""
    by = "layer" if table["layer"].nunique() > 1 else "head"
    rows = table[by].unique()
    values = table["magnitude"].to_numpy().reshape(len(rows), -1)
    relative = values / np.maximum(np.median(values, axis=1, keepdims=True), 1e-30)
    outliers = table[table["place"] < r]
    figure = go.Figure(
        go.Heatmap(
            z=np.log2(np.maximum(relative, 1e-6)),
            x=table["channel"].unique(),
            y=rows,
            customdata=values,
            colorscale=SEQUENTIAL,
            zmin=-3,
            zmax=3,
            colorbar={
                "title": {"text": "× the row's median"},
                "tickvals": [-3, -2, -1, 0, 1, 2, 3],
                "ticktext": ["≤ ⅛", "¼", "½", "1", "2", "4", "≥ 8"],
            },
            hovertemplate=f"{by} %{{y}}, channel %{{x}}<br>{STATISTIC_NAMES[statistic]}: %{{customdata:.4g}}<extra></extra>",
        )
    )
    figure.add_scatter(
        x=outliers["channel"],
        y=outliers[by],
        mode="markers",
        marker={
            "symbol": "circle-open",
            "size": 5 if r <= 16 else 3,
            "color": "#FFFFFF",
            "line": {"width": 1, "color": "#FFFFFF"},
        },
        name=f"the {r} largest of the row",
        hoverinfo="skip",
    )
    if selected is not None and by == "layer":
        across = {"x0": -0.5, "x1": values.shape[1] - 0.5, "y0": selected - 0.5, "y1": selected + 0.5}
        figure.add_shape(type="rect", **across, line={"width": 1.5})
    tall = by == "layer"
    figure.update_xaxes(title="channel of the head", showgrid=False, range=[-0.5, values.shape[1] - 0.5])
    figure.update_yaxes(
        title=by if tall else "KV head",
        showgrid=False,
        dtick=None if tall else 1,
        range=[rows[0] - 0.5, rows[-1] + 0.5],
    )
    return figure.update_layout(height=150 + (10 if tall else 26) * len(rows), showlegend=False)


# --- statistics against each other ---


def overlap_table(channels: Channels, r: int) -> pd.DataFrame:
    """One row per pair of statistics: the share of the r largest channels that both choose, mean over layers and heads."""
    return pd.DataFrame(
        [
            {"statistic": a, "beside": b, "overlap": float(channels.overlap(channels, a, b, r).mean())}
            for a in STATISTICS
            for b in STATISTICS
        ]
    )


def plot_overlap(table: pd.DataFrame, chance: float) -> go.Figure:
    """The pairs as a heatmap with their numbers; `chance` is what random channels would share."""
    z = table["overlap"].to_numpy().reshape(len(STATISTICS), -1)
    figure = go.Figure(
        go.Heatmap(
            z=z,
            x=list(STATISTICS),
            y=list(STATISTICS),
            colorscale=SEQUENTIAL,
            zmin=0,
            zmax=1,
            text=[[f"{v:.2f}" for v in row] for row in z],
            texttemplate="%{text}",
            colorbar={"title": {"text": f"shared (chance {chance:.2f})"}},
            hovertemplate="%{y} and %{x} share %{z:.1%}<extra></extra>",
        )
    )
    return figure.update_layout(height=300).update_yaxes(autorange="reversed")


# --- recall and mass ---


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
        x=best["share"], y=best[what], mode="lines", line={"color": "#8A93A3"}, name=f"all {most} channels",
        hovertemplate="%{y:.1%}<extra>all channels</extra>",
    )  # fmt: skip
    for statistic, (colour, dash) in _LOOKS.items():
        own = table[(table["statistic"] == statistic) & (table["channels"] == r)]
        figure.add_scatter(
            x=own["share"], y=own[what], mode="lines+markers", line={"color": colour, "dash": dash}, name=statistic,
            hovertemplate=f"%{{y:.1%}}<extra>{statistic}</extra>",
        )  # fmt: skip
    return _over_shares(figure).update_yaxes(title=QUALITIES[what], tickformat=".0%")


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


def _over_shares(figure: go.Figure) -> go.Figure:
    figure.update_xaxes(
        title="share of the context that is read",
        type="log",
        autorange="reversed",
        tickvals=list(SHARES),
        ticktext=[share_name(s) for s in SHARES],
        minor={"ticks": ""},
    )
    return figure.update_layout(height=340, showlegend=True, hovermode="x unified")


# --- one decode step ---


def read_table(
    read: Read, tokens: Sequence[str], head: int, step: int, share: float, dropped: np.ndarray
) -> pd.DataFrame:
    """One row per key that the query nearest to `step` sees: position, token, exact, read, ideal, fate, dropped.

    `dropped` bool [T] says which keys an eviction method has lost by then.
    """
    i = int(np.abs(read.queries - step).argmin())
    query = int(read.queries[i])
    exact, rank = read.exact[head, i, : query + 1], read.rank[head, i, : query + 1]
    visible = rank < read.rank.shape[2]
    n_read = int(np.ceil(share * visible.sum()))
    order = np.argsort(-np.where(visible, exact, -1), kind="stable")
    ideal = np.zeros(len(exact), bool)
    ideal[order[:n_read]] = True
    chosen = visible & (rank < n_read)
    fate = np.select([chosen & ideal, chosen, ideal], list(_FATES)[:3], list(_FATES)[3])
    table = pd.DataFrame(
        {"query": query, "position": np.arange(query + 1), "token": list(tokens[: query + 1]), "exact": exact,
         "read": chosen, "ideal": ideal, "fate": fate, "dropped": dropped[: query + 1]}
    )  # fmt: skip
    return table[visible]


def plot_read(table: pd.DataFrame) -> go.Figure:
    """The exact attention of each key, marked by whether the labels chose it and whether it should have been."""
    figure = go.Figure()
    for fate, (colour, symbol) in _FATES.items():
        own = table[table["fate"] == fate]
        figure.add_scatter(
            x=own["position"],
            y=np.maximum(own["exact"], _LEAST),
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 7},
            name=fate,
            text=[plain(t) for t in own["token"]],
            hovertemplate="token %{x} “%{text}”<br>exact attention %{y:.2%}" + f"<extra>{fate}</extra>",
        )
    lost = table[table["dropped"]]
    if len(lost):
        figure.add_scatter(
            x=lost["position"],
            y=np.maximum(lost["exact"], _LEAST),
            mode="markers",
            marker={"color": "#8A93A3", "symbol": "square-open", "size": 12},
            name="dropped by the eviction method",
            hoverinfo="skip",
        )
    figure.update_xaxes(title="token position")
    figure.update_yaxes(
        title="exact attention, mean of the query heads", type="log", exponentformat="power", range=[-6.1, 0.1]
    )
    return figure.update_layout(height=380, showlegend=True)


# --- what it costs ---


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


def mass_read(trace: Trace) -> float:
    """Share of the exact attention that the queries read (decode methods) or that their cache still had (eviction).

    nan where a decode method read from a real cache, beside which nothing exact is computed.
    """
    if trace.selected_mass.size:
        known = np.isfinite(trace.selected_mass)
        return float(np.where(known, trace.selected_mass, 1.0).mean()) if known.any() else float("nan")
    return float(1.0 - trace.regret.mean())


def plot_curve(table: pd.DataFrame, cost: str = "relative") -> go.Figure:
    """Perplexity, or the attention that is read, against the share of the context that is read or kept."""
    figure = go.Figure()
    for name, own in table.groupby("method", sort=False):
        statistic = str(name).rsplit(" ", 1)[-1]
        named = own["name"].iloc[0]
        colour, dash = _LOOKS.get(statistic) or (method_colour(named), method_dash(named))
        own = own.sort_values("share")
        figure.add_scatter(
            x=own["share"],
            y=own[cost],
            mode="lines+markers",
            line={"color": colour, "dash": dash},
            name=str(name),
            customdata=own["perplexity"],
            hovertemplate=f"%{{y:.3f}}, perplexity %{{customdata:.2f}}<extra>{name}</extra>",
        )
    perplexity = cost == "relative"
    return _over_shares(figure).update_yaxes(
        title=CURVES[cost], type="log" if perplexity else "linear", tickformat=None if perplexity else ".0%"
    )


def answer_table(traces: Mapping[tuple[str, float], Trace]) -> pd.DataFrame:
    """One row per method: what it wrote, and how many tokens it goes along with the dense model."""
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


# --- how often each token is read ---


def selected_table(trace: Trace, head: int | str, window: tuple[int, int]) -> pd.DataFrame:
    """One row per layer and token: the share of the queries that could see it that read it, of a KV head or their mean."""
    heads = trace.selected.mean(1) if not isinstance(head, int) else trace.selected[:, head]  # [L, T]
    start, end = window
    chances = trace.n_tokens - np.arange(trace.n_tokens)
    dense = trace.selected.sum((1, 2)) == 0  # the first layers, in which every query reads everything
    heads = np.where(dense[:, None], chances, heads)
    share = heads / chances
    n = end - start
    return pd.DataFrame(
        {
            "layer": np.repeat(np.arange(trace.n_layers), n),
            "position": np.tile(np.arange(start, end), trace.n_layers),
            "token": np.tile(np.asarray(trace.tokens[start:end], dtype=object), trace.n_layers),
            "share": share[:, start:end].ravel(),
            "queries": heads[:, start:end].ravel(),
        }
    )


def plot_selected(table: pd.DataFrame, *, selected: tuple[int, int] | None = None) -> go.Figure:
    """How often each layer's decode steps read each token; `selected` is (layer, position)."""
    layers, positions = table["layer"].unique(), table["position"].unique()
    shape = (len(layers), len(positions))
    heatmap = go.Heatmap(
        z=table["share"].to_numpy(np.float32).reshape(shape),
        x=positions,
        y=layers,
        colorscale=SEQUENTIAL,
        zmin=0,
        zmax=1,
        colorbar={"title": {"text": "read by"}, "tickformat": ".0%"},
        hovertemplate="layer %{y}, token %{x}<br>read by %{z:.0%} of the later queries<extra></extra>",
        xaxis="x2",
    )
    shapes, notes = marks(selected, positions)
    layout = {
        "height": height(shape[0]),
        "xaxis": {"title": {"text": "token position"}},
        "xaxis2": named_columns(positions, table["token"].to_numpy()[: shape[1]]),
        "yaxis": {"title": {"text": "layer"}, "showgrid": False},
        "shapes": shapes,
        "annotations": notes,
    }
    return go.Figure([FIRST_AXIS, heatmap], layout)


# --- while it runs ---


def drift_table(trace: Trace) -> pd.DataFrame:
    """One row per layer and new ranking of its channels: layer, read (tokens by then), stayed (of the calibrated channels)."""
    layers, steps = trace.drift.shape
    table = pd.DataFrame(
        {
            "layer": np.repeat(np.arange(layers), steps),
            "read": np.tile(trace.drift_steps, layers),
            "stayed": trace.drift.ravel(),
        }
    )
    return table.dropna()


def plot_drift(table: pd.DataFrame) -> go.Figure:
    """How many of the calibrated channels each layer still keeps as it ranks them again on what it reads."""
    z = table.pivot(index="layer", columns="read", values="stayed")
    hover = "layer %{y}, after %{x} tokens: %{z:.0%} of the calibrated channels"
    figure = plot_shares(z, "channels that stayed", hover, least=math.floor(10 * table["stayed"].min()) / 10)
    figure.update_xaxes(title="tokens read")
    return figure.update_yaxes(title="layer").update_layout(height=height(len(z)))


def prefetch_table(trace: Trace) -> pd.DataFrame:
    """One row per offloaded layer: the share of the rows it read that had been fetched ahead."""
    table = pd.DataFrame({"layer": np.arange(len(trace.prefetch_hits)), "ready": trace.prefetch_hits})
    return table.dropna()


def plot_prefetch(table: pd.DataFrame, chance: float) -> go.Figure:
    """How often a query predicted from the layer below named the rows that the real one read; dotted: by chance."""
    figure = go.Figure(
        go.Bar(
            x=table["layer"], y=table["ready"], marker={"color": "#0072B2"},
            hovertemplate="layer %{x}: %{y:.0%} of the rows were ready<extra></extra>",
        )
    )  # fmt: skip
    figure.add_hline(
        chance, line={"width": 2, "dash": "dot", "color": "#A0A0A0"}
    )  # seen on the bars and on both grounds
    figure.update_xaxes(title="layer")
    figure.update_yaxes(title="rows ready when asked for", range=[0, 1], tickformat=".0%")
    return figure.update_layout(height=300)

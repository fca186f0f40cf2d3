"""What a pipeline costs against the dense model: by layer, by head and by token."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sparsity_core.kinds import Pipeline
from sparsity_core.record import Trace
from viz.theme import SEQUENTIAL, method_colour, method_dash, plain

MEASURES = {
    "ideal_cosine": "cosine with the ideal mask",
    "ideal_recall": "share of the ideal keys that is kept",
    "retained": "dense attention mass retained",
}


def label(trace: Trace) -> str:
    """A pipeline's short name in legends: its methods with their knobs, without the stage names."""
    return " + ".join(map(str, Pipeline.parse(trace.provenance.pipeline).methods.values())) or "dense"


def pair_colours(a: Trace, b: Trace) -> tuple[str, str]:
    """The colours of two pipelines side by side: their methods' own, unless both run the same method."""
    first, second = method_colour(method_of(a)), method_colour(method_of(b))
    return (first, second) if first != second else ("#D55E00", "#0072B2")


def method_of(trace: Trace) -> str:
    """The name of the method that drops tokens, by which it is coloured; "dense" where there is none."""
    pipeline = Pipeline.parse(trace.provenance.pipeline)
    method = pipeline.eviction or pipeline.gate
    return method.name if method else "dense"


def prompt_perplexity(trace: Trace) -> tuple[float, float]:
    """(under the pipeline, dense) of the prompt alone: what a pipeline writes itself is likely to it, and another text to each.

    nan where the prompt has one token, and for dense where it was not compared.
    """
    of_prompt = slice(0, trace.n_prompt - 1)
    if trace.n_prompt < 2:
        return float("nan"), float("nan")
    return tuple(float(np.exp(np.mean(nll[of_prompt]))) for nll in (trace.nll, trace.dense_nll))  # type: ignore[return-value]


def similarity_table(traces: Mapping[str, Trace], head: int | str = "mean") -> pd.DataFrame:
    """One row per pipeline and layer: cosine and recall against the ideal mask, mass retained, and the ideal's own mass.

    Means over the queries at which something had been dropped. `head` is a KV head, or "mean" over them.
    """
    rows = []
    for name, trace in traces.items():
        if not trace.compared:
            continue
        first = int(trace.evicted_at.min())
        late = trace.probe_steps >= first
        heads = slice(None) if head in ("mean", "first", "last") else slice(int(head), int(head) + 1)
        group = trace.n_heads // trace.n_kv_heads
        query_heads = slice(None) if heads == slice(None) else slice(int(head) * group, (int(head) + 1) * group)
        for layer in range(trace.n_layers):
            if not late.any():
                values = (1.0, 1.0, 1.0, 1.0)
            else:
                values = (
                    float(trace.ideal_cosine[layer, heads][:, late].mean()),
                    float(trace.ideal_recall[layer, heads][:, late].mean()),
                    float(1 - trace.regret[layer, query_heads, first:].mean()),
                    float(trace.ideal_mass[layer, heads][:, late].mean()),
                )
            rows.append((name, method_of(trace), layer, *values))
    columns = ["pipeline", "method", "layer", "ideal_cosine", "ideal_recall", "retained", "ideal_retained"]
    return pd.DataFrame(rows, columns=columns)


def plot_similarity(table: pd.DataFrame, measure: str = "ideal_cosine", layer: int | None = None) -> go.Figure:
    """A line per pipeline over the layers; for the mass retained also the ideal's, which no method of its size can pass."""
    figure = go.Figure()
    for i, (name, rows) in enumerate(table.groupby("pipeline", sort=False)):
        method = str(rows["method"].iloc[0])
        figure.add_scatter(
            x=rows["layer"],
            y=rows[measure],
            mode="lines+markers",
            line={"color": method_colour(method), "dash": method_dash(method)},
            marker={"symbol": ("circle", "square", "diamond", "cross")[i % 4]},
            name=plain(str(name)),
            hovertemplate="layer %{x}: %{y:.3f}<extra></extra>",
        )
        if measure == "retained":
            figure.add_scatter(
                x=rows["layer"],
                y=rows["ideal_retained"],
                mode="lines",
                line={"color": method_colour(method), "dash": "dot", "width": 1},
                name=f"ideal set of equal size, {plain(str(name))}",
            )
    if layer is not None:
        figure.add_vline(layer, line={"width": 1, "dash": "dot"})
    figure.update_xaxes(title="layer")
    figure.update_yaxes(title=MEASURES[measure])
    return figure.update_layout(height=340, showlegend=True)


def regret_table(trace: Trace, step: int | None = None) -> pd.DataFrame:
    """One row per layer and query head: the dense attention that went to evicted keys, mean over the queries up to `step`."""
    end = trace.n_tokens if step is None else step + 1
    regret = trace.regret[:, :, :end].mean(axis=2)
    layers, heads = regret.shape
    return pd.DataFrame(
        {
            "layer": np.repeat(np.arange(layers), heads),
            "head": np.tile(np.arange(heads), layers),
            "kv_head": np.tile(np.arange(heads) // (heads // trace.n_kv_heads), layers),
            "regret": regret.ravel(),
            "retained": 1 - regret.ravel(),
        }
    )


def plot_regret(table: pd.DataFrame, most: float | None = None) -> go.Figure:
    """Regret of each layer and head; `most` fixes the colour scale's end so that two figures share it."""
    layers, heads = np.unique(table["layer"]), np.unique(table["head"])
    figure = go.Figure(
        go.Heatmap(
            z=table["regret"].to_numpy(np.float32).reshape(len(layers), len(heads)).T,
            x=layers,
            y=heads,
            zmin=0,
            zmax=most or max(1e-6, float(table["regret"].max())),
            colorscale=SEQUENTIAL,
            colorbar={"title": {"text": "regret"}, "tickformat": ".0%"},
            hovertemplate="layer %{x}, head %{y}<br>%{z:.2%} of the dense attention went to evicted keys<extra></extra>",
        )
    )
    figure.update_xaxes(title="layer")
    figure.update_yaxes(title="query head", dtick=max(1, len(heads) // 8), showgrid=False)
    return figure.update_layout(height=120 + 18 * min(12, len(heads)))


def loss_table(trace: Trace) -> pd.DataFrame:
    """One row per predicted token: −log p dense and pruned, their difference, KL to dense, whether the top token agrees."""
    n = trace.n_tokens
    return pd.DataFrame(
        {
            "position": np.arange(1, n),
            "token": trace.tokens[1:],
            "nll": trace.nll[:-1],
            "dense_nll": trace.dense_nll[:-1],
            "extra_nll": trace.nll[:-1] - trace.dense_nll[:-1],
            "kl_to_dense": trace.kl_to_dense[:-1],
            "top1_agrees": trace.top1_agrees[:-1],
        }
    )


def plot_loss(tables: Mapping[str, pd.DataFrame], methods: Mapping[str, str], step: int | None = None) -> go.Figure:
    """KL of the next-token distribution to the dense model's at each token: where forgetting hurts."""
    figure = go.Figure()
    for name, table in tables.items():
        method = methods[name]
        drawn = any(line.line.color == method_colour(method) for line in figure.data)
        figure.add_scatter(
            x=table["position"],
            y=table["kl_to_dense"],
            mode="lines",
            line={"color": method_colour(method), "dash": "2px,2px" if drawn else method_dash(method), "width": 1.2},
            name=plain(name),
            customdata=np.stack([[plain(t) for t in table["token"]], table["extra_nll"].round(3).astype(str)], axis=1),
            hovertemplate="before token %{x} “%{customdata[0]}”<br>KL %{y:.3f} nats, −log p %{customdata[1]} above dense"
            "<extra></extra>",
        )
    if step is not None:
        figure.add_vline(step, line={"width": 1, "dash": "dot"})
    figure.update_xaxes(title="token position")
    figure.update_yaxes(title="KL to dense (nats)")
    return figure.update_layout(height=240, showlegend=len(tables) > 1)

"""What each pipeline keeps of the dense model's behaviour, against the bytes that it really holds or reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sparsity_core.evaluate import paired
from sparsity_core.record import Trace
from viz.fates import choices_kept
from viz.looks import NEUTRAL, Look, look_of
from viz.pipeline import share_read
from viz.text import plain

COSTS = {
    "read": "KV bytes that a step reads",
    "held": "KV bytes held",
    "traffic": "bytes that a step reads, with weights",
}
MEASURES = {
    "kl": "mean KL to dense (nats)",
    "perplexity": "perplexity ÷ dense",
    "disagrees": "other top token than dense",
}
SPANS = {"generated": "What was generated", "prompt": "The prompt"}
_DENSE = {"kl": 0.0, "perplexity": 1.0, "disagrees": 0.0}
_BESIDE = (
    "middle right",
    "middle left",
    "top center",
    "bottom center",
)  # of a mark stands its letter; marks may coincide
_MIB = 2**20


def tradeoff_table(traces: Mapping[str, Trace], span: str = "prompt") -> pd.DataFrame:
    """One row per pipeline that was compared with the dense model: `pipeline`, its `quality_of` and its `costs_of`."""
    rows = [{"pipeline": name, **quality_of(t, span), **costs_of(t)} for name, t in traces.items() if t.compared]
    return pd.DataFrame(rows, columns=["pipeline", "n", *MEASURES, *COSTS, *(f"dense_{cost}" for cost in COSTS)])


def text_row(trace: Trace) -> dict[str, float]:
    """What `texts_table` takes of one of many texts: the quality of its later half, which every method has pruned, and costs."""
    return {**quality_of(trace, "later"), **costs_of(trace)}


def texts_table(rows: Mapping[str, Sequence[Mapping[str, float]]]) -> pd.DataFrame:
    """`tradeoff_table` of means over texts, with the columns low_ and high_ of each measure: 95 % of resamples of the texts.

    `n` counts the texts; the mean of perplexities ÷ dense is their geometric one. Raises ValueError for fewer than two texts.
    """
    found = []
    for name, texts in rows.items():
        each = pd.DataFrame(texts)
        costs = [cost for column in COSTS for cost in (column, f"dense_{column}")]
        row = {"pipeline": name, "n": len(each), **each[costs].mean(skipna=False).to_dict()}
        for measure in MEASURES:
            values = np.log(each[measure]) if measure == "perplexity" else each[measure]
            over = paired(values.to_numpy(), np.zeros(len(each)))
            edges = np.asarray([over.difference, over.low, over.high])
            row |= dict(zip(
                (measure, f"low_{measure}", f"high_{measure}"), np.exp(edges) if measure == "perplexity" else edges, strict=True
            ))  # fmt: skip
        found.append(row)
    return pd.DataFrame(found)


def quality_of(trace: Trace, span: str) -> dict[str, float]:
    """The means of `MEASURES` over the n queries of a span; nan where it has none.

    `span` is "prompt", or "generated": the queries after the prompt, whose tokens the model wrote itself; or "later": those of
    the later half of the text.
    """
    n = trace.n_prompt - (trace.n_prompt == trace.n_tokens)  # the last query's own next token is not known
    half = slice(trace.n_tokens // 2, trace.n_tokens - 1)
    within = {"prompt": slice(0, n), "generated": slice(trace.n_prompt, trace.n_tokens), "later": half}[span]
    kl, agrees = trace.kl_to_dense[within], trace.top1_agrees[within]
    extra = trace.nll[within] - trace.dense_nll[within]
    return {
        "n": int((~np.isnan(kl)).sum()),
        "kl": _mean(kl),
        "perplexity": float(np.exp(_mean(extra))),
        "disagrees": 1 - _mean(agrees),
    }


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def costs_of(trace: Trace) -> dict[str, float]:
    """The `COSTS` in bytes, and those of the dense model; nan where the trace does not tell the model's sizes.

    A step reads the share of the cache that its last query reads, and the index by which the decode stage chose it.
    """
    dense = float(trace.kv_bytes_dense)
    sizes, nan = trace.sizes, float("nan")
    costs = {"held": float(trace.kv_bytes), "dense_held": dense, "dense_read": dense}
    if sizes is None or not choices_kept(trace):
        return {
            **costs,
            "read": nan if trace.reading is not None else float(trace.kv_bytes),
            "traffic": nan,
            "dense_traffic": nan,
        }
    read = float(trace.kv_bytes)
    if trace.reading is not None:
        read = share_read(trace) * (trace.kv_bytes - sizes.index_bytes) + sizes.index_bytes
    return {
        **costs,
        "read": read,
        "traffic": read + sizes.weight_bytes_left,
        "dense_traffic": dense + sizes.weight_bytes,
    }


def reads_prompt_densely(trace: Trace) -> bool:
    """Whether a pipeline's predictions along the prompt are the dense model's, as under a decode method or a cut after it."""
    return trace.compared and trace.provenance.pipeline != "dense" and quality_of(trace, "prompt")["kl"] < 1e-6


def plot_tradeoff(table: pd.DataFrame, looks: Mapping[str, Look], measure: str = "kl", cost: str = "read") -> go.Figure:
    """A mark per pipeline, the dense model's, and a line through those that no other beats in both cost and quality.

    Of a table over texts each mark has its interval.
    """
    figure, known = go.Figure(), table.dropna(subset=[measure, cost])
    points = [(float(row[cost]), float(row[measure])) for _, row in known.iterrows()]
    if len(known):
        dense = (float(known[f"dense_{cost}"].max()), _DENSE[measure])
        front = front_of([*points, dense])
        figure.add_scatter(
            x=[x / _MIB for x, _ in front],
            y=[y for _, y in front],
            mode="lines",
            line={"color": NEUTRAL, "width": 1, "dash": "dot", "shape": "hv"},
            name="best at its bytes",
            hoverinfo="skip",
        )
        _mark(figure, "dense", dense, look_of("dense"), "", measure)
    for at, (name, point) in enumerate(zip(known["pipeline"], points, strict=True)):
        row = known.iloc[at]
        edges = (row[f"low_{measure}"], row[f"high_{measure}"]) if f"low_{measure}" in known else None
        letter, beside = str(name).partition(":")[0], _BESIDE[at % len(_BESIDE)]
        _mark(figure, str(name), point, looks[str(name)], letter, measure, beside, edges)
    figure.update_xaxes(title=f"{COSTS[cost]} (MiB)", rangemode="tozero")
    over = f", mean of {int(known['n'].max())} texts" if f"low_{measure}" in known and len(known) else ""
    figure.update_yaxes(title=MEASURES[measure] + over, tickformat=".0%" if measure == "disagrees" else None)
    return figure.update_layout(height=420, showlegend=True)


def _mark(
    figure: go.Figure,
    name: str,
    point: tuple[float, float],
    look: Look,
    text: str,
    measure: str,
    beside: str = "top center",
    edges: tuple[float, float] | None = None,
) -> None:
    form = ".1%" if measure == "disagrees" else ".4f"
    figure.add_scatter(
        x=[point[0] / _MIB],
        y=[point[1]],
        mode="markers+text",
        marker={"color": look.colour, "symbol": look.symbol, "size": 11},
        text=[plain(text)],
        textposition=beside,
        error_y=None
        if edges is None
        else {"symmetric": False, "array": [edges[1] - point[1]], "arrayminus": [point[1] - edges[0]]},
        cliponaxis=False,
        name=plain(name),
        hovertemplate=f"%{{x:.2f}} MiB, %{{y:{form}}}<extra>{plain(name)}</extra>",
    )


def front_of(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other has at no more cost and with no more loss, from the cheapest on."""
    found: list[tuple[float, float]] = []
    for cost, loss in sorted(set(points)):
        if not found or loss < found[-1][1]:
            found.append((cost, loss))
    return found

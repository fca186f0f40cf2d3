"""What goes into each stage of a pipeline and what comes out: keys, channels, neurons, bytes and operations."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import plotly.graph_objects as go

from sparsity_core.kinds import Pipeline
from sparsity_core.record import SizeRecord, Trace, removed_at
from viz.fates import choices_kept, stage_names
from viz.looks import BLUE
from viz.maps import GREY, PALE
from viz.removed import READ
from viz.text import plain

# What a lane shows: in what unit, how much one of it is, and its short name.
QUANTITIES = {
    "neurons": ("a layer", 1, "neurons"),
    "weights": ("MiB", 2**20, "weights, MiB"),
    "weight operations": ("MFLOP a token", 1e6, "weights, MFLOP"),
    "keys seen": ("a query", 1, "keys seen"),
    "channels": ("to rank by", 1, "channels"),
    "cache": ("MiB", 2**20, "cache, MiB"),
    "read a step": ("MiB", 2**20, "read a step, MiB"),
    "attention": ("GFLOP", 1e9, "attention, GFLOP"),
}
_LANE, _TOP = 42, 64  # px
_BODY = (0.10, 0.32)  # where in its column a stage narrows a pipe


@dataclass
class _Flow:
    """Rows of the table, as a walk through the stages makes them; what each quantity is at now."""

    now: dict[str, float]
    dense: dict[str, float]
    rows: list[tuple[str, str, str, str, float, float, float]]

    def step(self, stage: str, method: str, **after: float) -> None:
        for name, value in after.items():
            quantity = name.replace("_", " ")
            unit, one, _ = QUANTITIES[quantity]
            before, dense = self.now[quantity], self.dense[quantity]
            self.rows.append((stage, method, quantity, unit, before / one, value / one, value / dense))
            self.now[quantity] = value


def pipeline_table(trace: Trace, removed: pd.DataFrame | None = None) -> pd.DataFrame:
    """One row per stage and quantity that it acts on: stage, method, quantity, unit, before, after, left (of the dense model's).

    `removed` is the trace's `removed_table`; without one nothing is said of keys and operations of attention, which are
    counted from it. Keys are a mean over queries, heads and layers. Attention's operations are those of the pairs seen, with
    what a stage spends on choosing them.

    Raises ValueError for a trace without the model's sizes, which traces of before did not keep.
    """
    sizes = trace.sizes
    if sizes is None:
        raise ValueError("this trace does not tell the model's sizes: run the spec again")
    methods = Pipeline.parse(trace.provenance.pipeline).methods
    dense = _dense(trace, sizes)
    flow = _Flow(dict(dense), dense, [])
    counted = None if removed is None else _Counts(trace, sizes, removed)
    for stage, method in methods.items():
        name = str(method)
        if stage == "weights":
            if sizes.neurons.size:
                flow.step(stage, name, neurons=float(sizes.neurons_left.mean()))
            flow.step(stage, name, weights=sizes.weight_bytes_left, weight_operations=sizes.token_flops_left)
            continue
        if stage in ("gate", "eviction"):
            flow.step(stage, name, cache=_cached(trace, sizes, last=stage == "eviction" or "eviction" not in methods))
            if "decode" in methods:
                flow.step(stage, name, read_a_step=flow.now["cache"])
        if stage == "decode":
            flow.step(stage, name, channels=sizes.ranked_channels)
            if trace.thinning is not None:
                flow.step(stage, name, cache=float(trace.kv_bytes - sizes.index_bytes))
            if choices_kept(trace):
                flow.step(stage, name, read_a_step=share_read(trace) * flow.now["cache"] + sizes.index_bytes)
        if counted is not None:
            flow.step(stage, name, keys_seen=counted.keys(stage), attention=counted.flops(stage))
    return pd.DataFrame(flow.rows, columns=["stage", "method", "quantity", "unit", "before", "after", "left"])


def _dense(trace: Trace, sizes: SizeRecord) -> dict[str, float]:
    n = trace.n_tokens
    return {
        "neurons": float(sizes.neurons.mean()) if sizes.neurons.size else 0.0,
        "weights": float(sizes.weight_bytes),
        "weight operations": float(sizes.token_flops),
        "keys seen": (n + 1) / 2,
        "channels": float(sizes.head_dim),
        "cache": float(trace.kv_bytes_dense),
        "read a step": float(trace.kv_bytes_dense),
        "attention": float(sizes.pair_flops.sum() * n * (n + 1) // 2),
    }


def _cached(trace: Trace, sizes: SizeRecord, last: bool) -> float:
    """Bytes of the cache at the end, after the `last` stage that drops for good, or after a gate before it."""
    if last and trace.thinning is None:  # else the keys that are left lose channels after it
        return float(trace.kv_bytes - sizes.index_bytes)
    held = (trace.evicted_at if last else trace.gated_at) == trace.n_tokens
    return float(held.mean()) * trace.kv_bytes_dense


def share_read(trace: Trace) -> float:
    """Of the cached keys that come to the decode stage, the share that the last query reads."""
    stages = stage_names(trace)[removed_at(trace, trace.n_tokens - 1)]
    read, unread = (int((stages == what).sum()) for what in ("", "decode"))
    return read / (read + unread)


class _Counts:
    """Pairs and operations that are left after a stage, from a trace's `removed_table`."""

    def __init__(self, trace: Trace, sizes: SizeRecord, removed: pd.DataFrame) -> None:
        self._trace, self._sizes = trace, sizes
        self._pairs = removed.pivot(index="layer", columns="stage", values="pairs")
        self._stages = [stage for stage in removed["stage"].unique() if stage != READ]

    def _left(self, stage: str) -> pd.Series:
        """Pairs of each layer, over its KV heads, that the stages up to this one leave."""
        gone = self._stages[: self._stages.index(stage) + 1]
        return self._pairs.sum(axis=1) - self._pairs[gone].sum(axis=1)

    def keys(self, stage: str) -> float:
        trace = self._trace
        return float(self._left(stage).sum() / (trace.n_layers * trace.n_kv_heads * trace.n_tokens))

    def flops(self, stage: str) -> float:
        trace, sizes = self._trace, self._sizes
        spent = float((self._left(stage).to_numpy() / trace.n_kv_heads * sizes.pair_flops).sum())
        if trace.prefill is not None and self._stages.index(stage) >= self._stages.index("prefill"):
            spent += float(trace.prefill.scoring_flops.sum())
        if stage == "decode":  # ranks every pair that the stages before it leave, by a part of the channels
            ranked = self._pairs[["decode", READ]].sum(axis=1).to_numpy() / trace.n_kv_heads
            chooses = (self._pairs["decode"] > 0).to_numpy()
            share = sizes.ranked_channels / sizes.head_dim / 2  # a dot product alone is half of a pair's operations
            spent += float((ranked * chooses * sizes.pair_flops).sum() * share)
        return spent


def plot_pipeline(table: pd.DataFrame) -> go.Figure:
    """A pipe for each quantity, as wide as what is left of it; it narrows in the columns of the stages that act on it."""
    stages = list(table["stage"].unique())
    lanes = [name for name in QUANTITIES if name in set(table["quantity"])]
    figure = go.Figure()
    for lane, quantity in enumerate(lanes):
        _add_pipe(figure, -lane, stages, table[table["quantity"] == quantity].set_index("stage"))
    methods = table.drop_duplicates("stage").set_index("stage")["method"]
    words = [methods[stage].partition("(")[0].replace("_", "<br>") for stage in stages]
    bare = {"showgrid": False, "showline": False, "ticks": ""}
    figure.update_xaxes(
        tickvals=[i + 0.5 for i in range(-1, len(stages))],
        ticktext=["dense", *(f"<b>{stage}</b><br>{word}" for stage, word in zip(stages, words, strict=True))],
        side="top",
        tickangle=0,
        range=[-0.9, len(stages)],
        **bare,
    )
    figure.update_yaxes(
        tickvals=[-lane for lane in range(len(lanes))],
        ticktext=[QUANTITIES[quantity][2] for quantity in lanes],
        range=[-len(lanes) + 0.5, 0.5],
        **bare,
    )
    for i in range(len(stages)):
        figure.add_vline(i, line={"width": 1, "dash": "dot"})
    return figure.update_layout(height=_TOP + _LANE * len(lanes), showlegend=False, hovermode="closest")


def _add_pipe(figure: go.Figure, y: float, stages: list[str], own: pd.DataFrame) -> None:
    dense = float(own["before"].iloc[0])
    full = max(1.0, float(own["left"].max()))
    at = 1.0 / full
    x, share = [-0.9], [at]
    for i, stage in enumerate(stages):
        if stage in own.index:
            x += [i + _BODY[0], i + _BODY[1]]
            share += [at, at := float(own.loc[stage, "left"]) / full]
    x, share = [*x, float(len(stages))], [*share, at]
    band = [y + 0.38 * s for s in share] + [y - 0.38 * s for s in reversed(share)]
    ghost = [y + 0.38 / full] * 2 + [y - 0.38 / full] * 2
    filled = {"mode": "lines", "fill": "toself", "hoverinfo": "skip"}
    pale = f"rgba{(*GREY, 2 * PALE)}"
    ends = [-0.9, len(stages), len(stages), -0.9]
    figure.add_scatter(x=ends, y=ghost, fillcolor=pale, line={"width": 0, "color": pale}, **filled)
    line = {"width": 1, "color": BLUE, "simplify": False}
    figure.add_scatter(x=[*x, *reversed(x)], y=band, fillcolor="rgba(0,114,178,0.40)", line=line, **filled)
    acting = [stage for stage in stages if stage in own.index]
    rows = [own.loc[stage] for stage in acting]
    told = [
        f"{plain(row.method)}<br>{short(row.before)} → {short(row.after)} {row.unit}, {row.left:.1%} of dense"
        for row in rows
    ]
    figure.add_scatter(
        x=[-0.5, *(stages.index(stage) + (1 + _BODY[1]) / 2 for stage in acting)],
        y=[y] * (1 + len(acting)),
        mode="text",
        text=[short(dense), *(short(row.after) for row in rows)],
        hovertext=["the dense model", *told],
        hovertemplate="%{hovertext}<extra></extra>",
    )


def short(value: float) -> str:
    """A quantity in three digits, or in whole ones."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"

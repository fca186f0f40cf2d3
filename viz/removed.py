"""What became of the causal pairs of a query and a key: read, or removed by which stage."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from sparsity_core.record import Trace, removed_pairs
from sparsity_core.work import Progress, silent
from viz.fates import FATES, choices_kept, stage_names
from viz.looks import BLUE, NEUTRAL, ORANGE, SKY, VERMILLION

READ = "read"
# By stage: what it is called here, its colour, and the pattern that tells it without one.
_LOOKS = {
    READ: ("read", BLUE, ""),
    "gate": ("gate", ORANGE, "-"),
    "prefill": ("prefill", VERMILLION, "/"),
    "eviction": ("eviction", NEUTRAL, ""),
    "decode": ("not read by decode", SKY, "."),
}


def removed_table(trace: Trace, progress: Progress = silent) -> pd.DataFrame:
    """One row per layer and fate: layer, stage ("read", or the first stage that removed the pair), pairs, share.

    Of the causal pairs of a query and a key, over the KV heads of a layer; the shares of a layer add up to one. Raises
    ValueError where the choices of a decode stage were not kept.
    """
    if not choices_kept(trace):
        raise ValueError("which keys the decode stage read was not kept of so long a text: choose a shorter one")
    stages = [READ, *stage_names(trace)[1:]]
    rows = []
    for layer in range(trace.n_layers):
        progress(layer / trace.n_layers, f"pairs of layer {layer + 1} of {trace.n_layers}")
        pairs = removed_pairs(trace, layer)
        rows += [
            (layer, stage, int(n), float(n / pairs.sum()))
            for stage, n in zip(stages, pairs, strict=True)
            if stage == READ or stage in FATES
        ]
    return pd.DataFrame(rows, columns=["layer", "stage", "pairs", "share"])


def plot_removed(table: pd.DataFrame) -> go.Figure:
    """A column per layer, of the shares of its pairs, from what is read upwards; each name says its share of all layers."""
    figure = go.Figure()
    whole = table["pairs"].sum()
    for stage, own in table.groupby("stage", sort=False):
        name, colour, pattern = _LOOKS[str(stage)]
        share = own["pairs"].sum() / whole
        figure.add_bar(
            x=own["layer"],
            y=own["share"],
            name=f"{name} {share:.1%}",
            marker={"color": colour, "pattern": {"shape": pattern, "size": 5, "solidity": 0.3, "fillmode": "overlay"}},
            hovertemplate=f"layer %{{x}}: {name} %{{y:.1%}}<extra></extra>",
        )
    figure.update_xaxes(title="layer")
    figure.update_yaxes(title="share of causal pairs", tickformat=".0%", range=[0, 1])
    return figure.update_layout(
        barmode="stack", bargap=0.15, height=300, showlegend=True, legend={"traceorder": "normal"}
    )

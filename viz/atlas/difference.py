"""Where two pipelines part: tokens that one has dropped and the other still keeps."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sparsity_core.record import Trace
from viz.maps import FIRST_AXIS, GREY, height, named_columns, swatch
from viz.text import plain

_A_ONLY, _B_ONLY, _BOTH = 1, 2, 3


def difference_table(a: Trace, b: Trace, head: int | str = "first", step: int | None = None) -> pd.DataFrame:
    """One row per layer and token of two traces of one text: who has dropped it after `step`.

    `dropped_by` is "neither", "A only", "B only" or "both". Raises ValueError where the texts differ; where generation
    parted ways, only the common beginning is compared.
    """
    n = common_length(a, b)
    if n == 0 or a.n_layers != b.n_layers:
        raise ValueError("A and B do not share a text and a model: run both on the same prompt to compare them")
    step = n - 1 if step is None else min(step, n - 1)
    in_a = a.dropped_at(head if head in ("first", "last") else min(int(head), a.n_kv_heads - 1))[:, :n] <= step
    in_b = b.dropped_at(head if head in ("first", "last") else min(int(head), b.n_kv_heads - 1))[:, :n] <= step
    code = in_a * _A_ONLY + in_b * _B_ONLY
    return pd.DataFrame(
        {
            "layer": np.repeat(np.arange(a.n_layers), n),
            "position": np.tile(np.arange(n), a.n_layers),
            "token": np.tile(np.asarray(a.tokens[:n], dtype=object), a.n_layers),
            "dropped_by": np.asarray(["neither", "A only", "B only", "both"], dtype=object)[code.ravel()],
        }
    )


def common_length(a: Trace, b: Trace) -> int:
    """Leading tokens that two traces share."""
    n = min(a.n_tokens, b.n_tokens)
    different = np.flatnonzero(a.token_ids[:n] != b.token_ids[:n])
    return int(different[0]) if different.size else n


def agreement(table: pd.DataFrame) -> pd.Series:
    """Jaccard index of the two dropped sets by layer: 1 where both dropped the same tokens, or none."""
    either = (table["dropped_by"] != "neither").groupby(table["layer"]).sum()
    both = (table["dropped_by"] == "both").groupby(table["layer"]).sum()
    return (both / either).fillna(1.0).rename("jaccard")


def plot_difference(table: pd.DataFrame, colours: tuple[str, str], names: tuple[str, str] = ("A", "B")) -> go.Figure:
    """Contested tokens: cells that one pipeline alone has dropped, in its colour. `names` are those of A and B."""
    layers, positions = np.unique(table["layer"]), np.unique(table["position"])
    code = table["dropped_by"].map({"neither": np.nan, "both": 0.0, "A only": 1.0, "B only": 2.0})
    z = code.to_numpy(np.float32).reshape(len(layers), len(positions))
    both, (a, b) = f"rgba{(*GREY, 0.28)}", colours
    scale = [[0, both], [1 / 3, both], [1 / 3, a], [2 / 3, a], [2 / 3, b], [1, b]]
    contested = go.Heatmap(
        z=z,
        x=positions,
        y=layers,
        xaxis="x2",
        zmin=-0.5,
        zmax=2.5,
        colorscale=scale,
        showscale=False,
        hovertemplate="layer %{y}, token %{x}<extra></extra>",
    )
    first, second = map(plain, names)
    keys = {f"dropped by {first} only": a, f"by {second} only": b, "by both": both, "by neither": "rgba(0,0,0,0)"}
    layout = {
        "height": height(len(layers)),
        "xaxis": {"title": {"text": "token position"}, "range": [positions[0] - 0.5, positions[-1] + 0.5]},
        "xaxis2": named_columns(positions, table["token"].to_numpy()[: len(positions)]),
        "yaxis": {"title": {"text": "layer"}, "range": [layers[0] - 0.5, layers[-1] + 0.5], "showgrid": False},
        "showlegend": True,
    }
    return go.Figure([FIRST_AXIS, contested, *(swatch(name, colour) for name, colour in keys.items())], layout)

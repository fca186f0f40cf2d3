"""Contested tokens of many pipelines: how many of them have removed each token, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sparsity_core.record import Trace
from viz.atlas import common_length
from viz.fates import removed_by
from viz.looks import SEQUENTIAL
from viz.maps import FIRST_AXIS, height, marks, named_columns


def contested_table(traces: Mapping[str, Trace], head: int | str = "first", step: int | None = None) -> pd.DataFrame:
    """One row per layer and token of the beginning that all texts share: layer, position, token, removed (by how many of
    the pipelines), by (their letters), contested (by some of them and not by all).

    Raises ValueError where the texts have no token in common, or the models differ in layers.
    """
    first, *others = traces.values()
    n = min((common_length(first, other) for other in others), default=first.n_tokens)
    if n == 0 or any(other.n_layers != first.n_layers for other in others):
        raise ValueError("these runs do not share a text and a model: run all on the same prompt to compare them")
    last = n - 1 if step is None else min(step, n - 1)
    n = last + 1
    own = [h if isinstance(h := head, str) else min(h, t.n_kv_heads - 1) for t in traces.values()]
    gone = np.stack([removed_by(t, last, h)[:, :n] != "" for t, h in zip(traces.values(), own, strict=True)])
    letters = [name.partition(":")[0] for name in traces]
    names = np.asarray(
        ["".join(x for x, inside in zip(letters, bits, strict=True) if inside) for bits in _subsets(len(letters))]
    )
    code = (gone * (1 << np.arange(len(letters)))[:, None, None]).sum(0)
    removed = gone.sum(0)
    return pd.DataFrame(
        {
            "layer": np.repeat(np.arange(first.n_layers), n),
            "position": np.tile(np.arange(n), first.n_layers),
            "token": np.tile(np.asarray(first.tokens[:n], dtype=object), first.n_layers),
            "removed": removed.ravel(),
            "by": names[code.ravel()],
            "contested": ((removed > 0) & (removed < len(letters))).ravel(),
        }
    )


def _subsets(n: int) -> list[list[bool]]:
    return [[bool(code >> at & 1) for at in range(n)] for code in range(1 << n)]


def plot_contested(table: pd.DataFrame, pipelines: int, selected: tuple[int, int] | None = None) -> go.Figure:
    """A cell per layer and token, its colour how many pipelines removed the token; empty where all decide the same."""
    layers, positions = np.unique(table["layer"]), np.unique(table["position"])
    shape = (len(layers), len(positions))
    drawn = np.where(table["contested"], table["removed"], np.nan).astype(np.float32).reshape(shape)
    cells = go.Heatmap(
        z=drawn,
        x=positions,
        y=layers,
        xaxis="x2",
        customdata=table["by"].to_numpy().reshape(shape),
        zmin=1,
        zmax=max(2, pipelines - 1),
        colorscale=SEQUENTIAL,
        colorbar={"title": {"text": "removed by"}, "dtick": 1},
        hovertemplate="layer %{y}, token %{x}<br>removed by %{customdata}<extra></extra>",
    )
    shapes, notes = marks(selected, positions)
    layout = {
        "height": height(len(layers)),
        "xaxis": {"title": {"text": "token position"}, "range": [positions[0] - 0.5, positions[-1] + 0.5]},
        "xaxis2": named_columns(positions, table["token"].to_numpy()[: len(positions)]),
        "yaxis": {"title": {"text": "layer"}, "range": [layers[0] - 0.5, layers[-1] + 0.5], "showgrid": False},
        "shapes": shapes,
        "annotations": notes,
        "showlegend": False,
    }
    return go.Figure([FIRST_AXIS, cells], layout)

"""Which token each layer dropped, and when: layer × token, as it stands after any step."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from PIL import Image
from plotly.colors import sample_colorscale

from sparsity_core.record import Trace
from viz.chosen import CHOSEN
from viz.looks import SEQUENTIAL
from viz.maps import ABOVE, FIRST_AXIS, GREY, MARGIN, PALE, height, marks, named_columns

_MOST_CELLS = 1_000_000


def atlas_table(
    trace: Trace, head: int | str = "first", step: int | None = None, window: tuple[int, int] | None = None
) -> pd.DataFrame:
    """One row per layer and token: position, token, layer, dropped_in (the step that dropped it; NaN while kept).

    `head` is a KV head, or "first"/"last" for the first or last head to drop a token. Drops after `step` are not yet
    made. `window` [a, b) leaves out the other tokens.
    """
    first, last = window or (0, trace.n_tokens)
    step = trace.n_tokens - 1 if step is None else step
    evicted_at = trace.dropped_at(head)[:, first:last].astype(np.float32)
    positions = np.arange(first, last)
    dropped = (evicted_at <= step) & (evicted_at < trace.n_tokens)
    layers = np.repeat(np.arange(trace.n_layers), last - first)
    return pd.DataFrame(
        {
            "layer": layers,
            "position": np.tile(positions, trace.n_layers),
            "token": np.tile(np.asarray(trace.tokens[first:last], dtype=object), trace.n_layers),
            "dropped_in": np.where(dropped, trace.dropped_in(head)[:, first:last], np.nan).ravel(),
            "seen": np.tile(positions <= step, trace.n_layers),
        }
    )


def plot_atlas(
    table: pd.DataFrame,
    *,
    n_prompt: int | None = None,
    step: int | None = None,
    selected: tuple[int, int] | None = None,
    latest: int | None = None,
) -> go.Figure:
    """The atlas as a heatmap: a filled cell is a dropped token, its colour the step; an empty one is still cached.

    `selected` is (layer, position). `latest` fixes the colour scale's end so that two atlases share it.
    """
    layers, positions = np.unique(table["layer"]), np.unique(table["position"])
    shape = (len(layers), len(positions))
    if shape[0] * shape[1] > _MOST_CELLS:
        raise ValueError(f"{shape[0]} × {shape[1]} cells are too many to draw: pool them, or choose a window")
    z = table["dropped_in"].to_numpy(np.float32).reshape(shape)
    seen = table["seen"].to_numpy().reshape(shape)
    drawn = [FIRST_AXIS, *_fates(z, seen, positions, layers, float(latest or max(1, positions[-1])))]
    shapes, notes = [], []
    if n_prompt is not None and positions[0] < n_prompt <= positions[-1]:
        shapes.append(_line(n_prompt - 0.5, width=1, dash="dot"))
        notes.append({**ABOVE, "x": n_prompt - 0.5, "xanchor": "left", "text": "generated →"})
    if step is not None and step < positions[-1]:
        shapes.append({"name": CHOSEN, **_line(step + 0.5, width=1.5)})
    rows, tips = marks(selected, positions)
    layout = {  # at once: Plotly checks all of it again for each part that is set
        "height": height(shape[0]),
        "margin": {**MARGIN, "autoexpand": False},
        "dragmode": "zoom",
        "hoverdistance": -1,
        "showlegend": False,
        "xaxis": {"title": {"text": "token position"}, "range": [positions[0] - 0.5, positions[-1] + 0.5]},
        "xaxis2": named_columns(positions, table["token"].to_numpy()[: shape[1]]),
        "yaxis": {"title": {"text": "layer"}, "range": [layers[0] - 0.5, layers[-1] + 0.5], "showgrid": False},
        "shapes": [*shapes, *rows],
        "annotations": [*notes, *tips],
    }
    return go.Figure(drawn, layout)


def _fates(z: np.ndarray, seen: np.ndarray, positions: np.ndarray, layers: np.ndarray, end: float) -> list[go.Heatmap]:
    """One heatmap for each fate, which is empty elsewhere and leaves the pointer there to the others."""
    kept, unread = (np.where(where, 0, np.nan).astype(np.float32) for where in (seen & np.isnan(z), ~seen))
    bar = {"zmin": 0, "zmax": end, "colorscale": SEQUENTIAL, "colorbar": {"title": {"text": "dropped at step"}}}
    fates: list[tuple[str, np.ndarray, str, dict[str, Any]]] = [
        ("kept", kept, "in the cache", _one_colour(f"rgba{(*GREY, PALE)}")),
        ("unread", unread, "not read yet", _one_colour("rgba(0,0,0,0)")),
        ("dropped", z, "dropped at step %{z:d}", bar),
    ]
    return [
        go.Heatmap(
            name=name,
            z=cells,
            x=positions,
            y=layers,
            xaxis="x2",
            hoverongaps=False,
            hovertemplate=f"layer %{{y}}, token %{{x}}<br>{fate}<extra></extra>",
            **looks,
        )
        for name, cells, fate, looks in fates
        if name != "unread" or not seen.all()
    ]


def cells_png(table: pd.DataFrame, latest: int) -> bytes:
    """The cells of `plot_atlas` alone, a pixel each, as a PNG: what a page can show while Plotly is being loaded."""
    shape = table["layer"].nunique(), table["position"].nunique()
    step = table["dropped_in"].to_numpy().reshape(shape)
    kept = table["seen"].to_numpy().reshape(shape) & np.isnan(step)
    colours = np.asarray(sample_colorscale(SEQUENTIAL, 256, colortype="tuple"))
    pixels = np.zeros((*shape, 4))  # nothing where a token is not read yet
    pixels[kept] = (*GREY, 255 * PALE)
    gone = ~np.isnan(step)
    pixels[gone, :3] = 255 * colours[np.round(255 * step[gone] / latest).astype(int)]
    pixels[gone, 3] = 255
    file = BytesIO()
    Image.fromarray(pixels[::-1].astype(np.uint8), "RGBA").save(file, "PNG")  # layer 0 is below
    return file.getvalue()


def _line(x: float, **look: Any) -> dict[str, Any]:
    return {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "y domain", "line": look}


def _one_colour(colour: str) -> dict[str, Any]:
    return {"zmin": 0, "zmax": 1, "colorscale": [[0, colour], [1, colour]], "showscale": False}

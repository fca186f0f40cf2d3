"""Which token each layer dropped, and when: layer × token, as it stands after any step."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from PIL import Image
from plotly.colors import sample_colorscale

from sparsity_core.record import Trace
from viz.theme import SEQUENTIAL, plain

FIRST_AXIS = go.Scatter(x=[None], y=[None], hoverinfo="skip", showlegend=False)  # an axis without a trace is not drawn
MARGIN = {"l": 56, "r": 96, "t": 40, "b": 52}  # px around the atlas's cells; measured by Plotly it would be drawn twice

_MOST_CELLS = 1_000_000
_ABOVE = {"y": 1, "yref": "paper", "yanchor": "bottom", "showarrow": False}
_GREY, _PALE = (128, 136, 150), 0.10  # of a token in the cache
_A_ONLY, _B_ONLY, _BOTH = 1, 2, 3


def height(n_layers: int) -> int:
    """Of a map of layers by tokens, in px."""
    return 150 + 10 * n_layers


def atlas_table(
    trace: Trace, head: int | str = "first", step: int | None = None, window: tuple[int, int] | None = None
) -> pd.DataFrame:
    """One row per layer and token: position, token, layer, dropped_at (the step that dropped it; NaN while kept).

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
            "dropped_at": np.where(dropped, trace.dropped_in(head)[:, first:last], np.nan).ravel(),
            "seen": np.tile(positions <= step, trace.n_layers),
        }
    )


def pooled_table(table: pd.DataFrame, most_columns: int = 1024) -> pd.DataFrame:
    """The atlas of a long text in at most `most_columns` bins of tokens: the share dropped (mean) and the earliest drop."""
    n = int(table["position"].max() - table["position"].min()) + 1
    width = -(-n // most_columns)
    bins = (table["position"] - table["position"].min()) // width
    grouped = table.assign(bin=bins, dropped=table["dropped_at"].notna()).groupby(["layer", "bin"], sort=True)
    out = grouped.agg(position=("position", "min"), share=("dropped", "mean"), dropped_at=("dropped_at", "min"))
    return out.reset_index().drop(columns="bin")


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
    z = table["dropped_at"].to_numpy(np.float32).reshape(shape)
    seen = table["seen"].to_numpy().reshape(shape)
    kept, unread = (np.where(where, 0, np.nan).astype(np.float32) for where in (seen & np.isnan(z), ~seen))
    end = float(latest if latest is not None else max(1, positions[-1]))
    # One heatmap for each fate, which is empty elsewhere and leaves the pointer there to the others.
    fates: list[tuple[str, np.ndarray, str, dict[str, Any]]] = [
        ("kept", kept, "in the cache", _one_colour(f"rgba{(*_GREY, _PALE)}")),
        ("unread", unread, "not read yet", _one_colour("rgba(0,0,0,0)")),
        (
            "dropped",
            z,
            "dropped at step %{z:d}",
            {"zmin": 0, "zmax": end, "colorscale": SEQUENTIAL, "colorbar": {"title": {"text": "dropped at step"}}},
        ),
    ]
    drawn = [
        FIRST_AXIS,
        *(
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
        ),
    ]
    shapes, notes = [], []
    if n_prompt is not None and positions[0] < n_prompt <= positions[-1]:
        shapes.append(_line(n_prompt - 0.5, width=1, dash="dot"))
        notes.append({**_ABOVE, "x": n_prompt - 0.5, "xanchor": "left", "text": "generated →"})
    if step is not None and step < positions[-1]:
        shapes.append(_line(step + 0.5, width=1.5))
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


def cells_png(table: pd.DataFrame, latest: int) -> bytes:
    """The cells of `plot_atlas` alone, a pixel each, as a PNG: what a page can show while Plotly is being loaded."""
    shape = table["layer"].nunique(), table["position"].nunique()
    step = table["dropped_at"].to_numpy().reshape(shape)
    kept = table["seen"].to_numpy().reshape(shape) & np.isnan(step)
    colours = np.asarray(sample_colorscale(SEQUENTIAL, 256, colortype="tuple"))
    pixels = np.zeros((*shape, 4))  # nothing where a token is not read yet
    pixels[kept] = (*_GREY, 255 * _PALE)
    gone = ~np.isnan(step)
    pixels[gone, :3] = 255 * colours[np.round(255 * step[gone] / latest).astype(int)]
    pixels[gone, 3] = 255
    file = BytesIO()
    Image.fromarray(pixels[::-1].astype(np.uint8), "RGBA").save(file, "PNG")  # layer 0 is below
    return file.getvalue()


def marks(selected: tuple[int, int] | None, positions: np.ndarray) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(shapes, annotations) of the chosen (layer, position) in a map of layers by tokens: the row's frame, a tip above."""
    if selected is None:
        return [], []
    layer, position = selected
    row = {"x0": positions[0] - 0.5, "x1": positions[-1] + 0.5, "y0": layer - 0.5, "y1": layer + 0.5}
    tip = {**_ABOVE, "x": position, "xanchor": "center", "text": "▼", "borderpad": 0}
    frame = {"type": "rect", **row, "line": {"width": 1.5}}
    return [frame], [tip] if positions[0] <= position <= positions[-1] else []


def named_columns(positions: np.ndarray, tokens: Sequence[str]) -> dict[str, Any]:
    """A hidden axis on which `%{x}` in a hover text says position and token: 12 “the”. For maps of layers by tokens.

    Its labels hold each token once; as the text of every cell they would be most of the figure. Use it as "x2", beside
    `FIRST_AXIS`.
    """
    return {
        "overlaying": "x",
        "matches": "x",
        "tickmode": "array",
        "tickvals": positions,
        "ticktext": [f"{position} “{plain(token)}”" for position, token in zip(positions, tokens, strict=True)],
        "showticklabels": False,
        "ticks": "",
        "showline": False,
        "showgrid": False,
    }


def _line(x: float, **look: Any) -> dict[str, Any]:
    return {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "y domain", "line": look}


def _one_colour(colour: str) -> dict[str, Any]:
    return {"zmin": 0, "zmax": 1, "colorscale": [[0, colour], [1, colour]], "showscale": False}


def plot_overview(pooled: pd.DataFrame, window: tuple[int, int]) -> go.Figure:
    """Share of tokens dropped per bin of a long text, with the window that the atlas below shows."""
    layers, positions = np.unique(pooled["layer"]), np.unique(pooled["position"])
    width = positions[1] - positions[0] if len(positions) > 1 else 1
    figure = go.Figure(
        go.Heatmap(
            z=pooled["share"].to_numpy(np.float32).reshape(len(layers), len(positions)),
            x=positions + (width - 1) / 2,  # a bin begins at its position, a cell is centred on its x
            y=layers,
            zmin=0,
            zmax=1,
            colorscale=SEQUENTIAL,
            colorbar={"title": {"text": "share dropped"}},
            hovertemplate="layer %{y}, around token %{x:.0f}<br>%{z:.0%} dropped<extra></extra>",
        )
    )
    figure.add_vrect(window[0] - 0.5, window[1] - 0.5, line={"width": 1.5}, fillcolor="rgba(255,255,255,0.25)")
    figure.update_xaxes(title="token position")
    figure.update_yaxes(title="layer", showgrid=False)
    return figure.update_layout(height=190)


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


def plot_difference(table: pd.DataFrame, colours: tuple[str, str]) -> go.Figure:
    """Contested tokens: cells that only A, or only B, has dropped. Cells on which both agree are faint or empty."""
    layers, positions = np.unique(table["layer"]), np.unique(table["position"])
    code = table["dropped_by"].map({"neither": np.nan, "both": 0.0, "A only": 1.0, "B only": 2.0})
    z = code.to_numpy(np.float32).reshape(len(layers), len(positions))
    both, (a, b) = f"rgba{(*_GREY, 0.28)}", colours
    scale = [[0, both], [1 / 3, both], [1 / 3, a], [2 / 3, a], [2 / 3, b], [1, b]]
    contested = go.Heatmap(
        z=z,
        x=positions,
        y=layers,
        xaxis="x2",
        zmin=-0.5,
        zmax=2.5,
        colorscale=scale,
        colorbar={
            "title": {"text": "dropped by", "side": "top"},
            "tickvals": [0, 1, 2],
            "ticktext": ["both", "A only", "B only"],
        },
        hovertemplate="layer %{y}, token %{x}<extra></extra>",
    )
    layout = {
        "height": height(len(layers)),
        "xaxis": {"title": {"text": "token position"}},
        "xaxis2": named_columns(positions, table["token"].to_numpy()[: len(positions)]),
        "yaxis": {"title": {"text": "layer"}, "showgrid": False},
    }
    return go.Figure([FIRST_AXIS, contested], layout)

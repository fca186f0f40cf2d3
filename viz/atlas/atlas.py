"""Which token each layer dropped, and when: layer × token, as it stands after any step."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from PIL import Image, ImageColor
from plotly.colors import sample_colorscale

from sparsity_core.record import Trace
from viz.chosen import CHOSEN
from viz.fates import FATES, FOR_GOOD, ROWS, removed_by
from viz.looks import SEQUENTIAL
from viz.maps import ABOVE, FIRST_AXIS, GREY, MARGIN, PALE, height, marks, named_columns

_MOST_CELLS = 1_000_000
_KEY = 44  # px of the key to the shapes of several stages: two lines where it is narrow
_CLEAR = "rgba(0,0,0,0)"


def atlas_table(
    trace: Trace, head: int | str = "first", step: int | None = None, window: tuple[int, int] | None = None
) -> pd.DataFrame:
    """One row per layer and token: position, token, layer, dropped_in (the step that dropped it for good; NaN while kept),
    removed_by (the stage that removed it from the query at `step`; "" where the query reads it), seen.

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
            "removed_by": removed_by(trace, step, head)[:, first:last].ravel(),
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
    stages: Sequence[str] = (),
) -> go.Figure:
    """The atlas as a heatmap: a filled cell is a dropped token, its colour the step; an empty one is still cached.

    `selected` is (layer, position). `latest` fixes the colour scale's end so that two atlases share it. `stages` are those
    that can remove a token: where they are several, the shape of what fills a cell tells which one did.
    """
    layers, positions = np.unique(table["layer"]), np.unique(table["position"])
    shape = (len(layers), len(positions))
    if shape[0] * shape[1] > _MOST_CELLS:
        raise ValueError(f"{shape[0]} × {shape[1]} cells are too many to draw: pool them, or choose a window")
    cells = _Cells.of(table, shape)
    drawn = [FIRST_AXIS, *_fates(cells, stages, positions, layers, float(latest or max(1, positions[-1])))]
    shapes, notes = [], []
    if n_prompt is not None and positions[0] < n_prompt <= positions[-1]:
        shapes.append(_line(n_prompt - 0.5, width=1, dash="dot"))
        notes.append({**ABOVE, "x": n_prompt - 0.5, "xanchor": "left", "text": "generated →"})
    if step is not None and step < positions[-1]:
        shapes.append({"name": CHOSEN, **_line(step + 0.5, width=1.5)})
    rows, tips = marks(selected, positions)
    tall, around = atlas_height(shape[0], stages), atlas_margin(stages)
    layout = {  # at once: Plotly checks all of it again for each part that is set
        "height": tall,
        "margin": {**around, "autoexpand": False},
        "dragmode": "zoom",
        "hoverdistance": -1,
        "showlegend": _several(stages),
        "legend": {"y": 1 + MARGIN["t"] / (tall - around["t"] - around["b"]), "yanchor": "bottom"},  # above the marks
        "xaxis": {"title": {"text": "token position"}, "range": [positions[0] - 0.5, positions[-1] + 0.5]},
        "xaxis2": named_columns(positions, table["token"].to_numpy()[: shape[1]]),
        "yaxis": {"title": {"text": "layer"}, "range": [layers[0] - 0.5, layers[-1] + 0.5], "showgrid": False},
        "shapes": [*shapes, *rows],
        "annotations": [*notes, *tips],
    }
    return go.Figure([*drawn, *(_key(stage) for stage in stages if _several(stages))], layout)


def atlas_height(n_layers: int, stages: Sequence[str] = ()) -> int:
    """Of an atlas, in px."""
    return height(n_layers) + (_KEY if _several(stages) else 0)


def atlas_margin(stages: Sequence[str] = ()) -> dict[str, int]:
    """Around an atlas's cells, in px: with room for the key to several stages."""
    return {**MARGIN, "t": MARGIN["t"] + (_KEY if _several(stages) else 0)}


def _several(stages: Sequence[str]) -> bool:
    """Whether a cell must tell which stage removed its token: a gate alone, or an eviction alone, fills it."""
    return len(stages) > 1 or not set(stages) <= set(FOR_GOOD)


class _Cells(NamedTuple):
    """An atlas's columns as arrays [layer, token]."""

    dropped_in: np.ndarray  # float32
    by: np.ndarray  # the stage that removed it; ""
    seen: np.ndarray

    @classmethod
    def of(cls, table: pd.DataFrame, shape: tuple[int, int]) -> _Cells:
        z, by, seen = (table[name].to_numpy().reshape(shape) for name in ("dropped_in", "removed_by", "seen"))
        return cls(z.astype(np.float32), by, seen)

    @property
    def kept(self) -> np.ndarray:
        return self.seen & (self.by == "")

    def shaped(self, stages: Sequence[str]) -> np.ndarray:
        """bool [layer · ROWS, token]: where a cell is filled by one of these stages, each in its shape."""
        found = np.zeros((self.by.shape[0], ROWS, self.by.shape[1]), bool)
        for stage in stages:
            for row in FATES[stage].rows:
                found[:, row] |= self.by == stage
        return found.reshape(-1, self.by.shape[1])


def _fates(
    cells: _Cells, stages: Sequence[str], positions: np.ndarray, layers: np.ndarray, end: float
) -> list[go.Heatmap]:
    """One heatmap for each fate, which is empty elsewhere and leaves the pointer there to the others."""
    bar = {"zmin": 0, "zmax": end, "colorscale": SEQUENTIAL, "colorbar": {"title": {"text": "dropped at step"}}}
    fates: list[tuple[str, np.ndarray, str, dict[str, Any]]] = [
        ("kept", _where(cells.kept), "in the cache", _one_colour(f"rgba{(*GREY, PALE)}")),
        ("unread", _where(~cells.seen), "not read yet", _one_colour(_CLEAR)),
    ]
    drawn: list[go.Heatmap] = []
    if _several(stages):
        fine = (layers[:, None] + (np.arange(ROWS) - ROWS // 2) / ROWS).ravel()
        steps = np.where(cells.shaped(FOR_GOOD), np.repeat(cells.dropped_in, ROWS, 0), np.nan)
        looks = [("dropped", steps, bar)]
        looks += [(s, _where(cells.shaped([s])), _one_colour(FATES[s].colour)) for s in stages if s not in FOR_GOOD]
        place = {"x": positions, "y": fine, "xaxis": "x2", "hoverinfo": "skip"}
        drawn = [go.Heatmap(name=name, z=z, **place, **look) for name, z, look in looks]
        for stage in stages:  # what answers the pointer, over all of a cell
            z = np.where(cells.by == stage, cells.dropped_in if stage in FOR_GOOD else 0, np.nan)
            told = FATES[stage].told + (" at step %{z:d}" if stage in FOR_GOOD else "")
            fates.append((f"{stage} told", z, told, _one_colour(_CLEAR)))
    else:
        fates.append(("dropped", cells.dropped_in, "dropped at step %{z:d}", bar))
    return drawn + [
        go.Heatmap(
            name=name,
            z=z.astype(np.float32),
            x=positions,
            y=layers,
            xaxis="x2",
            hoverongaps=False,
            hovertemplate=f"layer %{{y}}, token %{{x}}<br>{fate}<extra></extra>",
            **look,
        )
        for name, z, fate, look in fates
        if name != "unread" or not cells.seen.all()
    ]


def _key(stage: str) -> go.Scatter:
    """The legend's entry for the shape of a stage."""
    fate = FATES[stage]
    colour = fate.colour or f"rgb{GREY}"
    marker = {"symbol": fate.symbol, "size": 11, "color": colour, "line": {"width": fate.width, "color": colour}}
    return go.Scatter(x=[None], y=[None], mode="markers", name=fate.key, marker=marker, hoverinfo="skip")


def cells_png(table: pd.DataFrame, latest: int, stages: Sequence[str] = ()) -> bytes:
    """The cells of `plot_atlas` alone, a pixel each, as a PNG: what a page can show while Plotly is being loaded.

    Where several stages have shapes, a cell is a column of `ROWS` pixels.
    """
    cells = _Cells.of(table, (table["layer"].nunique(), table["position"].nunique()))
    down = ROWS if _several(stages) else 1
    step = np.repeat(cells.dropped_in, down, 0)
    gone = cells.shaped(FOR_GOOD) if down > 1 else ~np.isnan(step)
    colours = np.asarray(sample_colorscale(SEQUENTIAL, 256, colortype="tuple"))
    pixels = np.zeros((*step.shape, 4))  # nothing where a token is not read yet
    pixels[np.repeat(cells.kept, down, 0)] = (*GREY, 255 * PALE)
    pixels[gone, :3] = 255 * colours[np.round(255 * step[gone] / latest).astype(int)]
    pixels[gone, 3] = 255
    for stage in set(stages) - set(FOR_GOOD):
        pixels[cells.shaped([stage])] = (*ImageColor.getrgb(str(FATES[stage].colour)), 255)
    file = BytesIO()
    Image.fromarray(pixels[::-1].astype(np.uint8), "RGBA").save(file, "PNG")  # layer 0 is below
    return file.getvalue()


def _where(cells: np.ndarray) -> np.ndarray:
    return np.where(cells, 0, np.nan).astype(np.float32)


def _line(x: float, **look: Any) -> dict[str, Any]:
    return {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "y domain", "line": look}


def _one_colour(colour: str | None) -> dict[str, Any]:
    return {"zmin": 0, "zmax": 1, "colorscale": [[0, colour], [1, colour]], "showscale": False}

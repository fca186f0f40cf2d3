"""How far every layer's spectra moved."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sparsity_core.studies import WeightStudy
from viz.chosen import CHOSEN
from viz.looks import SEQUENTIAL
from viz.spectra.names import DISTANCES
from viz.text import plain


def distance_table(study: WeightStudy) -> pd.DataFrame:
    """One row per layer and matrix: every measure of the study, and the share of the layer's neurons that is cut."""
    layers, matrices = study.measures.shape[:2]
    cut = 1.0 - study.kept.mean(axis=1)
    table = pd.DataFrame(
        {
            "layer": np.repeat(np.arange(layers), matrices),
            "matrix": np.tile(np.asarray(study.matrices, dtype=object), layers),
            "cut": np.repeat(cut, matrices),
        }
    )
    for name in ("ks", "ks_at", "scaled_ks", "wasserstein", "energy_lost"):
        table[name] = study.measure(name).ravel()
    return table


def plot_distances(
    table: pd.DataFrame, measure: str = "ks", selected: tuple[int, str] | None = None, most: float | None = None
) -> go.Figure:
    """A measure of every layer and matrix; `selected` is framed; `most` fixes the end of the colour scale."""
    layers, matrices = np.unique(table["layer"]), list(dict.fromkeys(table["matrix"]))
    names = [plain(matrix) for matrix in matrices]
    z = table[measure].to_numpy(np.float32).reshape(len(layers), len(matrices)).T
    figure = go.Figure(
        go.Heatmap(
            z=z,
            x=layers,
            y=np.arange(len(matrices)),
            customdata=np.tile(np.asarray(names, dtype=object)[:, None], (1, len(layers))),
            zmin=0,
            zmax=most or max(1e-6, float(np.nanmax(z))),
            colorscale=SEQUENTIAL,
            colorbar={"title": {"text": DISTANCES[measure]}},
            hovertemplate=f"layer %{{x}}, %{{customdata}}<br>{DISTANCES[measure]} %{{z:.4f}}<extra></extra>",
        )
    )
    if selected is not None:
        layer, matrix = selected
        row = matrices.index(matrix)
        for width, colour in ((4, "#FFFFFF"), (2, "#D55E00")):  # seen on any cell, whatever the theme
            figure.add_shape(
                name=CHOSEN,
                type="rect",
                x0=layer - 0.5,
                x1=layer + 0.5,
                y0=row - 0.5,
                y1=row + 0.5,
                line={"width": width, "color": colour},
            )
    figure.update_xaxes(title="layer", range=[layers[0] - 0.5, layers[-1] + 0.5], dtick=max(1, len(layers) // 15))
    figure.update_yaxes(
        tickvals=list(range(len(matrices))),
        ticktext=names,
        range=[len(matrices) - 0.5, -0.5],
        showgrid=False,
    )
    return figure.update_layout(height=110 + 44 * len(matrices), dragmode=False)

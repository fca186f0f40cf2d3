"""A table, figures and a browser to export with."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from tests.viz.paper.nasty import NASTY
from viz import paper
from viz.text import plain


@pytest.fixture
def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    n = len(NASTY)
    scores = rng.standard_normal(n) * 10.0 ** rng.integers(-300, 300, n)
    scores[:3] = [np.nan, np.inf, -np.inf]
    return pd.DataFrame(
        {
            "#token": NASTY,
            "position": np.arange(n),
            "score": scores,
            "attention": rng.random(n).astype(np.float32),
            "kept": rng.random(n) < 0.5,
            "layer": np.arange(n, dtype=np.uint8),
            "dropped by": pd.array([None, *range(1, n)], dtype="Int64"),
        }
    )


@pytest.fixture
def heatmap() -> go.Figure:
    z = np.arange(60, dtype=np.float32).reshape(5, 12)
    z[4, 6:] = np.nan
    figure = go.Figure(go.Heatmap(z=z, colorbar={"title": "mass"}))
    return figure.update_layout(
        title="On-screen title", xaxis_title="key", yaxis_title="layer", width=1400, height=900, paper_bgcolor="#111111"
    )


@pytest.fixture
def tokens() -> go.Figure:
    labels = [plain(text) for text in NASTY]
    return go.Figure(go.Bar(x=labels, y=np.arange(len(labels)), hovertext=labels, name=labels[0]))


@pytest.fixture
def browser() -> None:
    if not paper.can_render():
        pytest.skip("no Chromium or Chrome here: PDF, SVG and PNG exports are NOT tested")

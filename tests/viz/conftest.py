"""Plotly's default template as another package leaves it."""

from __future__ import annotations

from collections.abc import Iterator

import plotly.graph_objects as go
import plotly.io
import pytest


@pytest.fixture
def foreign_default() -> Iterator[None]:
    """Another default template, as `import streamlit` sets one."""
    before = plotly.io.templates.default
    plotly.io.templates["foreign"] = go.layout.Template(layout={"paper_bgcolor": "#010203", "font": {"size": 99}})
    plotly.io.templates.default = "foreign"
    yield
    plotly.io.templates.default = before
    del plotly.io.templates["foreign"]

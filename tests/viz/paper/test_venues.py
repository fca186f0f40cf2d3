"""Widths are those of the venues' style files, and JSON holds what is drawn."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from tests.viz.paper.nasty import PROVENANCE
from viz import paper


@pytest.mark.parametrize(
    ("venue", "one", "two"),
    [
        ("neurips", 5.5, 5.5),
        ("iclr", 5.5, 5.5),
        ("icml", 3.25, 6.75),  # 487.8225pt of TeX's 72.27 are 6.75 in
        ("acl", 7.7 / 2.54, 16 / 2.54),  # 21 cm less two margins of 2.5; the columns are .6 apart
        ("aaai", 3.3125, 7.0),
        ("cvpr", 236.25 / 72, 495 / 72),
    ],
)
def test_a_figure_is_as_wide_as_the_style_file_sets(venue: str, one: float, two: float) -> None:
    assert paper.venue_width(venue) == pytest.approx(one, abs=1e-9)
    assert paper.venue_width(venue, 2) == pytest.approx(two, abs=1e-9)


def test_other_venues_and_columns_are_refused_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match="no venue 'nature'; known are neurips, iclr"):
        paper.venue_width("nature")
    with pytest.raises(ValueError, match="1 or 2 columns; got 3"):
        paper.venue_width("icml", 3)


def test_every_preset_is_a_width_that_a_file_can_have_and_nothing_is_not() -> None:
    for venue in paper.VENUES:
        for columns in (1, 2):
            paper.check_size(paper.venue_width(venue, columns))
    for width in (0, -1, float("nan"), 41):
        with pytest.raises(ValueError, match=r"allowed is 0\.5 to 40 inches"):
            paper.check_size(width)


def test_json_is_what_is_drawn_and_no_more() -> None:
    z = np.array([[1.0, np.nan], [2.5, -3.0]], np.float32)
    figure = go.Figure([go.Heatmap(z=z), go.Scatter(x=[0], y=[1], opacity=0)]).update_layout(title="screen")
    table = pd.DataFrame({"token": ["a", "b"], "value": [1.0, np.inf], "by": pd.array([None, 3], dtype="Int64")})
    data = paper.export(figure, table, "json", PROVENANCE, width=3.25, height=2)
    found = json.loads(data, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    (heatmap,) = found["figure"]["data"]  # the layer that nobody sees is left out
    assert heatmap["z"] == [[1.0, None], [2.5, -3.0]]
    assert "title" not in found["figure"]["layout"]
    assert found["table"] == {"token": ["a", "b"], "value": [1.0, None], "by": [None, 3]}
    assert found["inches"] == {"width": 3.25, "height": 2}
    assert found["provenance"] == json.loads(PROVENANCE.to_json())
    assert data == paper.export(figure, table, "json", PROVENANCE, width=3.25, height=2)

"""What is chosen on a page is marked on the screen and left out of files, unless it is asked for."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
import pytest

from sparsity_core.record import Provenance
from tests.traces import trace
from tests.viz.gallery import plots
from viz import paper
from viz.chosen import CHOSEN, without_chosen
from viz.paper.formats import FORMATS

MARKED = ["plot_atlas", "plot_comparison", "plot_distances", "plot_interactions", "plot_links", "plot_loss"]
MARKED += ["plot_agreement", "plot_contested", "plot_judge_layers", "plot_kl"]
MARKED += ["plot_magnitudes", "plot_overview", "plot_scores", "plot_selected", "plot_similarity"]
MARKED += ["plot_along", "plot_haystack", "plot_hierarchy", "plot_pattern"]


def marks(figure: go.Figure) -> int:
    layout = [*figure.layout.shapes, *figure.layout.annotations]
    return sum(item.name == CHOSEN for item in layout) + sum(data.meta == CHOSEN for data in figure.data)


def test_a_file_has_no_mark_of_what_was_chosen_and_all_the_rest() -> None:
    for name, figure in plots(trace()).items():
        clean = without_chosen(figure)
        assert marks(clean) == 0
        assert (marks(figure) > 0) == (name in MARKED), name
        kept = [data.to_plotly_json() for data in figure.data if data.meta != CHOSEN]
        assert len(clean.data) == len(kept), name
        assert clean.layout.xaxis == figure.layout.xaxis, name


@pytest.mark.parametrize("chosen", [False, True])
def test_an_export_leaves_them_out_unless_asked(monkeypatch: pytest.MonkeyPatch, chosen: bool) -> None:
    html = paper.export(plots(trace())["plot_atlas"], pd.DataFrame(), "html", Provenance(caption="c"), chosen=chosen)
    assert ("▼" in html.decode() or "\\u25bc" in html.decode()) == chosen
    assert set(FORMATS) == {"pdf", "svg", "png", "html", "csv", "json"}

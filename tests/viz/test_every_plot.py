"""What holds for every plot: the theme, tokens that do nothing, and texts without drops or of one token."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from sparsity_core.record.trace import Trace
from tests.traces import HOSTILE, kept_all, trace
from tests.viz.figures import layer_named, same
from tests.viz.gallery import plots, plots_of_viz
from viz import atlas, cost, scores, strip
from viz.text import plain
from viz.theme import DARK, LIGHT, PAPER, style

ROOT = Path(__file__).parents[2]


def test_every_plot_of_viz_is_tried() -> None:
    assert set(plots_of_viz()) == set(plots(trace()))


def test_all_figures_are_found_without_torch() -> None:
    code = "import sys\nfrom viz.found import figures\nprint(len(figures()), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    count, heavy = done.stdout.split()
    assert int(count) > 30 and heavy == "False", "a server would wait seconds for it at the first script of a figure"


@pytest.mark.usefixtures("foreign_default")
@pytest.mark.parametrize(("theme", "template"), [("light", LIGHT), ("dark", DARK), ("paper", PAPER)])
def test_every_plot_wears_our_theme_and_nothing_of_plotlys_default(theme: Any, template: go.layout.Template) -> None:
    for name, figure in plots(trace()).items():
        styled = style(figure, theme)
        assert styled.layout.template == template, name
        assert "#010203" not in styled.to_json(), name
        assert _drawn(styled) == _drawn(figure), f"{name}: the theme changes looks, never data"


def _drawn(figure: go.Figure) -> list[Any]:
    return json.loads(figure.to_json())["data"]


def test_no_token_acts_in_any_plot_of_viz() -> None:
    """Tokens, and names of pipelines, matrices and settings, that a link may have brought."""
    acting = [token for token in HOSTILE if plain(token) != token]
    assert len(acting) == 5
    for name, figure in plots(trace(tokens=HOSTILE)).items():
        spec = json.loads(figure.to_json())
        texts = list(_texts(spec))
        for token in acting:
            assert not [text for text in texts if token in text], f"{name} shows {token} unescaped"


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


@pytest.mark.parametrize(
    "table",
    [
        lambda t: atlas.atlas_table(t),
        lambda t: atlas.difference_table(t, t),
        lambda t: strip.strip_table(t, 0),
        lambda t: scores.score_table(t, 0, 0, range(8)),
        lambda t: cost.loss_table(t),
    ],
    ids=["atlas", "difference", "strip", "scores", "loss"],
)
def test_a_table_keeps_tokens_as_they_are(table: Callable[[Trace], pd.DataFrame]) -> None:
    assert set(HOSTILE[1:]) <= set(table(trace(tokens=HOSTILE))["token"])


def test_a_trace_without_drops_is_drawn_without_complaint() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for figure in plots(kept_all()).values():
            figure.to_json()


def test_a_text_of_one_token_is_drawn() -> None:
    one = trace().replaced(**_first_token_only())
    table = atlas.atlas_table(one)
    same(layer_named(atlas.plot_atlas(table, selected=(0, 0)), "kept").z, [[0], [0]])
    assert strip.strip_table(one, 0, 0)["state"].tolist() == ["sink"]
    assert cost.loss_table(one).empty
    scores.plot_scores(scores.score_table(one, 0, 0, [0])).to_json()


def _first_token_only() -> dict[str, Any]:
    made = trace()
    flat = {name: getattr(made, name)[:1] for name in ("token_ids", "texts", "tokens", "groups", "classes", "nll")}
    flat |= {name: getattr(made, name)[:1] for name in ("dense_nll", "kl_to_dense", "top1_agrees", "probe_steps")}
    deep = {
        name: getattr(made, name)[..., :1]
        for name in ("threshold", "regret", "ideal_recall", "ideal_cosine", "ideal_mass")
    }
    return {
        **flat,
        **deep,
        "n_prompt": 1,
        "evicted_at": np.ones((2, 2, 1), np.int32),
        "snapshot_steps": np.zeros(1, np.int32),
        "snapshots": np.ones((2, 2, 1, 1), np.float32),
    }

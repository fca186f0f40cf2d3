"""What the Scores page draws of a study of judges, asks for, and refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sparsity_core.studies import ALL_LAYERS, FORESIGHT, JudgeStudy
from tests.app.test_app import figures, open_page, said, titles
from tests.pages.test_pages import example, open_exports, opened
from tests.server import cache_with_models
from ui import judges

DROPS = 32


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSELENS_CACHE", str(cache_with_models(tmp_path)))


def study(step: int) -> JudgeStudy:
    """Numbers of a study's form, for what the page makes of them."""
    rng, names = np.random.default_rng(0), ("eviction=a2sf(budget=256)", "eviction=h2o(budget=256)", FORESIGHT)
    kl = rng.random((3, DROPS)).astype(np.float32)
    return JudgeStudy(
        step=step,
        width=1,
        horizon=8,
        keys=np.arange(DROPS, dtype=np.int32),
        places=np.array([ALL_LAYERS, 0, 15], np.int32),
        kl=kl,
        nll=kl - 0.5,
        noise=1e-12,
        judges=names,
        ranks=np.stack([kl, 1 - kl, kl]).astype(np.float32),
        left_out=(("eviction=local_window(budget=256)", "it decides by position alone"),),
    )


def test_a_study_is_drawn_as_verdicts_layers_and_drops(tmp_path: Path) -> None:
    trace = example()
    asked = judges._Asked(trace.n_prompt - 1, DROPS, 1, 0)
    judges._known()[judges._key(trace, asked)] = study(trace.n_prompt - 1)
    at = opened(tmp_path)
    open_page(at, "scores")
    assert not at.exception and "Does the score know what matters?" in titles(at)
    assert {"judges", "judges_layers", "judges_drops"} <= open_exports(at)
    assert "Not here: " in said(at) and "it decides by position alone." in said(at)
    verdicts = next(f for f in figures(at) if f["layout"]["xaxis"]["title"]["text"].startswith("Spearman"))
    assert [mark["y"][0] for mark in verdicts["data"]] == ["a2sf", FORESIGHT, "h2o"]
    np.testing.assert_allclose([mark["x"][0] for mark in verdicts["data"]], [1, 1, -1])
    drops = figures(at)[-1]
    assert "rank by a2sf" in drops["layout"]["xaxis"]["title"]["text"]  # the pipeline's own, though another is as good
    at.session_state["judges_effect"] = "nll"
    at.selectbox(key="judges_judge").set_value(FORESIGHT).run()
    assert not at.exception
    assert figures(at)[-1]["layout"]["yaxis"]["title"]["text"] == "change of the loss (nats)"


def test_other_drops_are_offered_and_not_drawn_from_what_is_known(tmp_path: Path) -> None:
    at = opened(tmp_path)
    open_page(at, "scores")
    at.selectbox(key="judges_drops").set_value(128).run()
    assert not at.exception and any(button.key == "run_judges" for button in at.button)
    assert "judges" not in open_exports(at)

"""A prefill stage on the pages: it is offered, kept, drawn, and told as what it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sparselens_kernels import KeyMask, Window

from sparsity_core.record import packed
from sparsity_core.record.store import Store
from sparsity_core.record.trace import Trace
from tests import traces
from tests.app.test_app import open_page, said, unfold
from tests.pages.test_pages import opened
from tests.server import cache_with_models
from ui.session import EXAMPLE

AHEAD = "prefill=minference()"
LINK = {"prompt": "needle", "pipeline": AHEAD, "generate": str(EXAMPLE.generate)}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSELENS_CACHE", str(cache_with_models(tmp_path)))


def looked_ahead() -> Trace:
    """A prompt of six tokens, each of which sees itself alone, and no losses at all: nothing was generated."""
    n = traces.NEVER
    unknown = np.full(n, np.nan, np.float32)
    patterns, layouts = packed([KeyMask([Window(1)], 2, 6)] * 2)
    return traces.kept_all().replaced(
        provenance=replace(traces.trace().provenance, pipeline=AHEAD),
        nll=unknown,
        kl_to_dense=unknown,
        top1_agrees=unknown,
        snapshots=np.zeros_like(traces.trace().snapshots),
        threshold=np.full((2, 2, n), np.nan, np.float32),
        shown=np.ones((2, 2, n), np.int32),
        blocks=np.ones((2, 2, 1, 1), np.float32),
        block=16,
        coverage=np.full((2, 4, n), 0.25, np.float32),
        pairs=np.full(2, 24, np.int64),
        scoring_flops=np.zeros(2, np.int64),
        looks_ahead=True,
        patterns=patterns,
        layouts=layouts,
    )


@pytest.mark.parametrize("page", ["tokens", "scores", "gate", "channels"])
def test_a_run_that_looks_ahead_is_drawn_with_dashes_for_what_it_has_not(tmp_path: Path, page: str) -> None:
    Store().put(replace(EXAMPLE, pipeline=AHEAD), looked_ahead())
    at = opened(tmp_path, **LINK)
    if page != "tokens":
        open_page(at, page)
    assert not at.exception
    shown = {metric.label: (metric.value, metric.delta) for metric in at.metric}
    assert shown["Perplexity"] == ("–", "")
    assert shown["Same top token"][0] == "–"
    assert shown["Prompt seen"][0] == "29%"  # 6 of 21 pairs
    assert shown["Coverage"][0] == "25%"
    if page == "scores":
        assert "by position alone" not in said(at)
        assert "attention is scored only for an eviction method beside it" in said(at)


def test_the_run_bar_keeps_the_prefill_stage_of_a_link_and_offers_the_others(tmp_path: Path) -> None:
    at = opened(tmp_path, **LINK)
    assert "The settings differ" not in said(at)
    unfold(at, "A_prefill_fold")
    assert {"assa", "bigbird", "longformer", "minference"} <= set(at.selectbox(key="A_prefill").options)
    at.selectbox(key="A_prefill").set_value("longformer").run()
    assert not at.exception
    assert "The settings differ from what is shown" in said(at)

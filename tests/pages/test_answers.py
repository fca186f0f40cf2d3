"""What each pipeline wrote stands beside the dense model's answer, from the first page on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sparsity_core.record import Store
from tests.app.test_app import said
from tests.pages.test_pages import example, opened
from tests.server import cache_with_models
from ui.bundle import DENSE
from ui.parting import inline
from ui.session import EXAMPLE


def test_the_first_page_shows_the_dense_answer_and_where_the_pipeline_leaves_it(tmp_path: Path) -> None:
    at = opened(tmp_path)
    dense, own = Store().get(DENSE), example()
    assert dense is not None and "7421" in dense.continuation and "7421" not in own.continuation
    lines = [each.value for each in at.markdown]
    assert any(line.startswith("The dense model wrote: 7421.") for line in lines)
    assert any(line.startswith("This pipeline wrote: ") and ":red-background[" in line for line in lines)
    parted = next(i for i, (a, b) in enumerate(zip(own.token_ids, dense.token_ids, strict=False)) if a != b)
    assert f"First other token: {parted}" in said(at)
    at.button("answer_A").click().run(timeout=60)
    assert at.session_state["step"] == parted - 1


def test_a_run_whose_dense_answer_nobody_has_computed_offers_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSELENS_CACHE", str(cache_with_models(tmp_path)))
    assert Store().put(replace(EXAMPLE, seed=7), example()) is None
    at = opened(tmp_path, prompt="needle", pipeline=EXAMPLE.pipeline, generate=str(EXAMPLE.generate), seed="7")
    assert any(each.value.startswith("This pipeline wrote: ") for each in at.markdown)
    assert at.button("run_dense_answer").label == "What does the dense model write?"


def test_what_a_model_wrote_is_shown_and_never_read_as_markdown() -> None:
    assert inline("![](http://x) <b>") == "!\\[\\](http\\://x) \\<b\\>"
    assert inline("a] :red-background[b\nc") == "a\\] \\:red-background\\[b ↵ c"

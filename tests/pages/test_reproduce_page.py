"""The Reproduce page: a row for each claim, and one claim whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsity_core import studies
from tests.app.test_app import figures, open_page, said, titles
from tests.pages.test_pages import open_exports, opened
from tests.server import cache_with_models


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSELENS_CACHE", str(cache_with_models(tmp_path)))


def test_every_claim_is_a_row_with_what_was_found_here(tmp_path: Path) -> None:
    at = opened(tmp_path)
    open_page(at, "reproduce")
    assert not at.exception
    table = at.dataframe[0].value
    found = {row["claim"]: row["here"] for row in table.to_dict("records")}
    assert list(found) == [claim.says for claim in studies.claims()]
    for claim in studies.claims():
        assert found[claim.says].endswith(studies.direction_of(claim, studies.shipped_rows(claim)))
    assert (table["n"] == 16).all() and (table["measured"] == "ships").all()


def test_a_claim_is_drawn_with_its_verdicts_its_sweep_and_a_button(tmp_path: Path) -> None:
    at = opened(tmp_path)
    open_page(at, "reproduce")
    at.selectbox(key="claim").set_value("streaming_llm").run()
    claim = studies.claim_named("streaming_llm")
    assert not at.exception and claim.says in titles(at)
    ((_, _, test),) = studies.pairs_of(claim, studies.shipped_rows(claim))
    assert f"{test.difference:+.3f} nats a token" in " ".join(m.value for m in at.markdown)
    assert len(figures(at)[0]["data"]) == 2 and open_exports(at) == {"claim_streaming_llm"}
    assert any(
        code.value.startswith("# What measures the claim `streaming_llm`") for code in at.code
    ) and "Left is better" in said(at)
    assert any(button.key == "measure_claim" for button in at.button)

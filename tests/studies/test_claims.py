"""The papers' claims: their sweeps, the rows that ship, and the verdicts on rows whose losses are worked out by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest

from sparsity_core.evaluate import perplexity, read_grid
from sparsity_core.models import evaluation_text, load
from sparsity_core.studies import (
    CLAIMS,
    Claim,
    claim_named,
    claims,
    direction_of,
    losses_of,
    measure_claim,
    own_rows,
    pairs_of,
    shipped_rows,
    shipped_with,
)
from sparsity_core.studies.claims import NONE, OPEN, OTHER, SAME

PASSAGES = 16


@pytest.mark.parametrize("claim", claims(), ids=lambda claim: claim.name)
def test_what_ships_is_the_whole_sweep_of_a_claim(claim: Claim) -> None:
    cells = list(read_grid(claim.grid).cells())
    pipelines = {cell.pipeline for cell in cells}
    assert "dense" in pipelines and set(claim.order) <= pipelines
    assert {cell.line for cell in cells} == set(range(1, PASSAGES + 1)) and {cell.block for cell in cells} == {0}
    rows = shipped_rows(claim)
    assert {*zip(rows["pipeline"], rows["line"], strict=True)} == {(cell.pipeline, cell.line) for cell in cells}
    assert len(rows) == len(cells) and np.isfinite(rows["value"]).all() and (rows["value"] > 1).all()
    assert shipped_with(claim).startswith("smollm2-135m, float32, sparselens")
    assert claim.says and claim.setting and claim.reported and claim.ours


def test_the_passages_are_of_the_text_that_no_method_reads() -> None:
    written = [json.loads(line)["text"] for line in (CLAIMS / "passages.jsonl").read_text().splitlines()]
    assert len(written) == PASSAGES and all(text in evaluation_text() for text in written)


def test_a_row_that_ships_is_what_the_library_computes() -> None:
    claim, text = claim_named("a2sf"), json.loads((CLAIMS / "passages.jsonl").read_text().splitlines()[0])["text"]
    rows = shipped_rows(claim)
    kept = rows[(rows["pipeline"] == claim.order[0]) & (rows["line"] == 1)].iloc[0]
    model = load("smollm2-135m", device="cpu", dtype="float32")
    found = perplexity(model, text, claim.order[0], block=len(model.encode_all(text)))
    assert found.perplexity == pytest.approx(kept["value"], rel=1e-3)
    assert (found.tokens, found.kv_share) == (kept["n"], pytest.approx(kept["kv_share"], rel=1e-4))


def rows_of(**losses: list[float]) -> pd.DataFrame:
    return pd.DataFrame(
        [(name, line, math.exp(loss), 10, 1.0) for name, own in losses.items() for line, loss in enumerate(own, 1)],
        columns=["pipeline", "line", "value", "n", "kv_share"],
    )


def ordered(*order: str) -> Claim:
    return Claim("c", "paper", "says", "setting", {}, "ours", order)


def test_verdicts_by_hand() -> None:
    rows = rows_of(dense=[1, 2, 3, 4], a=[1.5, 2.5, 3.5, 4.5], b=[2, 3, 4, 5], c=[1.4, 2.7, 3.3, 4.6])
    np.testing.assert_allclose(losses_of(rows)["b"], [2, 3, 4, 5])
    ((better, worse, pair),) = pairs_of(ordered("a", "b"), rows)
    assert (better, worse, pair.n, pair.verdict) == ("a", "b", 4, "better")
    assert (pair.difference, pair.low, pair.high) == (pytest.approx(-0.5), pytest.approx(-0.5), pytest.approx(-0.5))
    assert direction_of(ordered("dense", "a", "b"), rows) == SAME
    assert direction_of(ordered("a", "dense", "b"), rows) == OTHER
    assert direction_of(ordered("dense", "a", "c"), rows) == OPEN
    assert direction_of(ordered(), rows) == NONE


def test_a_claim_that_is_none_is_named() -> None:
    with pytest.raises(ValueError, match="no claim 'h3o'; there are a2sf"):
        claim_named("h3o")


def test_a_machine_that_measured_nothing_has_no_rows_of_its_own(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SPARSELENS_CACHE", str(tmp_path))
    assert own_rows(claim_named("dcp")) is None


@pytest.mark.slow
def test_a_claim_is_measured_again_where_it_stopped(tmp_path, monkeypatch) -> None:
    from tests.server import cache_with_models

    monkeypatch.setenv("SPARSELENS_CACHE", str(cache_with_models(tmp_path)))
    claim, ended = claim_named("streaming_llm"), []

    def stop(share: float, doing: str) -> None:
        if share > 0.1 and not ended:
            ended.append(share)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_claim(claim, stop)
    assert own_rows(claim) is None
    before = len(list((tmp_path / "claims" / claim.name).glob("*.parquet")))
    assert before >= 4
    rows = measure_claim(claim).sort_values(["pipeline", "line"], ignore_index=True)
    shipped = shipped_rows(claim).sort_values(["pipeline", "line"], ignore_index=True)
    np.testing.assert_allclose(rows["value"], shipped["value"], rtol=1e-3)

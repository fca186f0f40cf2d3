"""What the run bar says of a model before anybody runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sparsity_core.models import preflight
from tests import tiny
from tests.models.test_folders import with_pattern
from ui import model_facts


@pytest.fixture(autouse=True)
def may_be_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_facts, "may_touch", lambda places: True)


def test_a_model_that_is_whole_is_known_to_the_run_bar_and_an_implausible_one_is_not(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 3, "num_hidden_layers": 2}))
    assert model_facts.most_positions(str(tmp_path)) == 3
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 3, "num_hidden_layers": 10**6}))
    assert model_facts.most_positions(str(tmp_path)) is None


@pytest.mark.parametrize("code", [None, "while True: pass"])
def test_the_run_bar_counts_no_tokens_where_the_tokenizer_breaks_down_or_takes_for_ever(
    tmp_path: Path, code: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.tokenizer().save_pretrained(tmp_path)
    assert model_facts.count_tokens(str(tmp_path), "two words") == len(tiny.tokenizer()("two words")["input_ids"])
    with_pattern(tmp_path, "(Q+)+$")
    if code is not None:
        monkeypatch.setattr(preflight, "_TOKENIZE", code)
        monkeypatch.setattr(model_facts, "_SECONDS", 1)
    assert model_facts.count_tokens(str(tmp_path), "Q" * 60 + "R") is None

"""Many texts: read from folders and JSON lines, and each measured as its own run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sparsity_core import run
from sparsity_core.evaluate import over_texts, profile_of, read_texts
from tests import tiny

TEXTS = ["a first text that is read", "another one, somewhat longer than the first", "a third"]


def test_texts_come_from_a_folder_by_name_and_from_json_lines(tmp_path: Path) -> None:
    for at, text in enumerate(TEXTS):
        (tmp_path / f"{9 - at}.txt").write_text(text)
    (tmp_path / "note.md").write_text("no text")
    assert read_texts(tmp_path) == TEXTS[::-1]
    lines = tmp_path / "texts.jsonl"
    lines.write_text(
        "\n".join([json.dumps({"text": TEXTS[0]}), "", json.dumps({"id": 2, "prompt": TEXTS[1], "text": TEXTS[2]})])
    )
    assert read_texts(lines) == [TEXTS[0], TEXTS[2]]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("[1, 2]", "texts.jsonl, line 3: it is no JSON object"),
        ('"a text"', "texts.jsonl, line 3: it is no JSON object"),
        ("{broken", "texts.jsonl, line 3: it is no JSON object"),
        ("[" * 100_000, "texts.jsonl, line 3: it is no JSON object"),
        ('{"words": "a"}', "line 3: it has no field 'text' or 'prompt'; it has words"),
        ('{"text": 5}', "line 3: the field 'text' is a text that is not empty; got 5"),
        ('{"prompt": " "}', "line 3: the field 'prompt' is a text that is not empty"),
    ],
)
def test_a_line_that_is_no_object_with_a_text_is_refused_with_its_number(
    tmp_path: Path, line: str, sentence: str
) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text(f'{{"text": "one"}}\n\n{line}\n')
    with pytest.raises(ValueError, match=sentence):
        read_texts(path)


def test_what_is_no_place_of_texts_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no \.txt file: give a folder"):
        read_texts(tmp_path)
    with pytest.raises(ValueError, match="cannot read"):
        read_texts(tmp_path / "missing.jsonl")


def test_each_text_is_a_run_of_its_own() -> None:
    model, told = tiny.model("llama"), list[tuple[float, str]]()
    found = over_texts(model, TEXTS, profile_of, "eviction=h2o(budget=6)", progress=lambda *at: told.append(at))
    for text, profile in zip(TEXTS, found, strict=True):
        alone = profile_of(run(model, text, "eviction=h2o(budget=6)"))
        np.testing.assert_array_equal(profile.kl, alone.kl)
        np.testing.assert_array_equal(profile.kept, alone.kept)
    shares = [share for share, _ in told]
    assert np.diff(shares).min() > -1e-9 and shares[-1] == pytest.approx(1) and told[-1][1].startswith("text 3 of 3: ")


@pytest.mark.parametrize(
    ("texts", "pipeline", "sentence"),
    [
        ([TEXTS[0], "abc"], None, "text 2 has 3 tokens: give texts of at least 4"),
        ([TEXTS[0], "a" * 321], None, "text 2: the prompt has 321 tokens"),
        (TEXTS, "prefill=minference()", "looks ahead"),
    ],
)
def test_a_text_that_cannot_be_measured_is_named(texts: list[str], pipeline: str | None, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        over_texts(tiny.model("llama"), texts, profile_of, pipeline)

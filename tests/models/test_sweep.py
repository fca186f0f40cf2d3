"""Every causal-LM family of the installed transformers is drawn truly or refused with a sentence."""

from __future__ import annotations

import pytest
import transformers

from tests import families


@pytest.fixture(autouse=True)
def _quiet():
    verbosity = transformers.logging.get_verbosity()
    families.quiet()
    yield
    transformers.logging.set_verbosity(verbosity)


def row(found: families.Found) -> str:
    return families.table([found]).splitlines()[-1]


@pytest.mark.parametrize("family", families.DOZEN)
def test_a_family_is_what_the_document_says(family):
    assert row(families.tried(family)) in families.committed().splitlines()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_document_is_the_sweep_of_all_families():
    assert families.table([families.tried_or_crashed(family) for family in families.FAMILIES]) == families.committed()


def test_a_family_that_crashes_does_not_end_the_sweep(monkeypatch):
    def crashes(model, ids, plain):
        raise KeyError("a layer that is not there")

    monkeypatch.setattr(families, "generation_agrees", crashes)
    assert families.tried_or_crashed("llama") == ("llama", "not tried", "KeyError: 'a layer that is not there'")


def test_a_family_that_would_be_drawn_wrongly_is_no_row(monkeypatch):
    monkeypatch.setattr(families, "LARGEST_GAP", 0.0)
    with pytest.raises(AssertionError, match="losses off by"):
        families.tried_or_crashed("llama")


def test_the_document_has_every_family():
    rows = [line for line in families.committed().splitlines() if line.startswith("| `")]
    assert [line.split("`")[1] for line in rows] == list(families.FAMILIES)
    for line in rows:
        outcome, note = (cell.strip() for cell in line.split("|")[2:4])
        assert outcome in families.OUTCOMES
        assert bool(note) == (outcome != "drawn")

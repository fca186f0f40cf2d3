"""The words of the field have one home, which the app and the docs show."""

from __future__ import annotations

from typing import Any

from sparsity_core import methods
from tests.app.test_app import ROOT, app, unfold
from ui import glossary

__all__ = ["app"]  # the fixture


def test_the_page_of_the_docs_is_what_the_app_tells() -> None:
    assert (ROOT / "docs" / "glossary.md").read_text() == glossary.markdown(), (
        "python -m ui.glossary > docs/glossary.md"
    )
    assert "glossary.md" in (ROOT / "mkdocs.yml").read_text()


def test_there_are_some_thirty_terms_each_a_sentence_or_two() -> None:
    assert 30 <= len(glossary.TERMS) <= 50
    for term, meaning in glossary.TERMS.items():
        assert meaning.endswith(".") and 20 < len(meaning) < 260, term
        assert not meaning.lower().startswith(f"{term.lower()} is"), term


def test_methods_that_are_told_of_are_there() -> None:
    assert {"a2sf", "h2o", "dcp", "assa", "double_sparsity", "prunenet"} <= set(methods.names())


def test_a_word_finds_its_terms(app: Any) -> None:
    app.run()
    assert not [box for box in app.text_input if box.key == "glossary_word"]
    unfold(app, "glossary")
    assert any("**KV cache.**" in each.value for each in app.markdown)
    app.text_input(key="glossary_word").set_value("forgetting").run()
    shown = next(each.value for each in app.markdown if "**A2SF.**" in each.value)
    assert "**forgetting factor.**" in shown and "**KV cache.**" not in shown
    app.text_input(key="glossary_word").set_value("nowhere at all").run()
    assert any(each.value == "No term has it." for each in app.markdown)

"""Tokens as people read them: no text is lost, pieces of one character belong together, classes are a token's own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsity_core.kinds.rules import ruled
from sparsity_core.record.tokens import pieces, shown, token_class, token_classes, visible
from tests import readers, tiny

AWKWARD = {
    "emoji": "a🙂b👩‍👩‍👧🏳️‍🌈",
    "right to left": "שלום مرحبا \u200f\u202eabc\u202c",
    "control characters": "a\x00\x01\x1b[31m\x7f\x85\u2028\t\r\n",
    "combining": "e\u0301 n\u0303 \u1112\u1161\u11ab",
    "replacement": "\ufffd\ufffd\ufffd a\ufffdb",
    "cjk": "좋은 아침입니다。おはよう",
    "rare planes": "\U00040000\U00040000\u0e80 \U0010fffd",
    "markers": "<|im_start|>user\nhi<|im_end|>",
    "white space": "  a   b\n\n\n c\u00a0d\u3000e",
    "markup": "<script>alert(1)</script> $x$ %{y} &lt;",
}


@pytest.fixture(params=["tiny", "smollm", *readers.KINDS])
def reader(request):
    if request.param in readers.KINDS:
        return readers.reader(request.param)
    return tiny.tokenizer() if request.param == "tiny" else request.getfixturevalue("smollm").tokenizer


def check_pieces(reader, ids: list[int]) -> tuple[list[str], list[int]]:
    texts, groups = pieces(reader, ids)
    assert len(texts) == len(groups) == len(ids)
    assert "".join(texts) == reader.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    for i, group in enumerate(groups):  # a group is a run of neighbours, named by its first
        assert groups[group] == group
        assert group in (i, groups[i - 1])
        inner = i + 1 < len(ids) and groups[i + 1] == group
        assert not (inner and texts[i])  # only the last piece of a group has the character
        assert i - group < 8  # bytes that are no text do not pile up
    return texts, groups


@pytest.mark.parametrize("name", AWKWARD)
def test_no_text_is_lost_in_pieces(reader, name):
    ids = reader(AWKWARD[name])["input_ids"]
    texts, groups = check_pieces(reader, ids)
    tokens = shown(texts, groups)
    assert len(tokens) == len(ids)
    for token in tokens:
        assert token and not any(ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 or c in "\u202e\u2028" for c in token)


@settings(max_examples=150)
@given(text=st.text(max_size=30), extra=st.lists(st.integers(0, 255), max_size=20))
def test_no_text_is_lost_in_pieces_of_any_text_or_bytes(text, extra):
    reader = tiny.tokenizer()
    for ids in (reader(text)["input_ids"], extra):
        check_pieces(reader, ids)


@settings(max_examples=150)
@given(ids=st.lists(st.integers(0, 49_151), max_size=25))
def test_no_text_is_lost_in_pieces_of_any_tokens_of_the_embedded_model(smollm, ids):
    check_pieces(smollm.tokenizer, ids)


RARE = st.text(
    st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("the cats 12,.🙂中é\ufffd")), max_size=25
)


@pytest.mark.parametrize("kind", readers.KINDS)
@settings(max_examples=150)
@given(text=RARE)
def test_no_text_is_lost_in_pieces_whatever_the_kind_of_tokenizer(kind, text):
    reader = readers.reader(kind)
    check_pieces(reader, reader(text)["input_ids"])


@pytest.mark.parametrize("kind", readers.KINDS)
@settings(max_examples=150)
@given(data=st.data())
def test_no_text_is_lost_in_pieces_of_any_tokens_whatever_the_kind_of_tokenizer(kind, data):
    reader = readers.reader(kind)
    check_pieces(reader, data.draw(st.lists(st.integers(0, len(reader) - 1), max_size=25)))


@pytest.mark.parametrize("kind", readers.WITH_BYTE_TOKENS)
def test_each_rare_character_is_the_text_of_its_own_bytes(kind):
    reader = readers.reader(kind)
    ids = reader("the 🙂中é cats")["input_ids"]
    texts, groups = pieces(reader, ids)
    first = next(i for i, token in enumerate(reader.convert_ids_to_tokens(ids)) if token == "<0xF0>")
    assert texts[first : first + 9] == ["", "", "", "🙂", "", "", "中", "", "é"]
    assert [group - first for group in groups[first : first + 9]] == [0, 0, 0, 0, 4, 4, 4, 7, 7]
    assert shown(texts, groups)[first + 3 : first + 5] == ["🙂₄", "中₁"]


@pytest.mark.parametrize("kind", readers.WITH_BYTE_TOKENS)
def test_bytes_that_are_no_text_are_shown_each_by_itself(kind):
    """Such a decoder writes one sign for every byte of a run that is not whole."""
    reader = readers.reader(kind)
    ids = reader.convert_tokens_to_ids(["<0xC3>", "<0xA9>", "<0xF0>", "<0x9F>"])
    assert pieces(reader, ids) == (["\ufffd"] * 4, [0, 1, 2, 3])


@pytest.mark.parametrize("kind", readers.KINDS)
def test_a_token_that_spells_the_replacement_sign_is_whole(kind):
    reader = readers.reader(kind)
    ids = reader("a\ufffd b")["input_ids"]
    texts, groups = pieces(reader, ids)
    assert "\ufffd" not in texts[-1] and groups[-1] == len(ids) - 1


@pytest.mark.parametrize("kind", [k for k in readers.KINDS if k not in ("suffixes", "unigram", "word piece")])
def test_a_rule_names_every_token_of_a_character_that_it_touches(kind):
    """The other kinds have no token for a character that they never saw."""
    reader = readers.reader(kind)
    ids = reader("the 🙂🙂 cats 中 sat")["input_ids"]
    texts, groups = pieces(reader, ids)
    named = ruled("/🙂/", texts, groups, len(ids) + 3)
    alone = reader("中")["input_ids"]
    assert named.sum() == 8  # two characters of four bytes each
    assert np.flatnonzero(named).tolist() == list(range(named.argmax(), named.argmax() + 8))
    cats = np.flatnonzero(ruled("/cats/", texts, groups, len(ids)))
    assert "cats" in "".join(texts[i] for i in cats) and not named[cats].any()
    assert ruled("/中/", texts, groups, len(ids)).sum() == 3 <= len(alone)


@pytest.mark.parametrize("kind", readers.KINDS)
def test_classes_are_those_of_the_words_whatever_the_kind_of_tokenizer(kind):
    reader = readers.reader(kind)
    ids = reader("the cats : 12")["input_ids"]
    texts, classes = pieces(reader, ids)[0], token_classes(reader, ids)
    found = {text.strip(): own for text, own in zip(texts, classes, strict=True)}
    assert found["the"] == "function" and found[":"] == "punctuation"
    assert {own for text, own in found.items() if text.isdigit()} == {"number"}


def test_the_bytes_of_an_emoji_are_numbered_pieces_of_it():
    ids = tiny.tokenizer()("a🙂 é")["input_ids"]
    texts, groups = pieces(tiny.tokenizer(), ids)
    assert texts == ["a", "", "", "", "🙂", " ", "", "é"]
    assert groups == [0, 1, 1, 1, 1, 5, 6, 6]
    assert shown(texts, groups) == ["a", "🙂₁", "🙂₂", "🙂₃", "🙂₄", "·", "é₁", "é₂"]


def test_what_has_no_ink_is_shown_by_a_sign():
    assert visible(" a\n\t\r") == "·a↵⇥␍"
    assert visible("\x00\x1b\x7f\x85") == "␀␛␡⟨U+0085⟩"
    assert visible("\u202e") == "⟨U+202E⟩"
    assert visible("\u00a0x\u3000") == "⟨U+00A0⟩x⟨U+3000⟩"
    assert visible("👩\u200d🚀") == "👩\u200d🚀"  # a joiner shapes what it joins
    assert visible("\u200d") == "⟨U+200D⟩"  # and is seen where it stands alone
    assert visible("") == "∅"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (" 12", "number"),
        ("3rd", "number"),
        (".", "punctuation"),
        (" —", "punctuation"),
        ("🙂", "punctuation"),
        (" the", "function"),
        ("The", "function"),
        (" Ann", "capitalised"),
        (" cats", "word"),
        ("中", "word"),
        ("\n", "space"),
        ("", "space"),
        ("\ufffd", "word"),
    ],
)
def test_the_class_of_a_token(text, kind):
    assert token_class(text) == kind


def test_a_tokens_class_is_its_own_whatever_stands_beside_it():
    reader = tiny.tokenizer()
    ids = reader("A 1 é.")["input_ids"]
    classes = ["function", "space", "number", "space", "word", "word", "punctuation"]
    assert token_classes(reader, ids) == classes
    assert [token_classes(reader, [i])[0] for i in ids] == classes

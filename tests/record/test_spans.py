"""Named spans of a text, by rule and by a reader's own lines."""

from __future__ import annotations

import numpy as np
import pytest

from sparsity_core.models import PROMPTS
from sparsity_core.record import question_at, question_of, spans_of

TEXTS = ["The", " code", " is", " 7421", ".", " Question", ":", " which", "?", " Answer", ":"]


def at(tokens: np.ndarray) -> list[int]:
    return np.flatnonzero(tokens).tolist()


def test_question_and_numbers_are_found_and_own_lines_take_their_place():
    found = spans_of(TEXTS)
    assert at(found["question"]) == [5, 6, 7, 8] and at(found["numbers"]) == [3]
    assert at(found["other"]) == [0, 1, 2, 3, 4, 9, 10]
    own = spans_of(TEXTS, "needle: code is 7421\nnumbers: 4-4\nend: 10-10")
    assert at(spans_of(TEXTS, "code: 7421")["code"]) == [3]  # a number that stands there is text
    assert at(own["needle"]) == [1, 2, 3] and at(own["numbers"]) == [4] and at(own["end"]) == [10]


def test_the_roles_of_a_chat_and_fenced_code_are_spans():
    text = list(PROMPTS["chat"].text)
    found = spans_of(text)
    said = {
        name: "".join(x for x, inside in zip(text, tokens, strict=True) if inside) for name, tokens in found.items()
    }
    assert said["system"] == "You are a helpful assistant."
    assert "Porto" in said["user"] and said["user"].endswith("where do I live?")
    assert "enough honey" in said["assistant"] and "helpful" not in said["other"]
    fenced = spans_of(["see ", "```", "x = 1", "```", " end"])
    assert at(fenced["code"]) == [1, 2, 3]


@pytest.mark.parametrize(
    ("own", "sentence"),
    [
        ("needle", "a line of its name and its text"),
        ("needle:", "a line of its name and its text"),
        ("needle: a red door", "the text has no 'a red door'"),
        ("a: 4-11", "positions go from 0 to 10"),
        ("a: 5-2", "the smaller first"),
        ("a: 0-1\na: 3-4", "a second span would be named 'a'"),
        ("other: 0-1", "a second span would be named 'other'"),
        ("a: 0-3\nb: 3-4", "the spans 'a' and 'b' overlap"),
    ],
)
def test_a_line_that_names_no_span_is_a_sentence(own, sentence):
    with pytest.raises(ValueError, match=sentence):
        spans_of(TEXTS, own)


def test_the_librarys_needle_is_named():
    prompt = PROMPTS["needle"]
    assert "7421" in prompt.spans
    assert 0 < spans_of(list(prompt.text), prompt.spans)["needle"].sum() < 60


def test_rules_look_at_the_prompt_alone():
    """What the model wrote after a question neither hides it nor is part of it."""
    asked = ["What", " is", " it", "?"]
    assert at(spans_of([*asked, " It", " is", " blue", "."], n_prompt=4)["question"]) == [0, 1, 2, 3]
    whole = spans_of(["Question:", " why", " 7", " then"], n_prompt=2)
    assert at(whole["question"]) == [0, 1] and "numbers" not in whole


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("Two cats. Question: which? Answer: the", "Question: which?"),
        ("Question: a? Answer: b\nQuestion: c? Answer:", "Question: c?"),  # solved examples come first
        ("It is 3.5 m. How long is 3.5 m?", "How long is 3.5 m?"),
        ("A door.\n\nWhich door?\n", "Which door?"),
        ("He left. Where is Dr. Lee?", "Where is Dr. Lee?"),
        ("Which door? Answer: the", "Which door?"),
        ("<|im_start|>user\nI do. Where?<|im_end|>\n<|im_start|>assistant\n", "Where?"),
        ("<s>[INST] Where? [/INST]", "Where?"),
        ("<|user|>\nWhere?<|end|>\n<|assistant|>\n", "Where?"),
        ("<start_of_turn>user\nWhere?<end_of_turn>\n<start_of_turn>model\n", "Where?"),
        ("It is 7. What is it in the text? What it is in the text is", "What is it in the text?"),
        ("Who? They are: ", "Who?"),
        ("Why? Because. The end.", None),
        ("Who was it? He opened the door", None),
        ("", None),
    ],
)
def test_the_question_of_a_prompt_is_its_last(text, question):
    found = question_of(text)
    assert (found and text[slice(*found)]) == question


def test_a_question_begins_at_the_first_token_that_has_a_piece_of_it():
    assert question_at(TEXTS) == (5, 9)  # " Question" holds the space before it
    assert question_at(TEXTS[:5]) is None


LLAMA = "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHello. [/INST] Hi there. </s><s>[INST] Where? [/INST]"
PHI = (
    "<|system|>\nBe kind.<|end|>\n<|user|>\nHello.<|end|>\n<|assistant|>\nHi there.<|end|>\n"
    "<|user|>\nWhere?<|end|>\n<|assistant|>\n"
)
ZEPHYR = PHI.replace("<|end|>", "</s>")


@pytest.mark.parametrize("text", [LLAMA, PHI, ZEPHYR])
def test_the_roles_of_other_families_are_spans(text):
    found = spans_of(list(text))
    said = {name: "".join(np.asarray(list(text))[tokens]) for name, tokens in found.items()}
    assert (said["system"], said["user"], said["assistant"]) == ("Be kind.", "Hello.Where?", "Hi there.")

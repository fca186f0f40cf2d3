"""Named spans of a text: its roles, its question, code and numbers by rule, and what a reader names by lines of their own."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

_ROLES = (  # ChatML, Gemma and Llama 3; Phi-3 and Zephyr; Llama 2 and Mistral, whose system text stands in the first turn
    re.compile(
        r"(?:<\|im_start\|>|<start_of_turn>|<\|start_header_id\|>)(?P<role>system|user|assistant|model)"
        r"(?:<\|end_header_id\|>)?\n(?P<said>.*?)(?=<\|im_end\|>|<end_of_turn>|<\|eot_id\|>|$)",
        re.DOTALL,
    ),
    re.compile(
        r"<\|(?P<role>system|user|assistant)\|>\s*(?P<said>.*?)"
        r"(?=\s*(?:<\|end\|>|<\|(?:system|user|assistant|endoftext)\|>|</s>|$))",
        re.DOTALL,
    ),
    re.compile(r"(?P<role><<SYS>>)\s*(?P<said>.*?)\s*<</SYS>>", re.DOTALL),
    re.compile(r"(?P<role>\[INST\])\s*(?:<<SYS>>.*?<</SYS>>\s*)?(?P<said>.*?)(?=\s*(?:\[/INST\]|$))", re.DOTALL),
    re.compile(r"(?P<role>\[/INST\])\s*(?P<said>.*?)(?=\s*(?:</s>|\[INST\]|$))", re.DOTALL),
)
_NAMES = {"<<SYS>>": "system", "[INST]": "user", "[/INST]": "assistant"}
_ASKED = re.compile(r"Question:.*?(?=\s*Answer:|$)", re.DOTALL)
_ANSWERS = re.compile(  # what a chat's template or a prompt puts after the question, for the answer to begin
    r"(?:\s|(?:<\|[a-z_]+\|>|<(?:start|end)_of_turn>)(?:assistant|model)?|\[/INST\]|</?s>|</?think>)*$"
)
_BEGUN = re.compile(r"(?<=[?？])\s+[^\n.!?。！？]+(?:\b(?:is|are)|:)$")  # an answer for the model to go on with
_SENTENCE = re.compile(
    r"(?:(?<!\bDr)(?<!\bMr)(?<!\bMrs)(?<!\bMs)[.!?](?=\s)|[。！？]|\n|\|>|\[INST\]|</?s>)\s*"
)  # its end, and what stands before the next
_TAIL = 200  # characters of a prompt in which its template ends, or its answer begins
_RULES = {
    "code": re.compile(r"```.*?```", re.DOTALL),
    "numbers": re.compile(r"\d[\d.,]*\d|\d"),
}
_POSITIONS = re.compile(r"(\d+)\s*-\s*(\d+)")
OTHER = "other"


def question_of(text: str) -> tuple[int, int] | None:
    """The question of a prompt, as its first character and the one after its last; None where none is found.

    It is the last `Question: …`, up to `Answer:`, else the sentence with a question mark that ends the text, or that only
    the end of a chat's turn, `Answer: …` or the beginning of an answer follows: `The number is`.
    """
    asked = list(_ASKED.finditer(text))
    if asked:
        return asked[-1].span()
    before = text.rpartition("Answer:")[0] or text
    tail = _ANSWERS.search(before[-_TAIL:])
    before = before[: len(before) - len(tail[0])] if tail else before
    begun = _BEGUN.search(before[-_TAIL:])
    before = before[: len(before) - len(begun[0])] if begun else before
    if not before.endswith(("?", "？")):
        return None
    return max((end.end() for end in _SENTENCE.finditer(before[:-1])), default=0), len(before)


def question_at(texts: Sequence[str]) -> tuple[int, int] | None:
    """`question_of` in tokens: the first of its tokens and the one after its last."""
    found = question_of("".join(texts))
    if found is None:
        return None
    ends = np.cumsum([len(each) for each in texts])
    starts = np.concatenate([[0], ends[:-1]])
    inside = np.flatnonzero((starts < found[1]) & (ends > found[0]))
    return int(inside[0]), int(inside[-1]) + 1


def spans_of(texts: Sequence[str], own: str = "", n_prompt: int | None = None) -> dict[str, np.ndarray]:
    """bool [T] of each span by its name: the tokens of which any character lies in it.

    By rule, in the prompt: what each role of a chat says, the question, fenced code, numbers; of these a token may be of two.
    By `own`: lines `name: text`, of which the first occurrence counts, or `name: 12-40`, positions. A line of a rule's name
    takes its place. What no span holds but numbers is "other".

    Args:
        texts: the text that each token adds, as `Trace.texts`.
        n_prompt: the tokens of the prompt; None: all.

    Raises ValueError, with the line, for one that names nothing, is not in the text, or overlaps or repeats another line.
    """
    ends = np.cumsum([len(each) for each in texts])
    starts, whole = np.concatenate([[0], ends[:-1]]), "".join(texts)

    def within(begin: int, end: int) -> np.ndarray:
        return (starts < end) & (ends > begin)

    found: dict[str, np.ndarray] = {}
    prompt = "".join(texts[:n_prompt])
    for rule in _ROLES:
        for role in rule.finditer(prompt):
            _join(found, _NAMES.get(role["role"], role["role"]), within(*role.span("said")))
    for asked in {question_of(prompt), *(match.span() for match in _ASKED.finditer(prompt))}:
        if asked is not None:
            _join(found, "question", within(*asked))
    for name, rule in _RULES.items():
        for match in rule.finditer(prompt):
            _join(found, name, within(*match.span()))
    lines: dict[str, np.ndarray] = {}
    for line in filter(str.strip, own.splitlines()):
        name, colon, said = (part.strip() for part in line.partition(":"))
        if not (name and colon and said):
            raise ValueError(
                f"a span is a line of its name and its text, as in `needle: the code is 7421`; got {line!r}"
            )
        if name in lines or name == OTHER:
            raise ValueError(f"a second span would be named {name!r}: give each line a name of its own")
        lines[name] = _named(line, said, whole, len(texts), within)
        for other, tokens in lines.items():
            if other != name and (tokens & lines[name]).any():
                raise ValueError(f"the spans {other!r} and {name!r} overlap: a token is of one of them; shorten one")
    found |= lines
    rest = ~np.any(
        [tokens for name, tokens in found.items() if name != "numbers"] or [np.zeros(len(texts), bool)], axis=0
    )
    return {name: tokens for name, tokens in {**found, OTHER: rest}.items() if tokens.any()}


def _named(line: str, said: str, whole: str, n: int, within: Callable[[int, int], np.ndarray]) -> np.ndarray:
    if positions := _POSITIONS.fullmatch(said):
        first, last = int(positions[1]), int(positions[2])
        if not first <= last < n:
            raise ValueError(f"positions go from 0 to {n - 1}, the smaller first; got {line!r}")
        every = np.arange(n)
        return (every >= first) & (every <= last)
    at = whole.find(said)
    if at < 0:
        raise ValueError(f"the text has no {said!r}: write the span as it stands there")
    return within(at, at + len(said))


def _join(found: dict[str, np.ndarray], name: str, tokens: np.ndarray) -> None:
    found[name] = found[name] | tokens if name in found else tokens

"""Named spans of a text: its roles, its question, code and numbers by rule, and what a reader names by lines of their own."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

_ROLE = re.compile(
    r"(?:<\|im_start\|>|<start_of_turn>|<\|start_header_id\|>)(system|user|assistant|model)(?:<\|end_header_id\|>)?\n"
    r"(.*?)(?=<\|im_end\|>|<end_of_turn>|<\|eot_id\|>|$)",
    re.DOTALL,
)
_RULES = {
    "question": re.compile(r"Question:.*?(?=\s*Answer:|$)|[^.!?\n]*\?\s*$", re.DOTALL),
    "code": re.compile(r"```.*?```", re.DOTALL),
    "numbers": re.compile(r"\d[\d.,]*\d|\d"),
}
_POSITIONS = re.compile(r"(\d+)\s*-\s*(\d+)")
OTHER = "other"


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
    for role in _ROLE.finditer(prompt):
        _join(found, role[1], within(*role.span(2)))
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

"""Values as a pipeline spells them."""

from __future__ import annotations

import ast
import difflib
import keyword
from collections.abc import Mapping, Sequence
from typing import Any

TOO_DEEP = (MemoryError, RecursionError)  # of brackets, signs or attributes nested by the hundred
MOST_SIGNS = 2**15  # of a pipeline: a forgetting factor for every head of a large model has a third of it
_TOLD = 80


def told(value: Any) -> str:
    """A value as a sentence quotes it: its beginning, where it is long."""
    try:
        text = value if isinstance(value, int) and not isinstance(value, bool) else repr(value)
        text = str(text)
    except ValueError:  # Python refuses to write out a number of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= _TOLD else text[: _TOLD - 1] + "…"


def nearest(given: str, known: Sequence[str]) -> str:
    """What to write in place of an unknown name."""
    given = given[:_TOLD]
    close = difflib.get_close_matches(given.lower(), known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known) or 'none yet'}"


def parse_value(node: ast.expr | str) -> Any:
    """A knob's value from its spelling: numbers, True, False, bare words, lists and {class: number}.

    Raises ValueError for any other text.
    """
    if isinstance(node, str):
        node = parse_expression(node.strip(), f"cannot read the value {told(node)}")
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, (ast.List, ast.Tuple)):
        return tuple(parse_value(item) for item in node.elts)
    if isinstance(node, ast.Dict) and all(key is not None for key in node.keys):
        return {
            str(parse_value(k)): parse_value(v) for k, v in zip(node.keys, node.values, strict=True) if k is not None
        }
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, *TOO_DEEP):
        raise ValueError(
            f"cannot read the value {_written(node)}: write a number, True, False, a word or a list"
        ) from None


def parse_expression(text: str, sentence: str) -> ast.expr:
    """A Python expression as its tree. Raises ValueError with `sentence` where the text is no expression."""
    try:
        return ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, *TOO_DEEP):  # ValueError: a NUL, or half a surrogate pair
        raise ValueError(sentence) from None


def _written(node: ast.expr) -> str:
    try:
        return told(ast.unparse(node))
    except TOO_DEEP:
        return "nested so deep"


def spell(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {spell(v)}" for k, v in value.items()) + "}"
    if isinstance(value, tuple):
        return "[" + ", ".join(spell(v) for v in value) + "]"
    bare = isinstance(value, str) and value.isascii() and value.isidentifier() and not keyword.iskeyword(value)
    return value if bare else repr(value)

"""Values as a pipeline spells them."""

from __future__ import annotations

import ast
import difflib
import keyword
from collections.abc import Mapping, Sequence
from typing import Any


def nearest(given: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(given.lower(), known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known) or 'none yet'}"


def parse_value(node: ast.expr | str) -> Any:
    """A knob's value from its spelling: numbers, True, False, bare words, lists and {class: number}."""
    if isinstance(node, str):
        try:
            node = ast.parse(node.strip(), mode="eval").body
        except (SyntaxError, MemoryError, RecursionError):
            raise ValueError(f"cannot read the value {node!r}") from None
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
    except (ValueError, TypeError):
        raise ValueError(f"cannot read the value {ast.unparse(node)!r}") from None


def spell(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {spell(v)}" for k, v in value.items()) + "}"
    if isinstance(value, tuple):
        return "[" + ", ".join(spell(v) for v in value) + "]"
    bare = isinstance(value, str) and value.isascii() and value.isidentifier() and not keyword.iskeyword(value)
    return value if bare else repr(value)

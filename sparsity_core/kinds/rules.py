"""A user's own rules: tokens that are never dropped, and tokens that are dropped at once, whatever the method says."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from sparsity_core.kinds.spelling import told

_PART = re.compile(r"\s*(?:/((?:[^/\\]|\\.)+)/|(\d+)(?:\s*-\s*(\d+))?)\s*(?:,|$)")


def parse_rules(text: str) -> list[Any]:
    """`0-3, 17, /[0-9]+/`: positions, spans with both ends, and regular expressions on the prompt's text.

    Raises ValueError, with the part that cannot be read.
    """
    found: list[Any] = []
    at = 0
    while at < len(text.rstrip()):
        part = _PART.match(text, at)
        if part is None:
            raise ValueError(
                f"cannot read the rule {told(text[at:].strip())}: give positions, spans and expressions, as in 0-3, 17, /[0-9]+/"
            )
        expression, first, last = part.groups()
        if expression is not None:
            found.append(_compiled(expression.replace("\\/", "/")))
        else:
            if len(first) > 9 or len(last or "") > 9:
                raise ValueError(f"a position has at most nine digits; got {told(text[at:].strip())}")
            end = int(first if last is None else last)
            if end < int(first):
                raise ValueError(f"the span {first}-{last} ends before it begins")
            found.append(range(int(first), end + 1))
        at = part.end()
    return found


def _compiled(expression: str) -> Any:
    """An expression of RE2, whose time is linear in the text: links bring expressions, and some would never end in `re`."""
    import re2

    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(expression, options=options)
    except (re2.error, UnicodeError) as error:
        reason = error.args[0].decode()[:100] if isinstance(error, re2.error) else "it holds half a surrogate pair"
        raise ValueError(f"{told(expression)} is no regular expression that RE2 reads: {reason}") from None


def ruled(text: str, texts: Sequence[str], groups: Sequence[int], n: int) -> np.ndarray:
    """bool [n]: the tokens that the rules name, of which `texts` and `groups` [T ≤ n] are known (see `models.pieces`).

    A regular expression names every token that it touches, all pieces of a character included. It reads the known text
    alone; positions may lie beyond it.
    """
    out = np.zeros(n, bool)
    edges = np.cumsum([0, *(len(t) for t in texts)])
    whole = "".join(texts)
    for rule in parse_rules(text):
        if isinstance(rule, range):
            out[rule.start : rule.stop] = True
            continue
        for match in rule.finditer(whole):
            if match.end() > match.start():
                first = groups[np.searchsorted(edges, match.start(), side="right") - 1]
                out[first : np.searchsorted(edges, match.end(), side="left")] = True
    return out

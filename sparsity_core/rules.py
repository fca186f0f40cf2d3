"""A user's own rules: tokens that are never dropped, and tokens that are dropped at once, whatever the method says."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import regex

_SECONDS = 2.0  # for an expression on a text; some take longer than anybody lives

_PART = re.compile(r"\s*(?:/((?:[^/\\]|\\.)+)/|(\d+)(?:\s*-\s*(\d+))?)\s*(?:,|$)")


def parse_rules(text: str) -> list[regex.Pattern[str] | range]:
    """`0-3, 17, /[0-9]+/`: positions, spans with both ends, and regular expressions on the prompt's text.

    Raises ValueError, with the part that cannot be read.
    """
    found: list[regex.Pattern[str] | range] = []
    at = 0
    while at < len(text.rstrip()):
        part = _PART.match(text, at)
        if part is None:
            raise ValueError(
                f"cannot read the rule {text[at:].strip()!r}: give positions, spans and expressions, as in 0-3, 17, /[0-9]+/"
            )
        expression, first, last = part.groups()
        if expression is not None:
            try:
                found.append(regex.compile(expression.replace("\\/", "/")))
            except regex.error as error:
                raise ValueError(f"/{expression}/ is no regular expression: {error}") from None
        else:
            end = int(first if last is None else last)
            if end < int(first):
                raise ValueError(f"the span {first}-{last} ends before it begins")
            found.append(range(int(first), end + 1))
        at = part.end()
    return found


def ruled(text: str, texts: Sequence[str], n: int) -> np.ndarray:
    """bool [n]: the tokens that the rules name, of which `texts` [T ≤ n] are known.

    A regular expression names every token that it touches, of the known text alone; positions may lie beyond it.
    """
    out = np.zeros(n, bool)
    edges = np.cumsum([0, *(len(t) for t in texts)])
    whole = "".join(texts)
    for rule in parse_rules(text):
        if isinstance(rule, range):
            out[rule.start : rule.stop] = True
            continue
        try:
            matches = list(rule.finditer(whole, timeout=_SECONDS, concurrent=True))
        except TimeoutError:
            raise ValueError(
                f"/{rule.pattern}/ takes more than {_SECONDS:g} s on this text: write it without nested repetition"
            ) from None
        for match in matches:
            if match.end() > match.start():
                first = np.searchsorted(edges, match.start(), side="right") - 1
                out[first : np.searchsorted(edges, match.end(), side="left")] = True
    return out

"""Text that somebody typed, or that a link brought, inside a sentence that Streamlit reads as Markdown."""

from __future__ import annotations

import re


def literal(text: str) -> str:
    """Markdown that shows `text` as it is."""
    return re.sub(r"([\\`*_\[\]<>~$#&])", r"\\\1", text)


def code(text: str) -> str:
    """The same as a code span: its fence is longer than any run of backticks in the text, which so cannot end it."""
    runs = re.findall("`+", text)
    fence, gap = "`" * (1 + max(map(len, runs), default=0)), " " if runs else ""
    return f"{fence}{gap}{' '.join(text.split())}{gap}{fence}"

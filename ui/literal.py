"""Text that somebody typed, or that a link brought, inside a sentence that Streamlit reads as Markdown."""

from __future__ import annotations

import re


def literal(text: str) -> str:
    """Markdown that shows `text` as it is."""
    return re.sub(r"([\\`*_\[\]<>~$#&])", r"\\\1", text)

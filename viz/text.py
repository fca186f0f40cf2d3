"""Text as Plotly and XML may show it: nothing in it acts."""

from __future__ import annotations

import re

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")

_NOT_XML = re.compile("[\ud800-\udfff\ufffe\uffff]")


def printable(text: str) -> str:
    """Text with control characters as escapes such as \\x00, and what XML cannot hold as �; tab and line ends stay."""
    return _NOT_XML.sub("\ufffd", _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text))


def plain(text: str) -> str:
    """Text that Plotly shows as it is, wherever it shows text: no tag, entity, TeX or hover variable in it acts."""
    entities = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "$": "&#36;"}
    escaped = re.sub(r"[&<>$]", lambda match: entities[match[0]], printable(text))
    return escaped.replace("%{", "&#37;{")

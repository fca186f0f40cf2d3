"""How an object shows itself in a notebook: a title, a short table of facts, and notes."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

_CELL = "text-align:left;padding:1px 14px 1px 0;border:0;vertical-align:top"


def notebook_table(title: str, facts: Iterable[tuple[str, str]], notes: Sequence[str] = ()) -> str:
    """HTML of a title over a table of (name, value) with notes below; all of them are text, and nothing in them acts."""
    rows = "".join(
        f'<tr><th scope="row" style="{_CELL};font-weight:normal;opacity:.75">{_text(name)}</th>'
        f'<td style="{_CELL};font-variant-numeric:tabular-nums">{_text(value)}</td></tr>'
        for name, value in facts
    )
    below = "".join(f'<div style="opacity:.75;font-size:90%">{_text(note)}</div>' for note in notes)
    return (
        f'<div style="line-height:1.4"><strong>{_text(title)}</strong>'
        f'<table style="border-collapse:collapse;margin:4px 0">{rows}</table>{below}</div>'
    )


def _text(value: str) -> str:
    """Text as HTML: escaped, its direction kept to itself, half characters replaced."""
    return f"<bdi>{html.escape(value.encode('utf-8', 'replace').decode())}</bdi>"

"""A small table as papers and notes hold it: CSV, Markdown, and LaTeX with the rules of booktabs."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from sparsity_core.record import Provenance
from viz.paper.formats.csv import csv_bytes

_DIGITS = 4  # significant


def markdown_bytes(table: pd.DataFrame, provenance: Provenance) -> bytes:
    """A pipe table, with its caption and what made it below."""
    rows = [[_cell(value) for value in row] for row in table.itertuples(index=False)]
    numbers = [pd.api.types.is_numeric_dtype(dtype) for dtype in table.dtypes]
    lines = [list(map(_cell, table.columns)), ["---:" if number else "---" for number in numbers], *rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{text}\n\n{provenance.caption} {provenance.model}.\n".encode("utf-8", "backslashreplace")


def latex_bytes(table: pd.DataFrame, provenance: Provenance) -> bytes:
    """A `table` with the rules of booktabs; needs `\\usepackage{booktabs}` and no other package."""
    shown = table.map(lambda value: _digits(value) if isinstance(value, float) else value)
    styled = shown.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis=1)
    form = "".join("r" if pd.api.types.is_numeric_dtype(dtype) else "l" for dtype in table.dtypes)
    made = _commented("\n".join(f"{name}: {value}" for name, value in provenance.fields.items()))
    text = styled.to_latex(
        hrules=True, column_format=form, caption=latex_text(provenance.caption), position_float="centering"
    )
    return (made + text.replace("÷", "$\\div$")).encode("utf-8", "backslashreplace")


def _digits(value: float) -> str:
    return "--" if pd.isna(value) else f"{value:.{_DIGITS}g}"


def _cell(value: object) -> str:
    """Text that ends no cell and begins no markup."""
    text = _digits(value) if isinstance(value, float) else " ".join(str(value).split())
    return "".join(f"\\{c}" if c in "\\|`*_[]<>$#" else c for c in text)


def _commented(text: str) -> str:
    return "".join(f"% {line}\n" for line in text.splitlines())


def latex_text(text: str) -> str:
    """Text as LaTeX sets it, sign for sign."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text)


# By the file's ending: the button's label, the type, and what writes the file.
TABLES: dict[str, tuple[str, str, Callable[[pd.DataFrame, Provenance], bytes]]] = {
    "csv": ("CSV", "text/csv", csv_bytes),
    "md": ("Markdown", "text/markdown", markdown_bytes),
    "tex": ("LaTeX", "application/x-tex", latex_bytes),
}

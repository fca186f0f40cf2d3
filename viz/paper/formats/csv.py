"""CSV: the table cell for cell, under its provenance as comments; nothing in it is a formula to a spreadsheet."""

from __future__ import annotations

import csv
import io
import json
import re

import pandas as pd

from sparsity_core.record import Provenance
from viz.paper.sheet import Format

# A cell that begins so is a formula to some spreadsheet, but not after an apostrophe. The wide forms count in East Asia.
_FORMULA = r"[=+\-@\t\r\n＝＋－＠]"
_ACTS = re.compile(f"^(?='*{_FORMULA})")
_ESCAPED = re.compile(f"^'(?='*{_FORMULA})")
_ACTS_IN_COMMENT = re.compile(f"(?<=[,;\t])(?={_FORMULA})")
_ACTS_IN_JSON = re.compile(r"(?<=[,;])[=+\-@]")  # only within a string: elsewhere a space follows the comma
_NOTE = "text that begins with = + - @ or a line end has an apostrophe before it, so that no spreadsheet computes it"


def csv_bytes(table: pd.DataFrame, provenance: Provenance) -> bytes:
    types = {
        str(name): str(dtype) if pd.api.types.is_numeric_dtype(dtype) else "str" for name, dtype in table.dtypes.items()
    }
    safe = _mapped(table, _ACTS, "'")
    header = {"columns": json.dumps(types), "caption": provenance.caption, **provenance.fields}
    if not safe.equals(table):
        header["text"] = _NOTE
    if provenance.link:
        header["provenance"] = _ACTS_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", provenance.to_json())
    comments = "".join(f"# {key}: {_comment(value)}\n" for key, value in header.items())
    # text is always quoted: a cell or column that starts with '#' must not read as a comment
    cells = safe.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    return (comments + cells).encode("utf-8", "backslashreplace")


def read_csv(data: bytes) -> pd.DataFrame:
    """The table of an exported CSV, cell for cell and with its dtypes.

    `pd.read_csv(path, comment="#")` reads it too, but guesses types (a token "NaN" goes missing there) and keeps the
    apostrophes before text that a spreadsheet would compute. Missing text comes back as the empty string.
    """
    comments = re.match(rb"(?:#[^\n]*\n)*", data)[0]  # type: ignore[index]
    found = re.search(rb"^# columns: (\{.*\})$", comments, re.MULTILINE)
    types = json.loads(found[1]) if found else {}
    table = pd.read_csv(
        io.BytesIO(data[len(comments) :]),
        dtype=types or None,
        keep_default_na=False,
        na_values={name: [""] for name, dtype in types.items() if dtype != "str"},
    )
    return _mapped(table, _ESCAPED, "")


def _mapped(table: pd.DataFrame, pattern: re.Pattern[str], by: str) -> pd.DataFrame:
    """The table with the pattern replaced in every cell of text."""
    changed = table.copy()
    for name, dtype in table.dtypes.items():
        if not pd.api.types.is_numeric_dtype(dtype):
            changed[name] = [pattern.sub(by, v, count=1) if isinstance(v, str) else v for v in table[name]]
            changed[name] = changed[name].astype(dtype)
    return changed


def _comment(value: str) -> str:
    """Text within a comment line: further lines are comments too, and no comma begins a cell that acts."""
    return "\n#   ".join(_ACTS_IN_COMMENT.sub("'", line) for line in value.splitlines())


FORMAT = Format("csv", "text/csv", place=5, write=lambda sheet: csv_bytes(sheet.table, sheet.provenance))

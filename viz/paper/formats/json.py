"""JSON: exactly what is drawn, that is Plotly's data and layout in the paper look, with the table and the provenance."""

from __future__ import annotations

import base64
import json
import math
from typing import Any

import numpy as np

from viz.paper.sheet import CREATOR, Format, Sheet

VERSION = 1


def _write(sheet: Sheet) -> bytes:
    """An object with `figure`, `table` (a list a column, by name), `provenance` and the `inches`; no number is NaN."""
    columns = {str(name): sheet.table[name].tolist() for name in sheet.table.columns}
    whole = {
        "creator": CREATOR,
        "version": VERSION,
        "inches": {"width": sheet.width, "height": sheet.height},
        "provenance": json.loads(sheet.provenance.to_json()),
        "table": columns,
        "figure": sheet.drawing,
    }
    return (json.dumps(plain(whole), allow_nan=False) + "\n").encode()


def plain(value: Any) -> Any:
    """The same as JSON has it: arrays are lists, and what is no finite number is null."""
    if isinstance(value, dict):
        if value.keys() >= {"dtype", "bdata"}:
            return plain(_unpacked(value))
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | bool | int) else _told(value)


def _told(value: Any) -> str | None:
    return None if value is not value or type(value).__name__ in ("NAType", "NaTType") else str(value)


def _unpacked(packed: dict[str, Any]) -> np.ndarray:
    """An array as Plotly packs it: its bytes in base64."""
    flat = np.frombuffer(base64.b64decode(packed["bdata"]), np.dtype(packed["dtype"]))
    shape = [int(side) for side in str(packed.get("shape", flat.size)).split(",")]
    return flat.reshape(shape)


FORMAT = Format("json", "application/json", place=6, write=_write)

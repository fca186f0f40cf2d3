"""Reads a file of what somebody else's run kept: JSON or .npz, with the names of `Trace.from_kept`."""

from __future__ import annotations

import inspect
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from sparsity_core.record.kept import kept_fields
from sparsity_core.work import read_regular

NAMES = [name for name in inspect.signature(kept_fields).parameters if name != "tokenizer"]
_MOST_BYTES = 2 * 1024**3


def read_kept(path: str | Path) -> dict[str, Any]:
    """What a file holds, by the parameters of `Trace.from_kept`. Raises ValueError for one that is no such file."""
    path = Path(path)
    try:
        data = read_regular(path)
    except OSError as error:
        raise ValueError(f"cannot read {path} ({error.strerror or error})") from None
    found = _npz(path, data) if data.startswith(b"PK") else _json(path, data)
    unknown, missing = sorted(found.keys() - set(NAMES)), sorted({"token_ids", "kept"} - found.keys())
    if unknown or missing:
        said = f"has no {missing[0]!r}" if missing else f"has {unknown[0]!r}"
        raise ValueError(
            f"{path.name} {said}: a file of kept keys has token_ids and kept, and may have {', '.join(NAMES[2:])}"
        )
    return found


def _json(path: Path, data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError(
            f"{path.name} is neither JSON nor .npz: see docs/portable.md for what a file of kept keys holds"
        ) from None
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} holds a {type(found).__name__}: a file of kept keys is one JSON object")
    return found


def _npz(path: Path, data: bytes) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as packed:
            size = sum(member.file_size for member in packed.infolist())
        if size <= _MOST_BYTES:
            with np.load(io.BytesIO(data), allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
    except Exception as error:  # zipfile, zlib and NumPy's reader of headers each raise errors of their own
        raise ValueError(
            f"{path.name} is a damaged .npz file, or holds more than numbers and text ({type(error).__name__}): write it again"
        ) from None
    if size > _MOST_BYTES:
        raise ValueError(
            f"{path.name} unpacks to {size / 1024**3:.1f} GiB: at most {_MOST_BYTES / 1024**3:.0f} are read"
        )
    return {
        name: array.tolist() if array.ndim == 0 or array.dtype.kind == "U" else array for name, array in arrays.items()
    }

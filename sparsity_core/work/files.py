"""Files: text that a user names or uploads, and results that appear whole or not at all."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

MOST_BYTES = 5 * 1024**2


def read_text(name: str, data: bytes) -> str:
    """An uploaded or named file as text. Raises ValueError for one that is too large, or is no UTF-8 text."""
    if len(data) > MOST_BYTES:
        raise ValueError(too_large(name, len(data)))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{name} is not UTF-8 text: save it as plain text (UTF-8) first") from None
    if not text.strip():
        raise ValueError(f"{name} is empty: give a file with some text")
    if "\0" in text:
        raise ValueError(f"{name} is a binary file: give plain text")
    return text


def too_large(name: str, n_bytes: int) -> str:
    return f"{name} has {n_bytes / 1024**2:,.0f} MB: give a text of at most 5 MB, or the part that matters"


def hub_text(name: str) -> str:
    """A file of a dataset on the hub, owner/name/path: text as it is, of a table the column `text`.

    Raises ValueError for a name or file that cannot be read.
    """
    parts = name.split("/", 2)
    if len(parts) < 3:
        raise ValueError(f"a text of the hub is owner/name/file, for example owner/name/train.parquet; got {name}")
    from huggingface_hub import hf_hub_download

    try:
        path = Path(hf_hub_download("/".join(parts[:2]), parts[2], repo_type="dataset"))
    except Exception as error:  # offline, gated, absent: the hub has a class and a long text for each
        raise ValueError(
            f"{name} cannot be read from the hub ({type(error).__name__}): check the name, go online, or give a file"
        ) from error
    if path.suffix != ".parquet":
        return read_text(name, path.read_bytes())
    import pandas as pd

    try:
        return "\n".join(pd.read_parquet(path, columns=["text"])["text"])
    except (ValueError, KeyError, OSError, TypeError):
        raise ValueError(f"{name} has no column of text: give a text file, or a table with a column `text`") from None


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all. Raises OSError where the folder cannot be written."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def npz_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Arrays by name as one compressed .npz file."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()

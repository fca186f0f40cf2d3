"""Files: text that a user names or uploads, and results that appear whole or not at all."""

from __future__ import annotations

import errno
import io
import os
import select
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

MOST_BYTES = 5 * 1024**2
_PATIENCE = 10  # seconds in which a pipe sends something


def read_file(path: Path) -> str:
    """The text of a file or a pipe that a user names. Raises ValueError for what cannot be read, or is no text.

    At most MOST_BYTES + 1 bytes are read, whatever the file says of its size: a device's is 0 and it never ends.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # else a pipe without a writer waits here
        try:
            found = os.fstat(handle)
            if stat.S_ISDIR(found.st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            if stat.S_ISREG(found.st_mode) and found.st_size > MOST_BYTES:
                raise ValueError(too_large(path.name, found.st_size))
            if not (stat.S_ISREG(found.st_mode) or stat.S_ISFIFO(found.st_mode)):
                raise ValueError(f"{path} is a device: give a file of text, or a pipe")
            return read_text(path.name, _read_some(handle, path, piped=stat.S_ISFIFO(found.st_mode)))
        finally:
            os.close(handle)
    except OSError as error:
        raise ValueError(f"cannot read {path} ({error.strerror})") from None


def _read_some(handle: int, path: Path, *, piped: bool) -> bytes:
    """All bytes up to MOST_BYTES + 1. Raises ValueError for a pipe that stays open and sends nothing."""
    parts: list[bytes] = []
    room = MOST_BYTES + 1
    while room:
        if piped and not select.select([handle], [], [], _PATIENCE)[0]:
            raise ValueError(f"{path} has sent nothing for {_PATIENCE} s: give a file of text, or a pipe that ends")
        part = os.read(handle, min(room, 2**16))
        if not part:
            break
        parts.append(part)
        room -= len(part)
    return b"".join(parts)


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

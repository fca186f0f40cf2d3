"""A sweep's folder: one file a cell, whole or not at all, and who is at which cell. No torch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sparsity_core.evaluate.cells import CellSpec, run_cell, table_bytes
from sparsity_core.work import Progress, silent, write_whole


def file_of(folder: Path, key: str, *, failed: bool = False) -> Path:
    return folder / (f"{key}.failed.parquet" if failed else f"{key}.parquet")


def came_in(folder: Path, key: str, again: bool) -> str | None:
    """How a cell came in before: found, or failed; None where it is to be computed, `again` too where it failed."""
    if file_of(folder, key).exists():
        return "found"
    return "failed" if file_of(folder, key, failed=True).exists() and not again else None


def keep_cell(folder: Path, key: str, rows: Sequence[dict[str, Any]]) -> str:
    """Writes a cell's file whole. Returns computed or failed. Raises OSError where the folder cannot be written.

    Rows take the file's key, which another machine, where files have other times, may have told otherwise.
    """
    failed = any(row["error"] for row in rows)
    write_whole(file_of(folder, key, failed=failed), table_bytes([row | {"key": key} for row in rows]))
    if not failed:
        file_of(folder, key, failed=True).unlink(missing_ok=True)
    return "failed" if failed else "computed"


def compute_cell(folder: Path, key: str, spec: CellSpec, again: bool, progress: Progress = silent) -> str:
    """Computes a cell and writes its file, unless it is there (found, failed) or another process is at it (busy).

    `again` computes one that failed before once more.
    """
    with claimed(folder, key) as mine:
        if not mine:
            return "busy"
        return came_in(folder, key, again) or keep_cell(folder, key, run_cell(spec, progress))


@contextlib.contextmanager
def claimed(folder: Path, key: str) -> Iterator[bool]:
    """Whether this process alone is at a cell: a lock that the system lets go when the process ends, however it does."""
    from filelock import FileLock, Timeout

    path = folder / f".{key}.lock"
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)  # while it is held: whoever locks the lost file finds the cell's own
        lock.release()

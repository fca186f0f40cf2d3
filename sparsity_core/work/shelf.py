"""One byte budget over all results in the cache folder: those used longest ago make room for new ones.

An entry is the files of one name in one folder (a policy's weights and its card), and goes as a whole. Its age is the
modification time of its newest file, used as a counter: an entry that is written or read is stamped later than every
other one, whatever the clock says. Every step is a rename or an unlink, which may happen twice, so that several
processes share a cache without a lock.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sparsity_core.work.cache import cache_dir
from sparsity_core.work.files import UNFINISHED, write_whole

# What can be computed again. Converted models and gates stay: a gate is asked for by name, and hours may be in it.
SHELVES = ("traces", "spectra", "channels", "policies", "prompts", "checkpoints")
_DEFAULT_GIB = 4.0
_TICK = 1_000_000  # ns from one stamp to the next, where the clock does not move on by itself


@dataclass(frozen=True)
class Entry:
    """The files of one name in one folder of the cache."""

    files: tuple[Path, ...]
    n_bytes: int
    stamp: int  # ns


def byte_budget() -> int:
    """How many bytes results may take: SPARSELENS_CACHE_GIB, 4 where it is not set. Raises ValueError for what is no number."""
    given = os.environ.get("SPARSELENS_CACHE_GIB") or _DEFAULT_GIB
    try:
        budget = int(float(given) * 2**30)
    except (ValueError, OverflowError):
        budget = -1
    if budget < 0:
        raise ValueError(f"SPARSELENS_CACHE_GIB is a number of GiB, at least 0; got {given!r}")
    return budget


def shelve(path: Path, data: bytes) -> None:
    """Writes a result whole or not at all, as the one used last, and makes room for it.

    Raises OSError where the folder cannot be written, or the result alone is larger than the budget.
    """
    check_fits(len(data))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, data)
    used(path)
    make_room()


def check_fits(n_bytes: int) -> None:
    """Raises OSError for a result that is larger than the whole budget, for which nothing else is dropped."""
    if n_bytes > byte_budget():
        raise OSError(
            errno.EFBIG,
            f"it has {n_bytes / 2**30:.2f} GiB and the cache holds {byte_budget() / 2**30:.2f}: set SPARSELENS_CACHE_GIB "
            "higher to keep it",
        )


def used(path: Path) -> None:
    """Stamps a result as the one used last; where the file may only be read, its age stays."""
    stamp = max([time.time_ns(), *(entry.stamp + _TICK for entry in entries())])
    with contextlib.suppress(OSError):
        os.utime(path, ns=(stamp, stamp))


def make_room() -> None:
    """Drops the results used longest ago until the rest fits the budget."""
    held = sorted(entries(), key=lambda entry: entry.stamp)
    surplus = sum(entry.n_bytes for entry in held) - byte_budget()
    for entry in held:
        if surplus <= 0:
            return
        surplus -= entry.n_bytes
        for file in entry.files:
            with contextlib.suppress(OSError):  # another process makes room too, or the folder may only be read
                file.unlink(missing_ok=True)


def entries() -> list[Entry]:
    """Every result in the cache."""
    found: dict[Path, list[tuple[Path, os.stat_result]]] = {}
    for path in _files():
        with contextlib.suppress(OSError):  # another process made room
            status = path.stat()
            found.setdefault(path.with_suffix(""), []).append((path, status))
    return [
        Entry(tuple(p for p, _ in files), sum(s.st_size for _, s in files), max(s.st_mtime_ns for _, s in files))
        for files in found.values()
    ]


def _files() -> Iterator[Path]:
    for shelf in SHELVES:
        for folder, below, names in os.walk(cache_dir() / shelf):
            below[:] = [name for name in below if not name.startswith(UNFINISHED)]
            yield from (Path(folder, n) for n in names if not n.startswith(UNFINISHED) and not n.endswith(".part"))

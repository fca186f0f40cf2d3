"""How long a job may run and how much memory it may take."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

_SECONDS = 7200.0
_SHARE = 0.8  # of the machine's memory, where nothing else is set
_CONTAINER = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def most_seconds() -> float:
    """How long a job may run: SPARSELENS_JOB_SECONDS, two hours where it is not set. Raises ValueError for no number."""
    return _number("SPARSELENS_JOB_SECONDS", _SECONDS, "seconds")


def most_bytes() -> int:
    """The memory that a job may take: SPARSELENS_JOB_GIB, four fifths of the machine's where it is not set.

    Raises ValueError for no number.
    """
    return int(_number("SPARSELENS_JOB_GIB", _SHARE * _machine_bytes() / 2**30, "GiB") * 2**30)


def own_bytes(process: psutil.Process) -> int:
    """The resident memory of a process, without the pages of files that it maps, which the system takes back by itself."""
    found = process.memory_info()
    return found.rss - getattr(found, "shared", 0)


def _number(name: str, otherwise: float, of: str) -> float:
    given = os.environ.get(name) or otherwise
    try:
        number = float(given)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise ValueError(f"{name} is a number of {of} above 0; got {given!r}")
    return number


def _machine_bytes() -> int:
    """The memory of this machine, or of the container that this process runs in."""
    limits = [psutil.virtual_memory().total]
    for name in _CONTAINER:
        try:
            limits.append(int(Path(name).read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return min(limits)

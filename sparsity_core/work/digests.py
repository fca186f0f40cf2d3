"""What tells one state of a file from another: its content."""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache

_MOST_BYTES = 2**28  # a larger file is told by its size and time: to read it would hold up a page


def digest_of(path: str) -> str:
    """16 hex digits of a file's bytes and of what was written with it: the same name ending in .safetensors and .json.

    "absent" where there is no such file. A file that has not changed since is not read again.
    """
    path = os.path.expanduser(path)
    stem = os.path.splitext(path)[0]
    found = [_state(p) for p in dict.fromkeys((path, f"{stem}.safetensors", f"{stem}.json")) if os.path.isfile(p)]
    return hashlib.blake2b("\n".join(found).encode(), digest_size=8).hexdigest() if found else "absent"


def _state(path: str) -> str:
    try:
        status = os.stat(path)
        if status.st_size > _MOST_BYTES:
            return f"{status.st_size}:{status.st_mtime_ns}"
        return _content(path, status.st_size, status.st_mtime_ns)
    except OSError as error:
        return f"unreadable: {error.strerror}"


@lru_cache(maxsize=256)
def _content(path: str, size: int, mtime_ns: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()

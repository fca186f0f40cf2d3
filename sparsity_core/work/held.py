"""What this process keeps in memory between jobs: recent values within a number of bytes, and how much everything takes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

_V = TypeVar("_V")
_sizes: dict[str, Callable[[], int]] = {}


def keeps(what: str, n_bytes: Callable[[], int]) -> None:
    """Says that this process keeps something, under a name that a reader understands, and how to find out its size."""
    _sizes[what] = n_bytes


def held() -> dict[str, int]:
    """Bytes by name, of what is kept at this moment."""
    return {what: size for what, n_bytes in list(_sizes.items()) if (size := n_bytes())}


class Recent(Generic[_V]):
    """Values by key: those used last, as many as fit into the bytes. The latest one stays whatever its size."""

    def __init__(self, most_bytes: int, size: Callable[[_V], int]) -> None:
        self._values: OrderedDict[str, _V] = OrderedDict()
        self._most_bytes, self._size, self._lock = most_bytes, size, threading.Lock()

    def get(self, key: str) -> _V | None:
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def keep(self, key: str, value: _V) -> _V:
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            while len(self._values) > 1 and self._total() > self._most_bytes:
                self._values.popitem(last=False)
        return value

    def n_bytes(self) -> int:
        with self._lock:
            return self._total()

    def _total(self) -> int:
        return sum(map(self._size, self._values.values()))

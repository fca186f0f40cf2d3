"""methods: one file a method, under its stage, found by itself: `methods.A2SF(budget=64)`, `methods.get("a2sf")`.

A method file imports no torch: what it computes with lies in an engine, or in files beside it in a folder of its own.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from sparsity_core.kinds import get, names
from sparsity_core.work import plugins

__all__ = ["get", "names"]

for _stage in pkgutil.iter_modules(__path__):
    _room = importlib.import_module(f"{__name__}.{_stage.name}")
    for _method in pkgutil.iter_modules(_room.__path__):
        importlib.import_module(f"{_room.__name__}.{_method.name}")
plugins("methods")  # of a user's own, from outside the library


def __getattr__(name: str) -> Any:
    for known in names():
        if get(known).__name__ == name:
            return get(known)
    raise AttributeError(f"there is no method class {name!r}; there are {', '.join(get(n).__name__ for n in names())}")

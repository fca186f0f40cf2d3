"""The methods, one a file, each found by itself: `methods.A2SF(budget=64)`, `methods.names()`, `methods.get("a2sf")`."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from sparsity_core.method import get, names

__all__ = ["get", "names"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def __getattr__(name: str) -> Any:
    for known in names():
        if get(known).__name__ == name:
            return get(known)
    raise AttributeError(f"there is no method class {name!r}; there are {', '.join(get(n).__name__ for n in names())}")

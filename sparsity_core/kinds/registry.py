"""The methods by name."""

from __future__ import annotations

import importlib
import re
from typing import Any

from sparsity_core.kinds.method import Method
from sparsity_core.kinds.spelling import nearest, told

_REGISTRY: dict[str, type[Method]] = {}
_PLACE = "sparsity_core.methods"  # to import it registers every method; done when one is first asked for by its name


def register(cls: type[Any]) -> type[Any]:
    """Makes a method known under its snake_case name. Raises ValueError for a name that is taken."""
    if "name" not in cls.__dict__:
        cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", cls.__name__).lower()
    known = _REGISTRY.get(cls.name)
    if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ValueError(f"two methods are named {cls.name}: {known.__module__} and {cls.__module__}")
    setattr(cls, "__hash__", Method.__hash__)  # noqa: B010 -- a frozen dataclass would hash its fields, and a mapping has no hash
    _REGISTRY[cls.name] = cls
    return cls


def names(stage: str | None = None) -> list[str]:
    """The registered methods, of one stage or of all."""
    importlib.import_module(_PLACE)
    return sorted(name for name, cls in _REGISTRY.items() if stage in (None, cls.stage))


def get(name: str) -> type[Method]:
    """The class of a method. Raises ValueError, with the nearest known name, where there is none."""
    importlib.import_module(_PLACE)
    if name not in _REGISTRY:
        raise ValueError(f"there is no method {told(name)}; {nearest(name, names())}")
    return _REGISTRY[name]

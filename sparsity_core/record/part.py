"""A part of a trace: named arrays that declare their axes, and plain values."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, get_type_hints

import numpy as np

_KINDS = {"float": "f", "int": "iu", "bool": "b"}


class Axes:
    """What an array holds ("float", "int" or "bool") over which named axes: `Annotated[np.ndarray, Axes("int", "layer")]`.

    Axes of one name are of one length in all parts of a trace. What is `optional` may be empty.
    """

    def __init__(self, kind: str, *names: str, optional: bool = False) -> None:
        self.kinds, self.names, self.optional = _KINDS[kind], names, optional


@dataclass(frozen=True, eq=False)
class Part:
    """What one stage, or one kind of measurement, adds to a trace. Its arrays cannot be written on."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, np.ndarray):
                own = value.view()
                own.flags.writeable = False
                object.__setattr__(self, item.name, own)

    def check(self, sizes: dict[str, int]) -> list[str]:
        """The fields whose array is of another kind or shape than declared; axes not yet in `sizes` are added to it."""
        wrong = []
        for name, axes in declared(type(self)).items():
            found: Any = getattr(self, name)
            if axes.optional and isinstance(found, np.ndarray) and not found.size:
                continue
            fits = isinstance(found, np.ndarray) and found.dtype.kind in axes.kinds and found.ndim == len(axes.names)
            if not fits or any(sizes.setdefault(a, n) != n for a, n in zip(axes.names, found.shape, strict=True)):
                wrong.append(name)
        return wrong


def declared(part: type[Any]) -> dict[str, Axes]:
    """The arrays of a part that declare their axes."""
    hints = get_type_hints(part, include_extras=True)
    found = {
        name: [m for m in getattr(hint, "__metadata__", ()) if isinstance(m, Axes)] for name, hint in hints.items()
    }
    return {name: axes[0] for name, axes in found.items() if axes}

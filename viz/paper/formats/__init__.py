"""formats: one file a file format, found by itself."""

from __future__ import annotations

import importlib
import pkgutil

from viz.paper.sheet import Format

_found: list[Format] = [importlib.import_module(f"{__name__}.{m.name}").FORMAT for m in pkgutil.iter_modules(__path__)]
FORMATS: dict[str, Format] = {form.name: form for form in sorted(_found, key=lambda form: form.place)}

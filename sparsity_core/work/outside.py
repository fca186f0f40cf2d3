"""Files from outside the library: methods, figures, pages and commands of a user's own.

There are two ways in. An installed package names its modules as entry points of the group `sparselens.methods` (or
`.figures`, `.pages`, `.commands`). SPARSELENS_PLUGINS names folders, parted as PATH is, that hold `methods/*.py` and so on.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterable
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Literal

Kind = Literal["methods", "figures", "pages", "commands"]
PLUGINS = "sparselens_plugins"  # the package of modules that are files of a folder


def plugins(kind: Kind) -> list[ModuleType]:
    """The modules of a kind from outside, imported: those of packages first, each source in the order of names.

    Raises ValueError, naming the file, where one cannot be imported.
    """
    named = sorted(entry_points(group=f"sparselens.{kind}"), key=lambda point: point.name)
    files = [path for folder in _folders() for path in sorted((folder / kind).glob("[a-zA-Z]*.py"))]
    return [_loaded(point.value, point.load) for point in named] + [
        _loaded(str(path), lambda path=path: _from_file(kind, path)) for path in files
    ]


def with_plugins(kind: Kind, own: Iterable[ModuleType]) -> dict[str, ModuleType]:
    """Our own modules of a kind and those from outside, by their files' names. Raises ValueError where two have one name."""
    found: dict[str, ModuleType] = {}
    for module in [*own, *plugins(kind)]:
        name = module.__name__.rpartition(".")[2]
        if name in found:
            raise ValueError(
                f"two {kind} are named {name}: {found[name].__file__} and {module.__file__}. Rename the file of the plug-in"
            )
        found[name] = module
    return found


def _folders() -> list[Path]:
    return [Path(part).expanduser() for part in os.environ.get("SPARSELENS_PLUGINS", "").split(os.pathsep) if part]


def _from_file(kind: str, path: Path) -> ModuleType:
    """The module of a file, imported once. Modules are known by their folder too: two folders may hold the same name."""
    name = f"{PLUGINS}.{kind}.{path.parent.parent.resolve().as_posix().replace('.', '_')}.{path.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules.setdefault(PLUGINS, ModuleType(PLUGINS))  # without it nothing of the module can be pickled
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _loaded(name: str, load: object) -> ModuleType:
    assert callable(load)
    try:
        module = load()
    except Exception as error:
        raise ValueError(
            f"the plug-in {name} cannot be imported ({type(error).__name__}: {error}): mend or remove it"
        ) from error
    if not isinstance(module, ModuleType):
        raise ValueError(f"the plug-in {name} is no module: let its entry point name one, as in my_package.my_method")
    return module

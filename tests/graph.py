"""The import graph of the house: files and rooms, read from the sources without importing any of them."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

Graph = Mapping[str, set[str]]


@dataclass(frozen=True)
class House:
    """The files below some source roots. A name that a room's stub lists is followed to the file that defines it."""

    roots: tuple[Path, ...]
    packages: tuple[str, ...]

    @cached_property
    def files(self) -> dict[str, Path]:
        """Every file by its module's name."""
        found = {}
        for root in self.roots:
            for package in self.packages:
                paths = [root / f"{package}.py", *sorted((root / package).rglob("*.py"))]
                for path in (path for path in paths if path.is_file()):
                    name = ".".join(path.relative_to(root).with_suffix("").parts)
                    found[name.removesuffix(".__init__")] = path
        return found

    @cached_property
    def stubs(self) -> dict[str, dict[str, str]]:
        """For each package with a stub: the module that each of its public names comes from."""
        found: dict[str, dict[str, str]] = {}
        for name, path in self.files.items():
            stub = path.with_suffix(".pyi")
            if path.name == "__init__.py" and stub.is_file():
                found[name] = {
                    alias.asname or alias.name: self._module(
                        f"{name}.{node.module}" if node.module else name, alias.name
                    )
                    for node in ast.walk(ast.parse(stub.read_text()))
                    if isinstance(node, ast.ImportFrom)
                    for alias in node.names
                }
        return found

    def _module(self, source: str, name: str) -> str:
        return f"{source}.{name}" if f"{source}.{name}" in self.files else source

    def origin(self, module: str, name: str) -> str | None:
        """The file that `from module import name` reaches; None for a module that is not of the house."""
        seen: set[str] = set()
        while module not in seen:
            seen.add(module)
            if f"{module}.{name}" in self.files and name not in self.stubs.get(module, {}):
                return f"{module}.{name}"
            module = self.stubs.get(module, {}).get(name, module)
        return module if module in self.files else None

    @cached_property
    def spelled(self) -> dict[str, set[str]]:
        """For each file, the modules as its imports spell them: a package where the name is one that it makes public."""
        return {
            name: {
                module if not imported or imported in self.stubs.get(module, {}) else self._module(module, imported)
                for module, imported in _imports(path)
                if module.partition(".")[0] in self.packages
            }
            for name, path in self.files.items()
        }

    def reached_past(self, name: str) -> set[str]:
        """The files that a file imports from within a package whose `__init__` says what is public, from outside it."""
        return {
            other
            for other in self.spelled[name]
            for package, public in self.stubs.items()
            if other.startswith(f"{package}.") and not f"{name}.".startswith(f"{package}.")
            if other not in self.stubs and public.get(other.rpartition(".")[2]) != other
        }

    @cached_property
    def graph(self) -> dict[str, set[str]]:
        """For each file, the files that it imports anywhere in it, for types alone too."""
        found: dict[str, set[str]] = {}
        for name, path in self.files.items():
            reached = {self.origin(module, imported) for module, imported in _imports(path)}
            found[name] = {other for other in reached if other is not None} - {name}
        return found


def _imports(path: Path) -> Iterable[tuple[str, str]]:
    """(module, name) of every import of a file; the name is empty for `import module`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)


def circle(graph: Graph) -> list[str]:
    """A circle of a graph, its first member again at the end; none where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return []


def floors(graph: Graph) -> dict[str, int]:
    """For each node of a graph without circles its floor: 1, or one above the highest that it imports."""
    found: dict[str, int] = {}
    for name in TopologicalSorter(graph).static_order():
        found[name] = 1 + max((found[other] for other in graph.get(name, ())), default=0)
    return found


def grouped(graph: Graph, group: Mapping[str, str]) -> dict[str, set[str]]:
    """The graph of the groups of nodes; what a group imports of itself does not count."""
    found: dict[str, set[str]] = {name: set() for name in group.values()}
    for name, others in graph.items():
        found[group[name]] |= {group[other] for other in others} - {group[name]}
    return found

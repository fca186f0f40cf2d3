"""A sweep's grid: models × pipelines with their knobs × densities × texts and tasks × seeds, from YAML. No torch."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from sparsity_core.evaluate.cells import WHOLE, CellSpec
from sparsity_core.evaluate.densities import check_density
from sparsity_core.evaluate.task_checks import check_tasks
from sparsity_core.evaluate.texts import text_of_line
from sparsity_core.kinds import STAGES, Method, Pipeline, nearest
from sparsity_core.work import MOST_BYTES, read_file

_AXES = ("models", "pipelines", "densities", "texts", "tasks", "seeds")
_SETTINGS = (
    "data",
    "limit",
    "shots",
    "length",
    "question",
    "block",
    "most_blocks",
    "add_bos",
    "device",
    "dtype",
    "batch_size",
)


@dataclass(frozen=True)
class Variants:
    """A pipeline, and values for some of its knobs by `stage.knob`; every combination of them is a pipeline."""

    base: Pipeline
    knobs: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return math.prod(len(values) for values in self.knobs.values())

    def pipelines(self) -> Iterator[Pipeline]:
        for values in itertools.product(*self.knobs.values()):
            found = self.base
            for name, value in zip(self.knobs, values, strict=True):
                found = _with(found, name, value)
            yield found


@dataclass(frozen=True)
class Grid:
    """What a sweep computes. `settings` are fields of `CellSpec` that all cells share."""

    models: tuple[str, ...]
    variants: tuple[Variants, ...]
    texts: tuple[tuple[str, int], ...] = ()  # (path, line of a JSONL file or 0)
    tasks: tuple[str, ...] = ()
    densities: tuple[float, ...] = ()  # of pipelines that evict; others have one cell
    seeds: tuple[int, ...] = (0,)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many cells there are, told without making them."""
        pipelines = sum(each.count * len(self._densities(each.base)) for each in self.variants)
        return len(self.models) * pipelines * (len(self.texts) + len(self.tasks)) * len(self.seeds)

    def cells(self) -> Iterator[CellSpec]:
        """The cells one by one, those of a model and a pipeline together, which a process loads and prunes once."""
        measured: list[tuple[dict[str, Any], dict[str, Any]]]
        measured = [({"text": path, "line": line}, self._settings(_OF_TASKS)) for path, line in self.texts]
        measured += [({"task": task}, self._settings(_OF_TEXTS)) for task in self.tasks]
        for model in self.models:
            for each in self.variants:
                for pipeline in each.pipelines():  # no product of all, which would hold them
                    for density in self._densities(each.base):
                        for what, settings in measured:
                            for seed in self.seeds:
                                yield CellSpec(model, str(pipeline), seed, density=density, **what, **settings)

    def _settings(self, others: tuple[str, ...]) -> dict[str, Any]:
        return {name: value for name, value in self.settings.items() if name not in others}

    def _densities(self, pipeline: Pipeline) -> tuple[float | None, ...]:
        return self.densities if self.densities and pipeline.eviction is not None else (None,)


_OF_TEXTS = ("block", "most_blocks")
_OF_TASKS = ("data", "limit", "shots", "length", "question", "batch_size")


def read_grid(path: str | os.PathLike[str]) -> Grid:
    """The grid of a YAML file, whose own folder its paths start from.

    Raises ValueError, before anything runs, for what is no grid, and unknown methods, knobs, tasks and files, with the nearest
    known name.
    """
    import yaml

    path = Path(path)
    try:
        read = yaml.safe_load(read_file(path))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(read, dict):
        raise ValueError(f"{path} is no grid: write models, pipelines, and texts or tasks, each a list")
    for name in read:
        if name not in (*_AXES, *_SETTINGS):
            raise ValueError(f"{path}: a grid has no {name!r}; {nearest(str(name), [*_AXES, *_SETTINGS])}")
    grid = Grid(
        models=_words(read, "models"),
        variants=tuple(map(_variants, _listed(read, "pipelines", ["dense"]))),
        texts=tuple(found for text in _words(read, "texts", ()) for found in _texts(path.parent / text)),
        tasks=_words(read, "tasks", ()),
        densities=tuple(_density(value) for value in _listed(read, "densities", [])),
        seeds=tuple(_whole("seeds", value) for value in _listed(read, "seeds", [0])),
        settings=_settings(read, path.parent),
    )
    if not grid.texts and not grid.tasks:
        raise ValueError(f"{path} measures nothing: name texts, tasks or both")
    _check(grid)
    return grid


def _check(grid: Grid) -> None:
    data = grid.settings.get("data")
    asked: dict[str, Any] = {name: grid.settings.get(name) for name in ("limit", "shots", "length")}
    asked |= {"question": grid.settings.get("question", "known"), "batch_size": grid.settings.get("batch_size", 1)}
    for place, each in enumerate(grid.variants):
        if grid.tasks:  # whose files are read once
            check_tasks(grid.tasks, each.base, data=None if data is None or place else Path(data), **asked)
        for density in grid.densities if each.base.eviction is not None else ():
            check_density(each.base, density)


def _listed(read: Mapping[str, Any], name: str, otherwise: list[Any] | None = None) -> list[Any]:
    """The values of an axis: a list, or one value alone."""
    found = read.get(name, otherwise)
    found = found if isinstance(found, list) else [] if found is None else [found]
    if not found and otherwise is None:
        raise ValueError(f"a grid names {name}: write {name}: [ … ]")
    return list(dict.fromkeys(found)) if all(isinstance(value, (str, int, float)) for value in found) else found


def _words(read: Mapping[str, Any], name: str, otherwise: tuple[str, ...] | None = None) -> tuple[str, ...]:
    found = _listed(read, name, None if otherwise is None else list(otherwise))
    for value in found:
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{name} are names; got {value!r}")
    return tuple(found)


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name}: a whole number is asked for; got {value!r}")
    return value


def _density(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"densities: a number above 0 to 1 is asked for; got {value!r}")
    return float(value)


def _variants(given: Any) -> Variants:
    """A pipeline's text, or {pipeline: its text, knobs: {stage.knob: [values]}}."""
    if isinstance(given, str):
        return Variants(Pipeline.parse(given))
    if not isinstance(given, dict) or set(given) - {"pipeline", "knobs"} or not isinstance(given.get("pipeline"), str):
        raise ValueError(f"a pipeline is a text, or a mapping with pipeline and knobs; got {given!r}")
    base, knobs = Pipeline.parse(given["pipeline"]), given.get("knobs") or {}
    if not isinstance(knobs, dict):
        raise ValueError(f"knobs is a mapping, as in {{eviction.budget: [16, 32]}}; got {knobs!r}")
    found = {str(name): tuple(_listed(knobs, name)) for name in knobs}
    for name, values in found.items():
        for value in values:  # each alone: a combination that does not fit is a cell that says so
            _with(base, name, value)
    return Variants(base, found)


def _with(pipeline: Pipeline, name: str, value: Any) -> Pipeline:
    """The pipeline with another value of a knob, `stage.knob`. Raises ValueError for an unknown one, and a wrong value."""
    stage, dot, knob = name.partition(".")
    if not dot or stage not in STAGES:
        raise ValueError(
            f"a knob is written stage.knob, as in eviction.budget; got {name!r}; {nearest(stage, list(STAGES))}"
        )
    method: Method | None = getattr(pipeline, stage)
    if method is None:
        raise ValueError(f"{name}: the pipeline {pipeline} has no method in its {stage} stage")
    known = [k.name for k in method.knobs()]
    if knob not in known:
        raise ValueError(f"{method.name} has no knob {knob!r}; {nearest(knob, known)}")
    changed: Any = replace(method, **{knob: tuple(value) if isinstance(value, list) else value})  # type: ignore[type-var]
    return replace(pipeline, **{stage: changed})


def _texts(path: Path) -> Iterator[tuple[str, int]]:
    """(path, 0) of a text file or of each in a folder; (path, line) of each line of a JSONL file."""
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.suffix in (".txt", ".md"))
        if not found:
            raise ValueError(f"{path} holds no text: its files end in .txt or .md")
        yield from ((str(p), 0) for p in found)
    elif not path.is_file():
        raise ValueError(f"there is no text {path}")
    elif path.suffix == ".jsonl":
        with open(path, encoding="utf-8") as file:
            for number, written in enumerate(file, 1):
                if written.strip():
                    text_of_line(str(path), number, written)
                    yield str(path), number
    elif path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path} is larger than {MOST_BYTES // 2**20} MB: cut it into smaller texts")
    else:
        yield str(path), 0


def _settings(read: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The settings that a grid gives, as `CellSpec` holds them."""
    kinds = {f.name: str(f.type) for f in fields(CellSpec)}
    found = {name: read[name] for name in _SETTINGS if read.get(name) is not None}
    if found.get("block") == "whole":
        found["block"] = WHOLE
    for name, value in found.items():
        if kinds[name].startswith("int"):
            _whole(name, value)
        elif not isinstance(value, str):
            raise ValueError(f"{name} is a word, or a path; got {value!r}")
    if "data" in found:
        found["data"] = str(folder / found["data"])
    return found

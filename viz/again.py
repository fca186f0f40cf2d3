"""Figures drawn from runs alone, by name: what a script and the command line draw, as the pages do."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sparsity_core.record import Trace
from viz import cost, fates
from viz.chosen import without_chosen
from viz.found import FoundFigure, figures
from viz.looks import distinct_looks
from viz.paper import drawn, plain
from viz.theme import SCREEN_ONLY

WINDOW = 512  # tokens that an atlas or a strip shows at once; more cells than that are too small to click
_GIVEN = {
    *("trace", "a", "b", "traces", "head", "layer", "step", "token", "window"),
    *(
        "table",
        "tables",
        "n_prompt",
        "selected",
        "latest",
        "stages",
        "looks",
        "colours",
        "names",
        "pipelines",
        "against",
    ),
}


@dataclass(frozen=True)
class Picture:
    """A figure with its table, and the inches of its height where those are its own."""

    figure: go.Figure
    table: pd.DataFrame
    height: float | None = None


def window_around(token: int, n_tokens: int) -> tuple[int, int]:
    """The tokens [a, b) around a chosen one that detailed figures draw."""
    if n_tokens <= WINDOW:
        return 0, n_tokens
    start = min(max(0, token - WINDOW // 2), n_tokens - WINDOW)
    return start, start + WINDOW


def drawable() -> dict[str, FoundFigure]:
    """The figures that need nothing but runs and where to look in them."""
    return {
        name: found
        for name, found in sorted(figures().items())
        if _needed(found.table) <= _GIVEN and _needed(found.plot) <= _GIVEN and _names_a_run(found.table)
    }


def shows_several(name: str) -> bool:
    """Whether a figure of `drawable()` is of several runs, and not of one."""
    found = drawable()[name]
    return _takes(found.table, "traces") or _takes(found.table, "b") or _takes(found.plot, "tables")


def draw(
    name: str,
    traces: Mapping[str, Trace],
    *,
    layer: int | None = None,
    head: int | str = "first",
    token: int = 0,
    step: int | None = None,
    width: float = 5.5,
    latest: int | None = None,
    n_tokens: int | None = None,
) -> Picture:
    """The figure of a name, of runs by what a legend calls them, at a layer (the middle one), head, token and step (the last).

    width: inches of the file, for a figure whose lines depend on it. latest: the step at which colours end, and n_tokens:
    the length by which a window is cut, of the longest run unless given. Raises ValueError for a figure that is not
    among `drawable()`, and where it needs another number of runs.
    """
    known = drawable()
    if name not in known:
        raise ValueError(f"there is no figure {name!r} of runs alone; there are {', '.join(known)}")
    found, (first, *others) = known[name], traces.values()
    longest = max(trace.n_tokens for trace in traces.values())
    end = longest - 1
    at = {
        "layer": first.n_layers // 2 if layer is None else layer,
        "head": head,
        "token": token,
        "step": end if step is None else step,
        "window": window_around(token, longest if n_tokens is None else n_tokens),
    }
    _check(at, first, end)
    if _takes(found.table, "b") and not others:
        raise ValueError(f"{name} compares two runs: give a second pipeline")
    given: dict[str, Any] = {
        **at,
        "trace": first,
        "a": first,
        "b": others[0] if others else None,
        "traces": traces,
        "against": next(iter(traces)),
        "n_prompt": first.n_prompt,
        "latest": end if latest is None else latest,
        "stages": fates.removing(first),
        "pipelines": len(traces),
        "selected": None,
        "looks": dict(zip(traces, distinct_looks([cost.method_of(t) for t in traces.values()]), strict=True)),
        "colours": cost.pair_colours(first, others[0]) if others else None,
        "names": cost.pair_names(first, others[0]) if others else None,
    }
    try:
        return _drawn(found, traces, given, width)
    except (ValueError, KeyError, IndexError) as error:
        raise ValueError(
            f"{name} cannot be drawn of this run ({error}): it may show a stage that the pipeline does not have"
        ) from error


def same(one: go.Figure, other: go.Figure) -> bool:
    """Whether a file of the two shows the same."""
    own, others = without_chosen(one), without_chosen(other)
    if _alike(_of_paper(own), _of_paper(others)):  # not brought into the paper look, which takes longer
        return True
    return plain(drawn(own, 528, 320)) == plain(drawn(others, 528, 320))


def _of_paper(figure: go.Figure) -> dict[str, Any]:
    """What the paper look is made from."""
    spec: dict[str, Any] = figure.to_dict()
    for name in SCREEN_ONLY:
        spec["layout"].pop(name, None)
    return spec


def _alike(one: Any, other: Any) -> bool:
    """Whether two of Plotly's structures are equal; False too where arrays hold what cannot be told."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_alike(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_alike, one, other))
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return np.array_equal(one, other)
    return type(one) is type(other) and bool(one == other)


def _drawn(found: FoundFigure, traces: Mapping[str, Trace], given: dict[str, Any], width: float) -> Picture:
    if _takes(found.plot, "tables"):
        tables = {title: _call(found.table, {**given, "trace": trace}) for title, trace in traces.items()}
        table = pd.concat(tables, names=["pipeline"]).reset_index("pipeline")
        return Picture(_call(found.plot, {**given, "tables": tables}), table)
    table = _call(found.table, {**given, "step": min(given["step"], given["trace"].n_tokens - 1)})
    of_paper = getattr(importlib.import_module(found.module), f"paper_{found.name}", None)
    if of_paper is not None:
        figure, height = of_paper(table, width)
        return Picture(figure, table, height)
    marks = {
        name: None for name in ("layer", "token") if not _needs(found.plot, name)
    }  # chosen on a page, not in a file
    return Picture(_call(found.plot, {**given, **marks, "table": table}), table)


def _check(at: Mapping[str, Any], trace: Trace, end: int) -> None:
    limits = {"layer": trace.n_layers - 1, "token": end, "step": end}
    for name, most in limits.items():
        if not 0 <= at[name] <= most:
            raise ValueError(f"{name} is 0 to {most} in this run; got {at[name]}")
    head = at["head"]
    if not (head in ("first", "last") or (isinstance(head, int) and 0 <= head < trace.n_kv_heads)):
        raise ValueError(f"head is first, last or 0 to {trace.n_kv_heads - 1} in this run; got {head}")


def _call(function: Callable[..., Any], given: Mapping[str, Any]) -> Any:
    """A function with what it takes of what is given."""
    parameters = inspect.signature(function).parameters
    return function(
        **{name: given[name] for name in parameters if name in given and name not in ("columns", "removed")}
    )


def _needed(function: Callable[..., Any]) -> set[str]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD}


def _needs(function: Callable[..., Any], name: str) -> bool:
    return name in _needed(function)


def _takes(function: Callable[..., Any], name: str) -> bool:
    return name in inspect.signature(function).parameters


def _names_a_run(function: Callable[..., Any]) -> bool:
    return any(_takes(function, name) for name in ("trace", "traces", "a"))

"""Every figure by its name: a file that has `NAME_table` and `plot_NAME`, here or from outside the repository."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import pandas as pd
import plotly.graph_objects as go

from sparsity_core.work import plugins


@dataclass(frozen=True)
class FoundFigure:
    """A figure: what it computes of its source, and what it draws of that table."""

    name: str
    module: str
    table: Callable[..., pd.DataFrame]
    plot: Callable[..., go.Figure]


@cache
def figures() -> dict[str, FoundFigure]:
    """Every figure that one file computes and draws. Raises ValueError where two have one name."""
    files = [module.name for module in pkgutil.walk_packages([str(Path(__file__).parent)], "viz.") if not module.ispkg]
    own = [importlib.import_module(name) for name in files]
    found: dict[str, FoundFigure] = {}
    for figure in (each for module in [*own, *plugins("figures")] for each in _of(module)):
        if figure.name in found:
            raise ValueError(f"two figures are named {figure.name}: {found[figure.name].module} and {figure.module}")
        found[figure.name] = figure
    return found


def _of(module: ModuleType) -> list[FoundFigure]:
    """The figures that a file itself defines."""
    inside = {n: f for n, f in vars(module).items() if getattr(f, "__module__", "") == module.__name__}
    names = [name.removeprefix("plot_") for name in inside if name.startswith("plot_")]
    return [
        FoundFigure(name, module.__name__, inside[f"{name}_table"], inside[f"plot_{name}"])
        for name in names
        if f"{name}_table" in inside
    ]

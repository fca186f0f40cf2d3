"""A figure as it may be taken from a page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
import plotly.graph_objects as go

from sparsity_core.record import Provenance, RunSpec, Trace
from viz import paper

Draw = Callable[[float], tuple[go.Figure, float | None]]  # (figure, its own height) for a width; inches


@dataclass(frozen=True)
class Item:
    """A figure as it may be taken from a page: what draws it, its table, where it comes from, and its runs if it has any."""

    name: str
    draw: Draw
    table: pd.DataFrame
    provenance: Provenance
    runs: tuple[tuple[RunSpec, Trace], ...] = ()

    @property
    def file(self) -> str:
        """What its files are called, without their ending."""
        return paper.kit.file_name(self.name, self.provenance)

    def exported(self, form: str, width: float, shape: float = 0.62, chosen: bool = False) -> bytes:
        """The figure's file at a width, and as high as its lines take or `shape` times as high; inches."""
        figure, height = self.sized(width, shape)
        return paper.export(figure, self.table, form, self.provenance, width=width, height=height, chosen=chosen)

    def sized(self, width: float, shape: float = 0.62) -> tuple[go.Figure, float]:
        figure, height = self.draw(width)
        return figure, paper.natural_height(figure, width, shape) if height is None else height

"""What a format is given to write, and how a format declares itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from sparsity_core.record import Provenance
from viz.paper.drawing import drawn
from viz.theme import PX_PER_INCH

CREATOR = "SparseLens"
_INCHES, _SCALES = (0.5, 40), (0.5, 20)


def check_size(inches: float, name: str = "width") -> None:
    """Raises ValueError, as a sentence, for a width or height that no file has."""
    if not _INCHES[0] <= inches <= _INCHES[1]:
        raise ValueError(f"{name} is {inches:g}; allowed is {_INCHES[0]} to {_INCHES[1]} inches")


@dataclass(frozen=True)
class Sheet:
    """A figure with its table, its provenance and its final size: inches, and PNG dots per 1/96 inch."""

    figure: go.Figure
    table: pd.DataFrame
    provenance: Provenance
    width: float
    height: float
    scale: float

    def __post_init__(self) -> None:
        check_size(self.width)
        check_size(self.height, "height")
        if not _SCALES[0] <= self.scale <= _SCALES[1]:
            raise ValueError(f"scale is {self.scale}; allowed is {_SCALES[0]} to {_SCALES[1]}")

    @property
    def pixels(self) -> dict[str, int]:
        """Whole pixels that hold the sheet: Chromium stretches fractional ones, so the page is cut to size afterwards."""
        inches = {"width": self.width, "height": self.height}
        return {name: math.ceil(value * PX_PER_INCH - 1e-9) for name, value in inches.items()}

    @cached_property
    def drawing(self) -> dict[str, Any]:
        """The figure in the paper look as Plotly's structure, made once for all formats; not to be changed."""
        return drawn(self.figure, **self.pixels)

    def with_provenance(self, provenance: Provenance) -> Sheet:
        """The same drawing from elsewhere."""
        other = replace(self, provenance=provenance)
        other.__dict__["drawing"] = self.drawing
        return other


@dataclass(frozen=True)
class Format:
    """A kind of file. Each file of `formats/` declares one as `FORMAT`, and is found by itself."""

    name: str  # also the file's ending
    mime: str
    place: int  # in menus, the smallest first
    write: Callable[[Sheet], bytes]
    rendered: bool = False  # by a browser
    embeds: bool = False  # the glyphs that it shows, so that one missing on this machine is missing in the file

    @property
    def label(self) -> str:
        return self.name.upper()

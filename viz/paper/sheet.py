"""What a format is given to write, and how a format declares itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
import plotly.graph_objects as go

from sparsity_core.record import Provenance
from viz.theme import PX_PER_INCH

WIDTHS: dict[str, float] = {
    "NeurIPS / ICLR": 5.5,
    "ICML column": 3.25,
    "ICML page": 6.75,
    "AAAI column": 3.3,
    "AAAI page": 6.975,
    "CVPR column": 3.25,
    "ACL column": 3.03,
}
CREATOR = "SparseLens"


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
        for name, low, high in (("width", 0.5, 40), ("height", 0.5, 40), ("scale", 0.5, 20)):
            value = getattr(self, name)
            if not low <= value <= high:
                unit = "" if name == "scale" else " inches"
                raise ValueError(f"{name} is {value}; allowed is {low} to {high}{unit}")

    @property
    def pixels(self) -> dict[str, int]:
        """Whole pixels that hold the sheet: Chromium stretches fractional ones, so the page is cut to size afterwards."""
        inches = {"width": self.width, "height": self.height}
        return {name: math.ceil(value * PX_PER_INCH - 1e-9) for name, value in inches.items()}


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

"""Colours, dashes and markers of methods and of token states."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

SEQUENTIAL = "cividis"

OKABE_ITO = ["#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"]

HUES = ("#D55E00", "#0072B2", "#009E73", "#E69F00", "#CC79A7", "#56B4E9")  # black and yellow vanish on dark and white

# in pixels: Plotly's named dashes are too long for a line of 1.2 pt
_DASHES = ("solid", "5px,2px", "1.5px,1.5px", "5px,2px,1.5px,2px", "9px,2px", "9px,2px,1.5px,2px")

_METHODS = {
    "a2sf": ("#D55E00", _DASHES[0]),
    "h2o": ("#0072B2", _DASHES[1]),
    "tova": ("#009E73", _DASHES[3]),
    "streaming_llm": ("#CC79A7", _DASHES[4]),
    "local_window": ("#E69F00", _DASHES[5]),
    "snapkv": ("#56B4E9", _DASHES[0]),
    "dcp": ("#56B4E9", _DASHES[0]),
    "random": ("#A0A0A0", _DASHES[2]),  # the two references are greys, readable on both grounds; methods have hues
    "dense": ("#707070", _DASHES[0]),
    "prunenet": ("#D55E00", _DASHES[0]),
    "leverage": ("#0072B2", _DASHES[1]),
    "row_norm": ("#009E73", _DASHES[3]),
    "column_norm": ("#E69F00", _DASHES[5]),
    "wanda_sp": ("#56B4E9", _DASHES[0]),
    "flap": ("#CC79A7", _DASHES[4]),
    "llm_pruner": ("#009E73", _DASHES[1]),
    "svd_truncation": ("#E69F00", _DASHES[1]),
    "svd_llm": ("#0072B2", _DASHES[4]),
    "head_pruning": ("#CC79A7", _DASHES[5]),
    "slicegpt": ("#56B4E9", _DASHES[3]),
    "random_neurons": ("#A0A0A0", _DASHES[2]),
}

_SYMBOLS = {
    "prunenet": "star",
    "leverage": "square",
    "row_norm": "diamond",
    "column_norm": "triangle-up",
    "wanda_sp": "circle",
    "flap": "pentagon",
    "llm_pruner": "triangle-down",
    "svd_truncation": "hourglass",
    "svd_llm": "bowtie",
    "head_pruning": "cross",
    "slicegpt": "hexagram",
    "random_neurons": "x",
}


def _look(name: str) -> tuple[str, str]:
    code = zlib.crc32(name.encode())  # hash() differs from process to process
    return _METHODS.get(name) or (HUES[code % len(HUES)], _DASHES[code // len(HUES) % len(_DASHES)])


def method_colour(name: str) -> str:
    """The colour of a method, the same in every figure, theme and process."""
    return _look(name)[0]


def method_dash(name: str) -> str:
    """The line dash of a method, which tells two lines apart without colour and where two names share a hue."""
    return _look(name)[1]


def method_symbol(name: str) -> str:
    """The marker of a method, which tells two points apart without colour."""
    shapes = ("hexagon", "hexagram", "star-diamond", "star-square")
    return _SYMBOLS.get(name) or shapes[zlib.crc32(name.encode()) % len(shapes)]


@dataclass(frozen=True)
class StateStyle:
    """How one token state is drawn; `symbol` is Plotly's, `decoration` is CSS text-decoration."""

    light: str
    dark: str
    symbol: str
    glyph: str
    decoration: str


STATE_STYLE: dict[str, StateStyle] = {
    "kept": StateStyle("#0072B2", "#56B4E9", "square", "■", "none"),
    "dropped": StateStyle("#B84A00", "#F58A4B", "x", "×", "line-through"),
    "sink": StateStyle("#9A3F77", "#DE9BC1", "diamond", "◆", "underline double"),
    "recent": StateStyle("#00795A", "#2FC9A0", "triangle-up", "▲", "underline"),
    "future": StateStyle("#666C76", "#9AA1AC", "circle-open", "○", "underline dotted"),
}

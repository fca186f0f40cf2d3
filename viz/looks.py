"""Colours, dashes and markers of methods and of token states."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

SEQUENTIAL = "cividis"

OKABE_ITO = ["#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"]

VERMILLION, BLUE, GREEN, ORANGE, PURPLE, SKY = "#D55E00", "#0072B2", "#009E73", "#E69F00", "#CC79A7", "#56B4E9"
HUES = (VERMILLION, BLUE, GREEN, ORANGE, PURPLE, SKY)  # of Okabe and Ito; black and yellow vanish on dark and white
NEUTRAL = "#8A93A3"  # what stands beside a method: thresholds, the model before a cut; readable on both grounds
_LIGHT_GREY, _DARK_GREY = "#A0A0A0", "#707070"  # of references: random choices and the dense model

# in pixels: Plotly's named dashes are too long for a line of 1.2 pt
SOLID, DASHED, DOTTED, DASH_DOT = "solid", "5px,2px", "1.5px,1.5px", "5px,2px,1.5px,2px"
LONG, LONG_DOT = "9px,2px", "9px,2px,1.5px,2px"
SPARSE, DASH_DOTS, FAINT = "3px,4px", "5px,2px,1.5px,2px,1.5px,2px", "1.5px,5px"
DASHES = (SOLID, DASHED, DOTTED, DASH_DOT, LONG, LONG_DOT, SPARSE, DASH_DOTS, FAINT)
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x", "pentagon", "hexagram", "star")


@dataclass(frozen=True)
class Look:
    """How one series is drawn. Two lines of a figure differ in colour or dash, two marks in colour or symbol."""

    colour: str
    dash: str
    symbol: str


_METHODS = {
    "dense": Look(_DARK_GREY, SOLID, "circle"),
    "a2sf": Look(VERMILLION, SOLID, "circle"),
    "h2o": Look(BLUE, DASHED, "square"),
    "tova": Look(GREEN, DASH_DOT, "diamond"),
    "streaming_llm": Look(PURPLE, LONG, "triangle-up"),
    "local_window": Look(ORANGE, LONG_DOT, "triangle-down"),
    "snapkv": Look(SKY, SOLID, "hexagon"),
    "random": Look(_LIGHT_GREY, DOTTED, "x"),
    "knorm": Look(GREEN, SPARSE, "cross"),
    "keydiff": Look(BLUE, SPARSE, "triangle-left"),
    "r_kv": Look(ORANGE, SPARSE, "hexagram"),
    "multi_metric": Look(VERMILLION, DASH_DOTS, "cross"),
    "expected_attention": Look(VERMILLION, LONG_DOT, "hexagon"),
    "ada_kv": Look(SKY, SPARSE, "star"),
    "duo_attention": Look(BLUE, DASH_DOTS, "hourglass"),
    "pyramid_kv": Look(SKY, LONG_DOT, "triangle-up"),
    "cake": Look(ORANGE, DASH_DOTS, "hexagon"),
    "kvzip": Look(GREEN, DASH_DOTS, "star"),
    "dcp": Look(SKY, LONG, "circle"),
    "double_sparsity": Look(PURPLE, SOLID, "circle"),
    "oracle_top_k": Look(_DARK_GREY, DASHED, "star"),
    "oracle_top_p": Look(_DARK_GREY, DASH_DOT, "hexagram"),
    "quest": Look(GREEN, SOLID, "square"),
    "sparq": Look(ORANGE, SOLID, "pentagon"),
    "twilight": Look(VERMILLION, SPARSE, "triangle-down"),
    "think": Look(PURPLE, SPARSE, "bowtie"),
    "assa": Look(VERMILLION, DOTTED, "square"),
    "sliding_window": Look(BLUE, DASH_DOT, "diamond"),
    "longformer": Look(GREEN, LONG_DOT, "circle"),
    "strided": Look(ORANGE, DOTTED, "circle"),
    "bigbird": Look(PURPLE, DASH_DOT, "diamond"),
    "lsh": Look(SKY, DOTTED, "square"),
    "minference": Look(VERMILLION, DASH_DOT, "triangle-up"),
    "flexprefill": Look(BLUE, LONG_DOT, "triangle-up"),
    "xattention": Look(ORANGE, LONG, "square"),
    "prunenet": Look(VERMILLION, DASHED, "star"),
    "leverage": Look(BLUE, SOLID, "triangle-right"),
    "row_norm": Look(GREEN, DASHED, "hexagram"),
    "column_norm": Look(ORANGE, DASHED, "triangle-up"),
    "wanda_sp": Look(SKY, DASHED, "diamond"),
    "flap": Look(PURPLE, DASHED, "pentagon"),
    "llm_pruner": Look(GREEN, LONG, "triangle-down"),
    "svd_truncation": Look(ORANGE, DASH_DOT, "hourglass"),
    "svd_llm": Look(BLUE, LONG, "bowtie"),
    "head_pruning": Look(PURPLE, LONG_DOT, "cross"),
    "slicegpt": Look(SKY, DASH_DOT, "star-diamond"),
    "random_neurons": Look(_LIGHT_GREY, DASH_DOT, "cross"),
}


def look_of(name: str) -> Look:
    """The look of a method, the same in every figure, theme and process."""
    code = zlib.crc32(name.encode())  # hash() differs from process to process
    by_name = Look(HUES[code % 6], DASHES[code // 6 % len(DASHES)], SYMBOLS[code // 54 % len(SYMBOLS)])
    return _METHODS.get(name) or by_name


def distinct_looks(names: Sequence[str]) -> list[Look]:
    """A look for each series of one figure, by its method's name: the method's own, or the next that no other series has.

    Several pipelines of one method keep its colour as long as there are dashes left. There are 54 looks.
    """
    lines: set[tuple[str, str]] = set()
    marks: set[tuple[str, str]] = set()
    found = []
    for name in names:
        free = (
            v for v in _variants(look_of(name)) if (v.colour, v.dash) not in lines and (v.colour, v.symbol) not in marks
        )
        look = next(free, look_of(name))
        lines.add((look.colour, look.dash))
        marks.add((look.colour, look.symbol))
        found.append(look)
    return found


def _variants(look: Look) -> Iterator[Look]:
    """A look, then its colour with every other dash and symbol, then other colours likewise."""
    yield look
    for colour, dash, symbol in itertools.product((look.colour, *HUES), DASHES, SYMBOLS):
        yield replace(look, colour=colour, dash=dash, symbol=symbol)


def method_colour(name: str) -> str:
    return look_of(name).colour


def method_dash(name: str) -> str:
    return look_of(name).dash


def method_symbol(name: str) -> str:
    return look_of(name).symbol


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
    "gated": StateStyle("#8F5A00", "#E0A33A", "x-thin", "≠", "line-through double"),
    "hidden": StateStyle("#5B5BA8", "#A9A9EC", "line-ew", "▬", "underline wavy"),
    "unread": StateStyle("#4A7080", "#8FBBCB", "line-ns", "‖", "overline"),
    "sink": StateStyle("#9A3F77", "#DE9BC1", "diamond", "◆", "underline double"),
    "recent": StateStyle("#00795A", "#2FC9A0", "triangle-up", "▲", "underline"),
    "future": StateStyle("#666C76", "#9AA1AC", "circle-open", "○", "underline dotted"),
}

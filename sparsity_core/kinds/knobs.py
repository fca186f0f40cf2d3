"""A method's settings: their declaration, and the check of their values."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sparsity_core.kinds.spelling import told

REDUCTIONS = ("sum", "mean", "max")  # as the kernels have them; importing those would import torch with every page
RULES = ("protect", "drop")  # the knobs of a user's own rules, of every method that drops for good
# The largest values that make sense of any model: a link may bring any number, and no job may grow without bound.
MOST_TOKENS = 10**9
MOST_LAYERS = 10_000
MOST_CHANNELS = 2**16
MOST_RATIO = 0.999
MOST_SEED = 2**31 - 1
MOST_LETTERS = 4096  # of a knob that is a text


@dataclass(frozen=True)
class Sweep:
    """The values of one knob that a page compares, and what its ends mean."""

    values: tuple[float, ...]
    symbol: str  # of the knob in the method's equation
    read: str  # a sentence on how the figure is read


def knob(
    default: Any,
    *,
    help: str,
    low: float | None = None,
    high: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    choices: Sequence[str] | None = None,
    parse: Callable[[str, Any], Any] | None = None,
    path: bool = False,
    always: bool = False,
    prominent: bool = False,
    sweep: Sweep | None = None,
) -> Any:
    """A dataclass field that is a method's setting.

    Args:
        low, high: the range that a slider offers.
        at_least, at_most: what is valid at all.
        choices: the words that are valid.
        parse: makes the value that the method holds from (method's name, given value), and raises ValueError where it
            cannot. It replaces every other check. Needed for values that are neither a number, a truth value nor a word.
        path: the value is the default word or the path of a file, which the method reads when it runs. Results are
            stored under the file's content.
        always: spelled even at its default.
        prominent: shown beside the method's first setting, not folded away.
        sweep: a page offers to compare these values, each a run of its own.
    """
    metadata = {
        "help": help,
        "low": low,
        "high": high,
        "at_least": at_least,
        "at_most": at_most,
        "choices": tuple(choices) if choices else None,
        "parse": parse,
        "path": path,
        "always": always,
        "prominent": prominent,
        "sweep": sweep,
    }
    return field(default=default, metadata=metadata)


def per_layer(name: str, text: str, kind: Callable[[str], Any]) -> list[Any]:
    """The numbers of a list such as `1, 0.5, 0.25`, one per layer; none of an empty text. Raises ValueError otherwise."""
    try:
        return [kind(part) for part in text.split(",")] if text.strip() else []
    except ValueError:
        raise ValueError(f"{name} is a list of numbers, one per layer, as in 1, 0.5, 0.25; got {told(text)}") from None


def canonical(method: str, knob_: dataclasses.Field[Any], value: Any) -> Any:
    """The value as the method holds it, one form for all equal values. Raises ValueError where the knob does not allow it."""
    parse = knob_.metadata.get("parse")
    if parse is not None:
        return parse(method, value)
    if getattr(value, "ndim", None) == 0:  # a number of NumPy or torch
        value = value.item()
    check_knob(method, knob_, value)
    return float(value) + 0.0 if isinstance(knob_.default, float) else value  # 1 is 1.0, and −0 is 0


def check_knob(method: str, knob_: dataclasses.Field[Any], value: Any) -> None:
    """Raises ValueError where a value is of the wrong kind or outside what the knob allows."""
    meta, default = knob_.metadata, knob_.default
    if meta.get("choices"):
        if value not in meta["choices"]:
            raise ValueError(f"{method}: {knob_.name} is one of {', '.join(meta['choices'])}; got {told(value)}")
    elif isinstance(default, str):
        if not isinstance(value, str) or (default and not value):
            raise ValueError(f"{method}: {knob_.name} is a word, or a path in quotes; got {told(value)}")
        if len(value) > MOST_LETTERS:
            raise ValueError(f"{method}: {knob_.name} has at most {MOST_LETTERS:,} characters; got {len(value):,}")
    elif isinstance(default, bool):
        if not isinstance(value, bool):
            raise ValueError(f"{method}: {knob_.name} is True or False; got {told(value)}")
    elif isinstance(default, (int, float)):
        kind = "a whole number" if isinstance(default, int) else "a number"
        numeric = isinstance(value, int) or (isinstance(default, float) and isinstance(value, float))
        if isinstance(value, bool) or not numeric or (isinstance(value, float) and not math.isfinite(value)):
            raise ValueError(f"{method}: {knob_.name} is {kind}; got {told(value)}")
        if meta.get("at_least") is not None and value < meta["at_least"]:
            raise ValueError(f"{method}: {knob_.name} is at least {meta['at_least']}; got {told(value)}")
        if meta.get("at_most") is not None and value > meta["at_most"]:
            raise ValueError(f"{method}: {knob_.name} is at most {meta['at_most']}; got {told(value)}")

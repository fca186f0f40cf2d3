"""A method's settings: their declaration, and the check of their values."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import field
from typing import Any

REDUCTIONS = ("sum", "mean", "max")  # as the kernels have them; importing those would import torch with every page
RULES = ("protect", "drop")  # the knobs of a user's own rules, of every method that drops for good


def knob(
    default: Any,
    *,
    help: str,
    low: float | None = None,
    high: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    choices: Sequence[str] | None = None,
) -> Any:
    """A dataclass field that is a method's setting.

    `low` and `high` are the range that a slider offers; `at_least` and `at_most` what is valid at all.
    """
    metadata = {
        "help": help,
        "low": low,
        "high": high,
        "at_least": at_least,
        "at_most": at_most,
        "choices": tuple(choices) if choices else None,
    }
    return field(default=default, metadata=metadata)


def per_layer(name: str, text: str, kind: Callable[[str], Any]) -> list[Any]:
    """The numbers of a list such as `1, 0.5, 0.25`, one per layer; none of an empty text. Raises ValueError otherwise."""
    try:
        return [kind(part) for part in text.split(",")] if text.strip() else []
    except ValueError:
        raise ValueError(f"{name} is a list of numbers, one per layer, as in 1, 0.5, 0.25; got {text!r}") from None


def check_knob(method: str, knob_: dataclasses.Field[Any], value: Any) -> None:
    """Raises ValueError where a value is of the wrong kind or outside what the knob allows."""
    meta, default = knob_.metadata, knob_.default
    if knob_.name == "forgetting_factor":
        return
    if meta.get("choices"):
        if value not in meta["choices"]:
            raise ValueError(f"{method}: {knob_.name} is one of {', '.join(meta['choices'])}; got {value!r}")
    elif isinstance(default, str):
        if not isinstance(value, str) or (default and not value):
            raise ValueError(f"{method}: {knob_.name} is a word, or a path in quotes; got {value!r}")
    elif isinstance(default, bool):
        if not isinstance(value, bool):
            raise ValueError(f"{method}: {knob_.name} is True or False; got {value!r}")
    elif isinstance(default, (int, float)):
        kind = "a whole number" if isinstance(default, int) else "a number"
        numeric = isinstance(value, int) or (isinstance(default, float) and isinstance(value, float))
        if isinstance(value, bool) or not numeric or (isinstance(value, float) and not math.isfinite(value)):
            raise ValueError(f"{method}: {knob_.name} is {kind}; got {value!r}")
        if meta.get("at_least") is not None and value < meta["at_least"]:
            raise ValueError(f"{method}: {knob_.name} is at least {meta['at_least']}; got {value}")
        if meta.get("at_most") is not None and value > meta["at_most"]:
            raise ValueError(f"{method}: {knob_.name} is at most {meta['at_most']}; got {value}")

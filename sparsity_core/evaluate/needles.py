"""A needle in a haystack as it is asked, and what a pipeline made of it: records without torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from sparsity_core.evaluate.ruler import haystack_row

LENGTHS = (256, 512, 1024)  # tokens
NEW_TOKENS = 16  # written after a prompt: the answer is a number of seven digits; RULER allows 128
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Needle:
    """A prompt of about `length` tokens that hides a number at `depth`, and asks for it."""

    length: int  # tokens asked for
    depth: float  # 0: before all lines of the haystack; 1: after them
    prompt: str
    answer: str
    n_tokens: int  # of the prompt
    at: int  # its token at which the line with the number begins


@dataclass(frozen=True)
class NeedleFound:
    """What a pipeline made of a needle."""

    needle: Needle
    loss: float  # mean −log p of the answer's tokens, nats
    found: bool  # whether the answer stands in what was written greedily
    written: str


def needle_of(count: Callable[[str], int], length: int, depth: float, seed: int = 0) -> Needle:
    """RULER's `niah_single_1` with its number at a depth; `count` gives a text's tokens.

    Every length and depth of a seed hides the same number under the same key. The prompt is shorter than `length` by less
    than the haystack's longest sentence. Raises ValueError for a depth outside 0 to 1 and for too small a length.
    """
    if not (math.isfinite(depth) and 0 <= depth <= 1):
        raise ValueError(f"a depth is a share from 0 (at the beginning) to 1 (at the end); got {depth}")
    row = haystack_row(count, length=length, depth=depth, seed=seed)
    before = row["before"][: row["before"].index(row["needle"])]
    return Needle(length, depth, row["prompt"], row["answers"][0], count(row["prompt"]), count(before))

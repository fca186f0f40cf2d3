"""How many neurons or heads a ratio leaves. No torch."""

from __future__ import annotations


def kept_count(n: int, ratio: float, multiple: int = 1, *, what: str = "neurons") -> int:
    """How many of n stay. Raises ValueError where none would."""
    count = round(n * (1.0 - ratio) / multiple) * multiple
    if count < 1:
        raise ValueError(f"a ratio of {ratio:g} leaves none of {n:,} {what}: choose a smaller one")
    return min(n, count)

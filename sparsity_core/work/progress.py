"""What long work reports to, and cancels by."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[float, str], None]  # (share done in 0…1, what is being done); raises to cancel


def silent(share: float, doing: str) -> None:
    """The progress of work that nobody watches."""

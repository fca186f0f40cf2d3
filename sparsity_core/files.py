"""Text that a user names or uploads."""

from __future__ import annotations

_MOST_BYTES = 5 * 1024**2


def read_text(name: str, data: bytes) -> str:
    """An uploaded or named file as text. Raises ValueError for one that is too large, or is no UTF-8 text."""
    if len(data) > _MOST_BYTES:
        raise ValueError(
            f"{name} has {len(data) / 1024**2:.0f} MB: give a text of at most 5 MB, or the part that matters"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{name} is not UTF-8 text: save it as plain text (UTF-8) first") from None
    if "\0" in text:
        raise ValueError(f"{name} is a binary file: give plain text")
    return text

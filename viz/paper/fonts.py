"""Which characters the fonts of this machine can draw, and which package has the others."""

from __future__ import annotations

import subprocess
import unicodedata
from bisect import bisect_right
from functools import cache

_SECONDS = 20
# Debian's packages; the first whose test holds. Noto's core package has most scripts, mathematics and symbols.
_CJK = ("CJK", "HANGUL", "HIRAGANA", "KATAKANA", "BOPOMOFO", "IDEOGRAPHIC", "HALFWIDTH", "FULLWIDTH", "YI ")
_NO_GLYPH = {"Cc", "Cf", "Zs", "Zl", "Zp", "Co", "Cn", "Cs"}  # invisible, private or unassigned
_SHOWN = 12  # characters that a sentence names


def without_glyph(text: str) -> str:
    """The characters of a text that no font here has, each once and in order; empty where fontconfig cannot tell."""
    starts, ends = _covered()
    if not starts:
        return ""
    wanted = (c for c in dict.fromkeys(text) if unicodedata.category(c) not in _NO_GLYPH and not _is_selector(c))
    return "".join(c for c in wanted if not _within(ord(c), starts, ends))


def package_for(character: str) -> str:
    """Debian's font package that draws a character."""
    name = unicodedata.name(character, "")
    if name.startswith(_CJK):
        return "fonts-noto-cjk"
    if 0x1F000 <= ord(character) <= 0x1FAFF:
        return "fonts-noto-color-emoji"
    return "fonts-noto-core"


def say_missing(characters: str) -> str:
    """A sentence: which characters are drawn as empty boxes, and what to install."""
    shown = " ".join(characters[:_SHOWN]) + (
        f" and {len(characters) - _SHOWN} more" if len(characters) > _SHOWN else ""
    )
    packages = " ".join(sorted({package_for(c) for c in characters}))
    return f"No font on this machine has {shown}, so these are empty boxes. On Debian or Ubuntu: apt install {packages}"


def _is_selector(character: str) -> bool:
    return 0xFE00 <= ord(character) <= 0xFE0F or 0xE0100 <= ord(character) <= 0xE01EF


def _within(code: int, starts: tuple[int, ...], ends: tuple[int, ...]) -> bool:
    at = bisect_right(starts, code) - 1
    return at >= 0 and code <= ends[at]


@cache
def _covered() -> tuple[tuple[int, ...], tuple[int, ...]]:
    """First and last code of each stretch that some font of fontconfig's has; empty where there is no fontconfig."""
    try:
        listed = subprocess.run(
            ["fc-list", "--format", "%{charset}\n"], capture_output=True, text=True, timeout=_SECONDS, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return (), ()
    return _merged(sorted(_stretch(part) for part in set(listed.split())))


def _stretch(part: str) -> tuple[int, int]:
    """fontconfig's "a0-17f" or "192"."""
    first, _, last = part.partition("-")
    return int(first, 16), int(last or first, 16)


def _merged(stretches: list[tuple[int, int]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    merged: list[tuple[int, int]] = []
    for first, last in stretches:
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return tuple(a for a, _ in merged), tuple(b for _, b in merged)
